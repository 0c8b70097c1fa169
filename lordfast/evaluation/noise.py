"""Noise that depends on the image's name and the timestep only: not on its batch, its order or the other images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lordfast.training.seeds import derived_generator


def keyed_noise(like: Tensor, seed: int, purpose: str, keys: Sequence[str], timestep: int) -> Tensor:
    """Standard-normal noise as `like` (B, ...), row i from a generator of (`seed`, `purpose`, ``keys[i]``, `timestep`).

    Images with one key, such as a picture and its attacked twin, get the same noise.
    """
    rows = [torch.randn(like.shape[1:], generator=derived_generator(seed, purpose, key, timestep)) for key in keys]
    return torch.stack(rows).to(like)
