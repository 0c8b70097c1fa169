"""How well a model with its adapters denoises pictures that it was not trained on: a paired measure of a LoRA.

Images drawn by two LoRAs differ by the sampler's chance too, and distances between sets need many of them. The loss
L_LDM (Eq. 6) of the same pictures with the same noise at the same timesteps differs by the LoRAs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lordfast.diffusion import LatentDiffusion
from lordfast.evaluation.detection import check_timesteps
from lordfast.evaluation.noise import keyed_noise
from lordfast.pixels import Uint8Image, to_tensor


@torch.no_grad()
def denoising_losses(
    model: LatentDiffusion,
    examples: Iterable[tuple[str, Uint8Image, str]],
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
    waiting = iter(examples)
    rows: list[Tensor] = []
    while chunk := list(islice(waiting, batch_size)):
        keys = [key for key, _, _ in chunk]
        latents = model.encode(to_tensor([image for _, image, _ in chunk]).to(model.device))
        text = model.embed([caption for _, _, caption in chunk])
        losses = []
        for timestep in timesteps:
            noise = keyed_noise(latents, seed, "denoising", keys, timestep)
            times = torch.full((len(chunk),), timestep, device=model.device)
            losses.append(model.loss(latents, noise, times, text).double().cpu())
        rows.append(torch.stack(losses, dim=1))
        if on_batch is not None:
            on_batch(len(chunk))
    if not rows:
        raise ValueError("examples: expected at least one image, got none")
    return torch.cat(rows)
