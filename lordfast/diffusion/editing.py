"""Noise latents part of the way and denoise them again (SDEdit): image variation, purification, attacks on either."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recompute

from lordfast.diffusion.model import LatentDiffusion, Text


def noise_and_denoise(
    model: LatentDiffusion,
    latents: Tensor,
    noise: Tensor,
    text: Text,
    *,
    start: int,
    steps: int,
    guidance: float = 1.0,
    unconditional: Text | None = None,
    checkpoint: bool = False,
) -> Tensor:
    """Add `noise` up to timestep `start`, then take `steps` deterministic DDIM steps (Song et al. 2021, Eq. 12) to 0.

    Under flow matching these are Euler steps. They lie evenly between `start` and 0. diffusers' schedulers start at a
    fraction of a full schedule only; here the noise level is exact, every operation is differentiable, and no sample
    depends on another.

    Args:
        latents: (B, C, h, w), scaled.
        noise: standard normal, like `latents`.
        text: conditioning of each sample.
        start: timestep in [1, T) whose noise level the latents are brought to.
        steps: DDIM steps, 1 to `start`.
        guidance: classifier-free guidance scale; 1 turns guidance off.
        unconditional: conditioning of the empty prompt, one row or B of them; needed with guidance.
        checkpoint: recompute each step in the backward pass, so that memory does not grow with `steps`.

    Returns:
        Denoised latents, fp32, like `latents`.

    Raises:
        ValueError: `start` or `steps` out of range; guidance without `unconditional`.
    """
    if not 1 <= start < model.timesteps:
        raise ValueError(f"start: expected a timestep from 1 to {model.timesteps - 1}, got {start}")
    if not 1 <= steps <= start:
        raise ValueError(f"steps: expected 1 to {start} (as many as there are timesteps), got {steps}")
    if guidance != 1 and unconditional is None:
        raise ValueError(f"unconditional: guidance {guidance} needs the conditioning of the empty prompt, got None")
    count = len(latents)
    if guidance != 1:
        rows = {name: value.expand(count, *value.shape[1:]) for name, value in (unconditional or {}).items()}
        text = {name: torch.cat([value, rows[name]]) for name, value in text.items()}

    def step(noisy: Tensor, now: Tensor, following: Tensor | None) -> Tensor:
        if guidance == 1:
            prediction = model.predict(noisy, now, text)
        else:
            both = model.predict(torch.cat([noisy, noisy]), torch.cat([now, now]), text)
            wanted, general = both.chunk(2)
            prediction = general + guidance * (wanted - general)
        clean, estimated = model.split(noisy, prediction, now)
        if following is None:
            return clean
        signal, sigma = model.signal_noise(following)
        return signal * clean + sigma * estimated

    times = [torch.full((count,), round(start * (steps - k) / steps), device=latents.device) for k in range(steps)]
    current = model.add_noise(latents, noise, times[0])
    for now, following in zip(times, [*times[1:], None], strict=True):
        if checkpoint:
            current = recompute(step, current, now, following, use_reentrant=False)
        else:
            current = step(current, now, following)
    return current
