"""What makes a model's steps faster without changing what they compute, and the flags for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.compiled import compile_blocks
from lordfast.diffusion.fusion import optimize


@dataclass(kw_only=True)
class SpeedOptions:
    """How the model's steps are run. Mixed into the configs that take many."""

    compile: bool = False
    """Compile the repeated blocks of denoiser and VAE with torch.compile: minutes at the start, faster steps after."""
    optimize: bool = False
    """Compute the UNet's attention projections together, and what depends on the text alone once a text: fewer, larger
    operations. Layers without LoRD gain nothing."""
    attention: Literal["sdpa", "xformers"] = "sdpa"
    """Attention of PyTorch or of xformers, which comes with --optimize."""


def speed_up(model: LatentDiffusion, options: SpeedOptions) -> None:
    """Bring a model that was just loaded into the form that `options` ask for; adapters may come later.

    Raises:
        ValueError: xformers is asked for and is missing, or can't run on the model's device.
    """
    if options.optimize or options.attention != "sdpa":
        optimize(model, options.attention)
    if options.compile:
        compile_blocks(model.unet, model.vae)
