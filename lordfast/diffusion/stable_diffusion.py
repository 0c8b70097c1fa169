"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, a KL autoencoder."""

from __future__ import annotations

from typing import Any

import torch

from lordfast.diffusion.model import LatentDiffusion


def load(source: str, *, name: str, device: torch.device, dtype: torch.dtype) -> LatentDiffusion:
    """Load the five parts that training, attacks and sampling use; the safety checker stays on disk.

    Raises:
        ValueError: a part is missing or unreadable; the message names it.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    parts: dict[str, Any] = {}
    classes = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
        "scheduler": DDPMScheduler,
    }
    for part, cls in classes.items():
        try:
            parts[part] = cls.from_pretrained(source, subfolder=part)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"model: the {part} of {name} can't be loaded: {error}") from error
    return LatentDiffusion(name=name, device=device, dtype=dtype, **parts)


def build_pipeline(model: LatentDiffusion) -> Any:
    """A diffusers `StableDiffusionPipeline` over the model's own modules (shared, not copied), progress bar off."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=DDIMScheduler.from_config(model.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
