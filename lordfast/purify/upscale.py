"""Noisy upscaling (Hönig et al. 2024): drown the attack in noise, and let an upscaler draw the picture anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from lordfast.diffusion.upscaling import load_upscaler, upscale, upscaler_step
from lordfast.pixels import Uint8Image, to_uint8
from lordfast.purify.config import BatchPurifier, PurifyConfig, Tick, check_range, image_generator
from lordfast.purify.noise import gaussian_noise
from lordfast.purify.smooth import resize
from lordfast.purify.tiles import pad_images


@dataclass(kw_only=True)
class UpscaleConfig(PurifyConfig):
    """Add Gaussian noise, then upscale four times with a diffusion model and scale back (noisy upscaling).

    Without --upscaler the noisy images are scaled down and up again with a Lanczos filter.
    """

    std: float = 0.05
    """Standard deviation of the noise in [0, 1] pixels."""
    upscaler: str | None = None
    """A StableDiffusionUpscalePipeline: a diffusers folder or a hub id, such as
    stabilityai/stable-diffusion-x4-upscaler."""
    factor: float = 2.0
    """Without --upscaler: by how much the sides shrink in between."""
    prompt: str = ""
    """What the upscaler is told of every image. Captions are kept, not used."""
    steps: int = 25
    """Steps of the upscaler."""
    noise_level: int = 20
    """The noise that the upscaler itself adds and takes for given, 0 to about 350."""
    guidance: float = 1.0
    """The upscaler's classifier-free guidance scale; 1 turns it off."""


def noisy_upscale(
    images: Sequence[Uint8Image],
    *,
    std: float = 0.05,
    seed: int = 0,
    factor: float = 2.0,
    pipeline: Any = None,
    prompt: str = "",
    steps: int = 25,
    noise_level: int = 20,
    guidance: float = 1.0,
) -> list[Uint8Image]:
    """Purify uint8 images (H, W, 3) of one size: `gaussian_noise`, then upscale and scale back to (H, W) with Lanczos.

    All noise is drawn from (seed, pixels). Borders are reflected up to what the upscaler takes.

    Args:
        pipeline: from `load_upscaler`; for None, `resize` by `factor` instead.

    Raises:
        ValueError: std or factor out of range.
    """
    noisy = [gaussian_noise(image, std, seed) for image in images]
    if pipeline is None:
        return [resize(image, factor) for image in noisy]
    height, width = images[0].shape[:2]
    generators = [image_generator(seed, "noisy-upscale", image) for image in images]
    pixels = pad_images(noisy, upscaler_step(pipeline))
    large = upscale(pipeline, pixels, prompt, generators, steps=steps, noise_level=noise_level, guidance=guidance)
    scale = large.shape[-1] // pixels.shape[-1]
    large = large[..., : scale * height, : scale * width]
    return [
        np.array(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)) for image in to_uint8(large)
    ]


def build(config: UpscaleConfig) -> BatchPurifier:
    """The purifier of `config`, checked; loads the upscaler."""
    check_range("std", config.std, 0, 1)
    check_range("factor", config.factor, 1)
    check_range("steps", config.steps, 1)
    check_range("noise_level", config.noise_level, 0)
    pipeline = None
    if config.upscaler is not None:
        pipeline = load_upscaler(config.upscaler, device=config.device, dtype=config.dtype)
        check_range("noise_level", config.noise_level, 0, pipeline.config.max_noise_level)

    def apply(images: Sequence[Uint8Image], tick: Tick) -> list[Uint8Image]:
        purified = noisy_upscale(
            images,
            std=config.std,
            seed=config.seed,
            factor=config.factor,
            pipeline=pipeline,
            prompt=config.prompt,
            steps=config.steps,
            noise_level=config.noise_level,
            guidance=config.guidance,
        )
        tick()
        return purified

    return BatchPurifier(apply)
