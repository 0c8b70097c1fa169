"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, a KL autoencoder."""

from __future__ import annotations

from typing import Any

import torch

from lordfast.diffusion.model import LatentDiffusion


def load(source: str, *, name: str, device: torch.device, dtype: torch.dtype) -> LatentDiffusion:
    """Load the five parts that training, attacks and sampling use; the safety checker stays on disk.

    Raises:
        ValueError: a part is missing, unreadable or incomplete; the message names it.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from safetensors import SafetensorError
    from transformers import CLIPTextModel, CLIPTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    parts: dict[str, Any] = {}
    classes: dict[str, Any] = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
        "scheduler": DDPMScheduler,
    }
    for part, cls in classes.items():
        has_weights = part in ("unet", "vae", "text_encoder")
        options = {"output_loading_info": True} if has_weights else {}
        try:
            loaded = cls.from_pretrained(source, subfolder=part, **options)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"model: the {part} of {name} can't be loaded: {error}") from error
        if has_weights:
            loaded, report = loaded
            missing = sorted(report["missing_keys"])
            # The libraries would draw them at random, with a warning at most.
            if missing:
                raise ValueError(f"model: the {part} of {name} lacks {len(missing)} weights, such as {missing[0]}")
        parts[part] = loaded
    _check_tokenizer(name, parts["tokenizer"], parts["text_encoder"].config)
    return LatentDiffusion(name=name, device=device, dtype=dtype, **parts)


def _check_tokenizer(name: str, tokenizer: Any, config: Any) -> None:
    # Where its files are missing, transformers makes an empty tokenizer without a limit on the length.
    if len(tokenizer) > config.vocab_size or tokenizer.model_max_length > config.max_position_embeddings:
        raise ValueError(
            f"model: the tokenizer of {name} is missing or not its text encoder's: it knows {len(tokenizer)} tokens "
            f"and makes texts of up to {tokenizer.model_max_length}; the encoder knows {config.vocab_size} and takes "
            f"{config.max_position_embeddings}"
        )


def build_pipeline(model: LatentDiffusion, scheduler_class: str = "DDIMScheduler") -> Any:
    """A diffusers `StableDiffusionPipeline` over the model's own modules (shared, not copied), progress bar off."""
    import diffusers

    scheduler = getattr(diffusers, scheduler_class).from_config(model.scheduler.config)
    # Latents are not confined to [-1, 1]. The pipeline enforces both as well, but with deprecation warnings, and on
    # the scheduler it is built with only.
    enforced = {"clip_sample": False, "steps_offset": 1}
    scheduler.register_to_config(**{name: value for name, value in enforced.items() if name in scheduler.config})
    pipeline: Any = diffusers.StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
