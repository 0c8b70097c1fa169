"""The model that is profiled: one that exists, or a published architecture with random weights."""

from __future__ import annotations

from torch import nn

from lordfast.adapter.kohya import is_transformer
from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.diffusion.random_model import random_model
from lordfast.report.profile.config import ProfileConfig
from lordfast.training.speed import speed_up


def open_model(config: ProfileConfig) -> LatentDiffusion:
    """Load or make the model, and bring it into the form that the options ask for.

    Raises:
        ValueError: there is no such model or topology, or a family that is not supported.
    """
    if config.topology is None:
        model = load_model(config.model, device=config.device, dtype=config.dtype)
    else:
        model = random_model(config.topology, device=config.device, dtype=config.dtype, seed=config.seed)
    speed_up(model, config)
    return model


def parts_of(model: LatentDiffusion) -> dict[str, nn.Module]:
    """The parts of a model that compute something, by the names of diffusers' pipelines."""
    denoiser = "transformer" if is_transformer(model.unet) else "unet"
    return {denoiser: model.unet, "vae": model.vae, **model.text_encoders}
