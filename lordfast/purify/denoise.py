"""Noise latents to a timestep and let the model denoise them: what diffpure and gridpure are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.editing import noise_and_denoise
from lordfast.purify.config import ModelPurifyConfig, check_range


@dataclass(kw_only=True)
class DenoiseConfig(ModelPurifyConfig):
    """How far images are noised, and how they are denoised."""

    start: int | None = None
    """The timestep to which images are noised, instead of --strength."""
    prompt: str = ""
    """What the denoiser is told of every image. Captions are kept, not used."""


def find_start(strength: float, start: int | None, steps: int, model: LatentDiffusion) -> int:
    """The timestep t*: `start`, or round(strength * T).

    Raises:
        ValueError: it is not in [1, T), or there are more `steps` than timesteps up to it.
    """
    check_range("strength", strength, 0, 1, above=True)
    found = round(strength * model.timesteps) if start is None else start
    given = f"strength {strength:g}" if start is None else f"start {start}"
    if not 1 <= found < model.timesteps:
        name = "strength" if start is None else "start"
        raise ValueError(
            f"{name}: expected a timestep from 1 to {model.timesteps - 1} of {model.timesteps}, got {found} ({given})"
        )
    if not 1 <= steps <= found:
        raise ValueError(f"steps: expected 1 to {found}, as many as there are timesteps up to {given}, got {steps}")
    return found


def denoiser(
    model: LatentDiffusion, generators: Sequence[torch.Generator], *, start: int, steps: int, prompt: str
) -> Callable[[Tensor], Tensor]:
    """A function that noises latents (B, C, h, w) to timestep `start` and denoises them in `steps` DDIM steps.

    Each call draws the noise of image i from ``generators[i]``.
    """
    row = model.embed([prompt])
    text = {name: value.expand(len(generators), *value.shape[1:]) for name, value in row.items()}

    def denoise(latents: Tensor) -> Tensor:
        noise = torch.stack([torch.randn(latents.shape[1:], generator=generator) for generator in generators])
        return noise_and_denoise(model, latents, noise.to(latents), text, start=start, steps=steps)

    return denoise
