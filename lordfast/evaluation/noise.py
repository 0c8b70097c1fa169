"""Noise that depends on the image's name and the timestep only: not on its batch, its order or the other images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from lordfast.diffusion import LatentDiffusion
from lordfast.pixels import Uint8Image, to_tensor
from lordfast.training.seeds import derived_generator

Example = tuple[str, Uint8Image, str]
"""Key, uint8 image (H, W, 3), caption."""
Noised = tuple[Tensor, dict[str, Tensor], list[tuple[Tensor, Tensor]]]
"""Clean latents (B, ...), embedded captions, and for each timestep the noise and the times (B,)."""


def noised_batches(
    model: LatentDiffusion,
    examples: Iterable[Example],
    timesteps: Sequence[int],
    *,
    seed: int,
    purpose: str,
    batch_size: int,
) -> Iterator[Noised]:
    """What `model` is asked about images, batch by batch, with `keyed_noise` at each timestep.

    Raises:
        ValueError: no examples.
    """
    waiting = iter(examples)
    empty = True
    while chunk := list(islice(waiting, batch_size)):
        empty = False
        keys = [key for key, _, _ in chunk]
        latents = model.encode(to_tensor([image for _, image, _ in chunk]).to(model.device))
        text = model.embed([caption for _, _, caption in chunk])
        yield (
            latents,
            text,
            [
                (
                    keyed_noise(latents, seed, purpose, keys, timestep),
                    torch.full((len(chunk),), timestep, device=model.device),
                )
                for timestep in timesteps
            ],
        )
    if empty:
        raise ValueError("examples: expected at least one image, got none")


def keyed_noise(like: Tensor, seed: int, purpose: str, keys: Sequence[str], timestep: int) -> Tensor:
    """Standard-normal noise as `like` (B, ...), row i from a generator of (`seed`, `purpose`, ``keys[i]``, `timestep`).

    Images with one key, such as a picture and its attacked twin, get the same noise.
    """
    rows = [torch.randn(like.shape[1:], generator=derived_generator(seed, purpose, key, timestep)) for key in keys]
    return torch.stack(rows).to(like)
