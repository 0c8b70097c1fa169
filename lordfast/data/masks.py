"""Random masks for inpainting: a base shape, transformed several times, that covers a share of the image within bounds.

The pipeline of the LDM-robustness paper (arXiv 2306.08257): masks come from object shapes by random rotation, scaling,
cropping, blurring and the like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageFilter, ImageOps

from lordfast.data.images import Uint8Image, check_image
from lordfast.data.shapes import CANVAS, Step, draw_shape

ATTEMPTS = 200
"""Masks that are drawn for an image before its bounds count as out of reach."""
FITS = 6


@dataclass(frozen=True)
class Mask:
    """A mask and how it came about.

    Attributes:
        pixels: uint8 (H, W), 255 where to fill, 0 where to keep.
        share: of the pixels that are 255.
        steps: the base shape, its transformations in order, and where it was placed, with their numbers.
    """

    pixels: npt.NDArray[np.uint8]
    share: float
    steps: list[Step]


def check_bounds(least: float, most: float) -> None:
    """Raise a ValueError unless 0 <= least <= most <= 1 and most > 0."""
    if not (0 <= least <= most <= 1 and most > 0):
        raise ValueError(
            f"least_area, most_area: expected shares of the image with 0 <= least <= most <= 1, got {least} and {most}"
        )


def draw_mask(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    least: float = 0.05,
    most: float = 0.4,
    shapes: Mapping[str, Image.Image] | None = None,
) -> Mask:
    """Draw a mask that covers a share of at least `least` and at most `most`, and at least one pixel.

    Two to five different transformations are applied to a base shape in random order; then it is scaled towards a share
    drawn between the bounds and put to a random place, partly outside the image perhaps. What misses the bounds all the
    same is drawn again from the start.

    Args:
        size: (height, width) in pixels.
        shapes: base shapes by name, from `read_shape`; the drawn ones where None.

    Raises:
        ValueError: bounds out of range, or out of reach for an image of this size.
    """
    check_bounds(least, most)
    height, width = size
    area = height * width
    if max(1, math.ceil(least * area)) > math.floor(most * area):
        raise ValueError(
            f"least_area, most_area: no number of pixels of an image of {width} x {height} is a share from {least} to "
            f"{most}"
        )
    nearest: float | None = None
    for _ in range(ATTEMPTS):
        if shapes is None:
            shape, made = draw_shape(rng)
        else:
            name = sorted(shapes)[rng.integers(len(shapes))]
            shape, made = shapes[name], {"name": "file", "file": name}
        steps = [made]
        names = list(_TRANSFORMATIONS)
        for index in rng.permutation(len(names))[: rng.integers(2, 6)]:
            shape, numbers = _TRANSFORMATIONS[names[index]](shape, rng)
            steps.append({"name": names[index], **numbers})
        if shape.getbbox() is None:
            continue
        pixels, placed = _place(shape, size, float(rng.uniform(least, most)), rng)
        count = np.count_nonzero(pixels)
        if count and least <= count / area <= most:
            return Mask(pixels, count / area, [*steps, placed])
        middle = (least + most) / 2
        if nearest is None or abs(count / area - middle) < abs(nearest - middle):
            nearest = count / area
    found = "every mask vanished" if nearest is None else f"the nearest covered {nearest:.4f}"
    raise ValueError(
        f"least_area, most_area: none of {ATTEMPTS} masks for an image of {width} x {height} covered a share from "
        f"{least} to {most} ({found}); expected bounds further apart"
    )


def apply_mask(image: Uint8Image, mask: npt.NDArray[np.uint8], fill: int = 127) -> Uint8Image:
    """The image with `fill`, a grey level, where `mask` (H, W) is not 0."""
    check_image(image)
    if mask.shape != image.shape[:2]:
        raise ValueError(f"mask: expected shape {image.shape[:2]} as the image has, got {mask.shape}")
    return np.where(mask[..., None] > 0, np.uint8(fill), image)


def _binary(mask: Image.Image) -> Image.Image:
    return mask.point(lambda level: 255 if level >= 128 else 0)


def _affine(mask: Image.Image, matrix: npt.NDArray[np.float64]) -> Image.Image:
    """Move the mask by a 2 x 2 `matrix` about the canvas' middle; Pillow wants it from the result to the source."""
    (a, b), (c, d) = np.linalg.inv(matrix).tolist()
    middle = CANVAS / 2
    shift_x, shift_y = middle - (a + b) * middle, middle - (c + d) * middle
    coefficients = (a, b, shift_x, c, d, shift_y)
    return _binary(mask.transform(mask.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR))


