"""Text to image, on the model's own modules with whatever adapters are injected into them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lordfast.diffusion.model import LatentDiffusion
from lordfast.pixels import to_uint8
from lordfast.ranges import phase


def generate(
    model: LatentDiffusion,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 7.5,
    sampler: str | None = None,
    negative_prompt: str = "",
    resolution: int | None = None,
    batch_size: int = 8,
) -> list[np.ndarray]:
    """Sample one image per prompt.

    Image i starts from a generator seeded with ``seed + i``, so it does not depend on how many others are drawn, up to
    the rounding of kernels that differ with the batch size: single pixels, by one grey level.

    Args:
        prompts: one a picture.
        guidance: classifier-free guidance scale; 1 turns guidance off.
        sampler: one of the model's `samplers`; None for its default.
        resolution: side in pixels; None for the model's own.

    Returns:
        uint8 images (H, W, 3), in the order of `prompts`.

    Raises:
        ValueError: a sampler or a resolution that the model can't take, steps or batch_size < 1.
    """
    model.check_sampler(sampler)
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    side = model.check_resolution(resolution)
    pipeline = model.pipeline(sampler)
    _schedule_on_host(pipeline.scheduler)
    images: list[np.ndarray] = []
    for start in range(0, len(prompts), batch_size):
        chunk = list(prompts[start : start + batch_size])
        generators = [torch.Generator("cpu").manual_seed(seed + start + i) for i in range(len(chunk))]
        with phase("sample"):
            latents = pipeline(
                chunk,
                negative_prompt=model.negative(negative_prompt, len(chunk)),
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=generators,
                height=side,
                width=side,
                output_type="latent",
            ).images
        with torch.no_grad():
            images.extend(to_uint8(model.decode(latents)))
    return images


def _schedule_on_host(scheduler: Any) -> None:
    """Keep the timesteps in host memory, where the scheduler looks its coefficients up with them.

    On the device, where pipelines put them, each step would wait for the device to say which timestep it is.
    """
    make = scheduler.set_timesteps

    @functools.wraps(make)
    def set_timesteps(*args: Any, device: Any = None, **kwargs: Any) -> None:
        make(*args, device="cpu", **kwargs)

    scheduler.set_timesteps = set_timesteps
