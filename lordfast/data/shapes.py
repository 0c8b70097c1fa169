"""Base shapes of inpainting masks: drawn ellipses, polygons and brush strokes, or a person's own mask files.

A shape is a Pillow image of mode L, CANVAS x CANVAS, 255 inside and 0 outside, its middle in the canvas' middle and all
of it within REACH of there, so that turning it cuts nothing off.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from lordfast.data.images import BadImageError, load_image

CANVAS = 384
REACH = 0.34 * CANVAS
_MIDDLE = CANVAS / 2

Step = dict[str, Any]
"""What was done, ``name``, and with which numbers, in canvas pixels and degrees."""


def draw_shape(rng: np.random.Generator) -> tuple[Image.Image, Step]:
    """One of the drawn shapes, each as likely as the others, and the step that says which."""
    name, draw = list(_DRAWN.items())[rng.integers(len(_DRAWN))]
    shape = Image.new("L", (CANVAS, CANVAS), 0)
    numbers = draw(ImageDraw.Draw(shape), rng)
    return shape, {"name": name, **numbers}


def read_shape(path: Path) -> Image.Image:
    """The bright part, 128 and above, of an image file of any mode, scaled into the canvas.

    Raises:
        BadImageError: it can't be read, or nothing in it is bright.
    """
    grey = Image.fromarray(load_image(path)).convert("L").point(lambda level: 255 if level >= 128 else 0)
    box = grey.getbbox()
    if box is None:
        raise BadImageError(path, "no pixel is 128 or brighter, expected a mask that is white where to fill")
    part = grey.crop(box)
    scale = 2 * REACH / float(np.hypot(*part.size))
    size = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
    shape = Image.new("L", (CANVAS, CANVAS), 0)
    shape.paste(part.resize(size, Image.Resampling.NEAREST), ((CANVAS - size[0]) // 2, (CANVAS - size[1]) // 2))
    return shape


def _ellipse(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> Step:
    width, height = (float(value) for value in rng.uniform(0.35, 1.0, 2) * REACH)
    draw.ellipse((_MIDDLE - width, _MIDDLE - height, _MIDDLE + width, _MIDDLE + height), fill=255)
    return {"half_width": width, "half_height": height}


def _polygon(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> Step:
    corners = int(rng.integers(3, 10))
    # One corner per sector: star-shaped around the middle, so that edges don't cross.
    angles = (np.arange(corners) + rng.uniform(0.1, 0.9, corners)) * 2 * np.pi / corners
    radii = rng.uniform(0.45, 1.0, corners) * REACH
    points = [(_MIDDLE + r * np.cos(a), _MIDDLE + r * np.sin(a)) for r, a in zip(radii, angles, strict=True)]
    draw.polygon([(float(x), float(y)) for x, y in points], fill=255)
    return {"corners": corners}


def _strokes(draw: ImageDraw.ImageDraw, rng: np.random.Generator) -> Step:
    strokes, brush = int(rng.integers(1, 4)), float(rng.uniform(0.12, 0.3) * REACH)
    for _ in range(strokes):
        inner = REACH - brush
        at, heading = rng.uniform(-0.5, 0.5, 2) * inner, rng.uniform(0, 2 * np.pi)
        for _ in range(int(rng.integers(4, 10))):
            heading += rng.normal(0, 0.7)
            following = at + rng.uniform(0.15, 0.45) * inner * np.array([np.cos(heading), np.sin(heading)])
            if np.hypot(*following) > inner:
                # Turn back at the rim.
                heading += np.pi
                continue
            ends = [(float(_MIDDLE + x), float(_MIDDLE + y)) for x, y in (at, following)]
            draw.line(ends, fill=255, width=round(2 * brush))
            for x, y in ends:
                draw.ellipse((x - brush, y - brush, x + brush, y + brush), fill=255)
            at = following
    return {"strokes": strokes, "brush": brush}


_DRAWN: dict[str, Callable[[ImageDraw.ImageDraw, np.random.Generator], Step]] = {
    "ellipse": _ellipse,
    "polygon": _polygon,
    "strokes": _strokes,
}