def _rotate(mask: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Step]:
    degrees = float(rng.uniform(-180, 180))
    return _binary(mask.rotate(degrees, Image.Resampling.BILINEAR)), {"degrees": degrees}


def _stretch(mask: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Step]:
    x, y = (float(value) for value in rng.uniform(0.55, 1.4, 2))
    return _affine(mask, np.diag([x, y])), {"x": x, "y": y}


def _shear(mask: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Step]:
    amount = float(rng.uniform(-0.5, 0.5))
    return _affine(mask, np.array([[1.0, amount], [0.0, 1.0]])), {"x_per_y": amount}


def _flip(mask: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Step]:
    sideways = bool(rng.random() < 0.5)
    return (ImageOps.mirror(mask) if sideways else ImageOps.flip(mask)), {"sideways": sideways}


def _crop(mask: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Step]:
    """Keep a window of the shape's bounding box."""
    left, top, right, bottom = mask.getbbox() or (0, 0, CANVAS, CANVAS)
    width, height = (right - left) * rng.uniform(0.5, 1.0), (bottom - top) * rng.uniform(0.5, 1.0)
    x, y = rng.uniform(left, right - width), rng.uniform(top, bottom - height)
    box = (round(x), round(y), round(x + width), round(y + height))
    window = Image.new("L", mask.size, 0)
    window.paste(255, box)
    return ImageChops.darker(mask, window), {"box": list(box)}


def _dilate(mask: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Step]:
    radius = int(rng.integers(2, 8))
    return mask.filter(ImageFilter.MaxFilter(2 * radius + 1)), {"radius": radius}


def _erode(mask: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Step]:
    radius = int(rng.integers(2, 6))
    return mask.filter(ImageFilter.MinFilter(2 * radius + 1)), {"radius": radius}


def _blur(mask: Image.Image, rng: np.random.Generator) -> tuple[Image.Image, Step]:
    """Round the outline: what a blur leaves above one half."""
    radius = float(rng.uniform(3, 14))
    return _binary(mask.filter(ImageFilter.GaussianBlur(radius))), {"radius": radius}


_TRANSFORMATIONS: dict[str, Callable[[Image.Image, np.random.Generator], tuple[Image.Image, Step]]] = {
    "rotate": _rotate,
    "stretch": _stretch,
    "shear": _shear,
    "flip": _flip,
    "crop": _crop,
    "dilate": _dilate,
    "erode": _erode,
    "blur": _blur,
}


def _place(
    shape: Image.Image, size: tuple[int, int], share: float, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], Step]:
    """Scale `shape` towards `share` of an image of (height, width), its centre of mass at a random place in it."""
    height, width = size
    rows, columns = np.nonzero(np.asarray(shape))
    from_x, from_y = float(columns.mean()), float(rows.mean())
    to_x, to_y = float(rng.uniform(0, width - 1)), float(rng.uniform(0, height - 1))
    scale = math.sqrt(share * height * width / len(rows))
    for _ in range(FITS):
        step = 1 / scale
        coefficients = (step, 0.0, from_x + 0.5 - (to_x + 0.5) * step, 0.0, step, from_y + 0.5 - (to_y + 0.5) * step)
        placed = shape.transform((width, height), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
        pixels = np.asarray(_binary(placed))
        covered = np.count_nonzero(pixels) / (height * width)
        if not covered or abs(covered - share) < 0.01 * share:
            break
        # What the image's edge cut off, or its pixels rounded, is made up for by size.
        scale *= min(2.0, math.sqrt(share / covered))
    return pixels, {"name": "place", "scale": 1 / step, "x": to_x, "y": to_y}
