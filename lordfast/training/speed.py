"""What makes a model's steps faster without changing what they compute, and the flags for it."""

from __future__ import annotations

from dataclasses import dataclass

from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.compiled import compile_blocks


@dataclass(kw_only=True)
class SpeedOptions:
    """How the model's steps are run. Mixed into the configs that take many."""

    compile: bool = False
    """Compile the repeated blocks of denoiser and VAE with torch.compile: minutes at the start, faster steps after."""


def speed_up(model: LatentDiffusion, options: SpeedOptions) -> None:
    """Bring a model that was just loaded into the form that `options` ask for; adapters may come later."""
    if options.compile:
        compile_blocks(model.unet, model.vae)
