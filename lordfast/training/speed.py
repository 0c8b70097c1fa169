"""What makes a model's steps faster without changing what they compute, and the flags for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.attention import LordAttnProcessor
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
        ValueError: xformers is asked for and is missing, or can't run on the model's device; the denoiser's attention
            is of a kind that can't be computed together, a transformer's.
    """
    if options.optimize or options.attention != "sdpa":
        optimize(model, options.attention)
        if not any(isinstance(getattr(m, "processor", None), LordAttnProcessor) for m in model.unet.modules()):
            flag = "optimize" if options.optimize else "attention"
            raise ValueError(
                f"{flag}: the attention of {model.name}'s {type(model.unet).__name__} can't be taken over; expected a "
                f"UNet's, or no --{flag}"
            )
    if options.compile:
        compile_blocks(model.unet, model.vae)
