"""Blurring, and scaling down and up again: high frequencies go, whoever put them there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from PIL import Image, ImageFilter

from lordfast.pixels import Uint8Image, check_image
from lordfast.purify.config import BatchPurifier, PurifyConfig, check_range, each


@dataclass(kw_only=True)
class BlurConfig(PurifyConfig):
    """Blur with a Gaussian.

    The default is for images of 512 pixels; at 64 pixels take a --radius of about 0.7.
    """

    radius: float = 1.5
    """Standard deviation of the Gaussian, in pixels."""


@dataclass(kw_only=True)
class ResizeConfig(PurifyConfig):
    """Scale down and up again to the old size, with an antialiased Lanczos filter.

    The default is for images of 512 pixels; at 64 pixels take a --factor of about 1.5.
    """

    factor: float = 2.0
    """By how much the sides shrink in between."""


def blur(image: Uint8Image, radius: float) -> Uint8Image:
    """Pillow's Gaussian blur of `image` (H, W, 3), `radius` its standard deviation in pixels.

    Raises:
        ValueError: a negative radius.
    """
    check_image(image)
    check_range("radius", radius, 0)
    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def resize(image: Uint8Image, factor: float) -> Uint8Image:
    """`image` (H, W, 3) scaled by 1 / factor (sides rounded, at least 1 pixel) and back.

    Raises:
        ValueError: a factor below 1.
    """
    check_image(image)
    check_range("factor", factor, 1)
    height, width = image.shape[:2]
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    picture = Image.fromarray(image).resize(small, Image.Resampling.LANCZOS)
    return np.array(picture.resize((width, height), Image.Resampling.LANCZOS))


def build_blur(config: BlurConfig) -> BatchPurifier:
    """The purifier of `config`, checked."""
    check_range("radius", config.radius, 0)
    return each(partial(blur, radius=config.radius))


def build_resize(config: ResizeConfig) -> BatchPurifier:
    """The purifier of `config`, checked."""
    check_range("factor", config.factor, 1)
    return each(partial(resize, factor=config.factor))
