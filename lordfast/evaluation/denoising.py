"""How well a model with its adapters denoises pictures that it was not trained on: a paired measure of a LoRA.

Images drawn by two LoRAs differ by the sampler's chance too, and distances between sets need many of them. The loss
L_LDM (Eq. 6) of the same pictures with the same noise at the same timesteps differs by the LoRAs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from lordfast.diffusion import LatentDiffusion
from lordfast.evaluation.detection import check_timesteps
from lordfast.evaluation.noise import Example, noised_batches


@torch.no_grad()
def denoising_losses(
    model: LatentDiffusion,
    examples: Iterable[Example],
    timesteps: Sequence[int],
    *,
    seed: int = 0,
    batch_size: int = 8,
    on_batch: Callable[[int], Any] | None = None,
) -> Tensor:
    """L_LDM of each image at each of the T timesteps, float64 (N, T), with whatever adapters are in `model`.

    The noise depends on (seed, key, timestep) only: the losses of two models on the same images pair up.

    Args:
        examples: (key, uint8 image (H, W, 3), caption), all images of one size.
        timesteps: within [0, ``model.timesteps``).
        on_batch: called with the size of each finished batch.

    Raises:
        ValueError: no examples, or a timestep out of range.
    """
    check_timesteps(timesteps, model.timesteps)
    rows: list[Tensor] = []
    batches = noised_batches(model, examples, timesteps, seed=seed, purpose="denoising", batch_size=batch_size)
    for latents, text, noised in batches:
        losses = [model.loss(latents, noise, times, text).double().cpu() for noise, times in noised]
        rows.append(torch.stack(losses, dim=1))
        if on_batch is not None:
            on_batch(len(latents))
    return torch.cat(rows)
