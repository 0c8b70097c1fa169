"""Drawing with signed distances (negative inside), soft masks and value noise on a square canvas of any size.

Coordinates run from -1 to 1, x to the right and y down; colours are RGB in [0, 1]. Nothing but the sensor's grain is
drawn per pixel, so that a generator gives the same picture at every size.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating[Any]]
Color = Array | tuple[float, float, float]

RIDGE_POINTS = 64
"""Segments of a mountain ridge; between them it is straight."""
EDGE_PIXELS = 1.12
"""Width of an edge: about what a lens and a sensor leave of a sharp one."""
GRAIN = 0.006
"""Standard deviation of the sensor's noise: one and a half grey levels."""


class Canvas:
    """The pixel grid of a picture: ``x`` and ``y`` (size, size) are its centres' coordinates."""

    def __init__(self, size: int) -> None:
        self.size = size
        centres = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
        self.y, self.x = (np.ascontiguousarray(grid) for grid in np.meshgrid(centres, centres, indexing="ij"))
        self.edge = EDGE_PIXELS * 2 / size

    def inside(self, distance: Array, softness: float | None = None) -> Array:
        """Mask in [0, 1] of a signed distance: 1/2 on the edge, which is ``softness`` wide (EDGE_PIXELS by default)."""
        return np.clip(0.5 - distance / (softness or self.edge), 0, 1)

    def value_noise(
        self, rng: np.random.Generator, octaves: tuple[int, ...] = (4, 8, 16), persistence: float = 0.5
    ) -> Array:
        """Smooth noise (size, size) of mean about 0.

        A sum of random lattices with ``octaves`` cells a side, each ``persistence`` times as strong as the one before.
        """
        total = np.zeros((self.size, self.size), np.float32)
        amplitude, weight = 1.0, 0.0
        for cells in octaves:
            lattice = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
            position = (np.arange(self.size) + 0.5) / self.size * cells
            cell = position.astype(int)
            fraction = (position - cell).astype(np.float32)
            fraction = fraction * fraction * (3 - 2 * fraction)
            rows = lattice[cell] * (1 - fraction)[:, None] + lattice[cell + 1] * fraction[:, None]
            total += amplitude * (rows[:, cell] * (1 - fraction)[None] + rows[:, cell + 1] * fraction[None])
            weight += amplitude
            amplitude *= persistence
        return total / weight

    def midpoint_ridge(self, rng: np.random.Generator, base: float, amplitude: float, roughness: float) -> Array:
        """Sky line of a mountain range, (size,) heights as y, by midpoint displacement around ``base``.

        Every level of halving is ``roughness`` times as strong as the one before.
        """
        height = np.zeros(RIDGE_POINTS + 1)
        height[0], height[-1] = rng.normal(0, amplitude * 0.4, 2)
        step = RIDGE_POINTS
        while step > 1:
            half = step // 2
            between = (height[0:-1:step] + height[step::step]) / 2
            height[half::step] = between + rng.normal(0, amplitude, len(between))
            amplitude *= roughness
            step = half
        return base - np.interp(self.x[0], np.linspace(-1, 1, RIDGE_POINTS + 1), height)

    def develop(self, image: Array, rng: np.random.Generator) -> Array:
        """Add the grain of a camera and cut to the range: float32 in [0, 1]."""
        return np.clip(image + rng.normal(0, GRAIN, image.shape), 0, 1).astype(np.float32)


@functools.lru_cache(maxsize=8)
def canvas_of(size: int) -> Canvas:
    """The canvas of ``size`` pixels a side.

    Raises:
        ValueError: fewer than 16 pixels, at which the features of a face vanish.
    """
    if size < 16:
        raise ValueError(f"size: expected at least 16 pixels, got {size}")
    return Canvas(size)


def ellipse(x: Array, y: Array, center_x: float, center_y: float, radius_x: float, radius_y: float) -> Array:
    """Signed distance to an axis-parallel ellipse (exact for circles)."""
    radial = np.sqrt(((x - center_x) / radius_x) ** 2 + ((y - center_y) / radius_y) ** 2)
    return (radial - 1) * min(radius_x, radius_y)


def rounded_box(
    x: Array, y: Array, center_x: float, center_y: float, half_width: float, half_height: float, radius: float = 0.0
) -> Array:
    """Signed distance to a rectangle whose corners are rounded by ``radius``."""
    outside_x = np.abs(x - center_x) - half_width + radius
    outside_y = np.abs(y - center_y) - half_height + radius
    corner = np.sqrt(np.maximum(outside_x, 0) ** 2 + np.maximum(outside_y, 0) ** 2)
    return corner + np.minimum(np.maximum(outside_x, outside_y), 0) - radius


def blend(image: Array, mask: Array, color: Color) -> Array:
    """Paint ``color``, one RGB or an image of them, over ``image`` (S, S, 3) where ``mask`` (S, S) is 1."""
    opacity = mask[..., None]
    return image * (1 - opacity) + opacity * np.asarray(color, np.float32)


def random_tint(rng: np.random.Generator, spread: float) -> tuple[float, float, float]:
    """A small random change of colour, to be added to RGB: normal with standard deviation ``spread``."""
    red, green, blue = rng.normal(0, spread, 3).tolist()
    return red, green, blue
