"""Additive Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from lordfast.pixels import Uint8Image, check_image
from lordfast.purify.config import BatchPurifier, PurifyConfig, check_range, each, image_generator


@dataclass(kw_only=True)
class NoiseConfig(PurifyConfig):
    """Add Gaussian noise, independent for every pixel and colour."""

    std: float = 0.05
    """Standard deviation in [0, 1] pixels: 0.05 is about 13 grey levels. Results are clipped to black and white."""


def gaussian_noise(image: Uint8Image, std: float, seed: int = 0) -> Uint8Image:
    """`image` (H, W, 3) plus normal noise of `std` in [0, 1] pixels, clipped and rounded; drawn from (seed, pixels).

    Raises:
        ValueError: a negative std, or one above 1.
    """
    check_image(image)
    check_range("std", std, 0, 1)
    noise = torch.randn(image.shape, generator=image_generator(seed, "gaussian-noise", image), dtype=torch.float64)
    return np.rint(image + 255 * std * noise.numpy()).clip(0, 255).astype(np.uint8)


def build(config: NoiseConfig) -> BatchPurifier:
    """The purifier of `config`, checked."""
    check_range("std", config.std, 0, 1)
    return each(partial(gaussian_noise, std=config.std, seed=config.seed))
