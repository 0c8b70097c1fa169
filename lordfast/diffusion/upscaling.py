"""Images four times as large, by a diffusers `StableDiffusionUpscalePipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lordfast.diffusion.families import pipeline_index
from lordfast.diffusion.loading import shortened, weights_options
from lordfast.diffusion.model import DTYPES
from lordfast.diffusion.resolve import resolve_model
from lordfast.runs.host import resolve_device


def load_upscaler(upscaler: str | Path, *, device: str = "auto", dtype: str = "fp32") -> Any:
    """The pipeline in a diffusers folder or on the hub, progress bar off.

    Raises:
        ValueError: it is no such pipeline, or it can't be loaded.
    """
    resolved_device = resolve_device(device)
    try:
        source = resolve_model(upscaler)
        family = pipeline_index(source, str(upscaler))["_class_name"]
    except ValueError as error:
        raise ValueError(str(error).replace("model:", "upscaler:", 1)) from error
    if family != "StableDiffusionUpscalePipeline":
        raise ValueError(f"upscaler: {upscaler} is a {family}; expected a StableDiffusionUpscalePipeline")
    from diffusers import StableDiffusionUpscalePipeline

    try:
        variants = [weights_options(source, part).get("variant") for part in ("unet", "vae", "text_encoder")]
        # diffusers loads the parts that have no such variant without it.
        variant = next((one for one in variants if one is not None), None)
        pipeline: Any = StableDiffusionUpscalePipeline.from_pretrained(
            source, torch_dtype=DTYPES[dtype], variant=variant
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"upscaler: {upscaler} can't be loaded: {shortened(error)}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(resolved_device)


def upscaler_step(pipeline: Any) -> int:
    """What the sides of images that go in are multiples of.

    The UNet works at their own size and halves by it; the pipeline itself, silently, scales to what the VAE halves by.
    """
    return 2 ** (max(len(part.config.block_out_channels) for part in (pipeline.unet, pipeline.vae)) - 1)


@torch.no_grad()
def upscale(
    pipeline: Any,
    pixels: Tensor,
    prompt: str,
    generators: Sequence[torch.Generator],
    *,
    steps: int,
    noise_level: int,
    guidance: float,
) -> Tensor:
    """`pixels` (B, 3, H, W) in [-1, 1] four times as large, (B, 3, 4H, 4W), on the CPU, in fp32.

    Args:
        prompt: what the pipeline is told of every image.
        generators: of all that is drawn for each image.
        steps, noise_level, guidance: as in the pipeline.
    """
    images = pipeline(
        [prompt] * len(pixels),
        image=pixels.to(pipeline.device, pipeline.unet.dtype),
        num_inference_steps=steps,
        noise_level=noise_level,
        guidance_scale=guidance,
        generator=list(generators),
        output_type="pt",
    ).images
    return images.float().cpu() * 2 - 1
