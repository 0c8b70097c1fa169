"""Text to image, on the model's own modules with whatever adapters are injected into them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

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
    images: list[np.ndarray] = []
    for start in range(0, len(prompts), batch_size):
        chunk = list(prompts[start : start + batch_size])
        generators = [torch.Generator("cpu").manual_seed(seed + start + i) for i in range(len(chunk))]
        with phase("sample"), _schedule_on_host(pipeline.scheduler, model.unet):
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


@contextmanager
def _schedule_on_host(scheduler: Any, denoiser: nn.Module) -> Iterator[None]:
    """Keep the timesteps in host memory, where the scheduler looks its coefficients up with them.

    On the device, where pipelines put them, each step would wait for the device to say which timestep it is. The
    denoiser, which computes with it, gets it on the device all the same, by a copy that nobody waits for.
    """
    make = scheduler.set_timesteps

    @functools.wraps(make)
    def set_timesteps(*args: Any, device: Any = None, **kwargs: Any) -> None:
        make(*args, device="cpu", **kwargs)

    scheduler.set_timesteps = set_timesteps
    hook = denoiser.register_forward_pre_hook(_timestep_to_device, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
        del scheduler.set_timesteps


def _timestep_to_device(denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """(sample, timestep, ...) of a UNet, or the keywords of a transformer."""
    sample: Any = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
    in_args = len(args) > 1
    time = args[1] if in_args else kwargs["timestep"]
    if not isinstance(time, Tensor) or time.device == sample.device:
        return None
    time = (time.contiguous().pin_memory() if sample.is_cuda else time).to(sample.device, non_blocking=True)
    return ((args[0], time, *args[2:]), kwargs) if in_args else (args, {**kwargs, "timestep": time})
