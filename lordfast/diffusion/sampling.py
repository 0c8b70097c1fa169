"""Text to image, on the model's own modules with whatever adapters are injected into them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lordfast.diffusion.model import LatentDiffusion
from lordfast.diffusion.stable_diffusion import build_pipeline
from lordfast.pixels import to_uint8

SAMPLERS = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
}


def generate(
    model: LatentDiffusion,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    steps: int = 25,
    guidance: float = 7.5,
    sampler: str = "ddim",
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
        sampler: one of `SAMPLERS`.
        resolution: side in pixels; None for the model's own.

    Returns:
        uint8 images (H, W, 3), in the order of `prompts`.

    Raises:
        ValueError: an unknown sampler, a resolution the model can't take, steps or batch_size < 1.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler: expected one of {', '.join(SAMPLERS)}, got {sampler!r}")
    if steps < 1:
        raise ValueError(f"steps: expected at least 1, got {steps}")
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
    side = model.check_resolution(resolution)
    pipeline = build_pipeline(model, SAMPLERS[sampler])
    images: list[np.ndarray] = []
    for start in range(0, len(prompts), batch_size):
        chunk = list(prompts[start : start + batch_size])
        generators = [torch.Generator("cpu").manual_seed(seed + start + i) for i in range(len(chunk))]
        latents = pipeline(
            chunk,
            negative_prompt=[negative_prompt] * len(chunk),
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
