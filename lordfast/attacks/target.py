"""The picture that targeted attacks push towards: a high-contrast pattern drawn here, or a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lordfast.data import fit_image, load_image
from lordfast.diffusion import LatentDiffusion
from lordfast.pixels import to_tensor


def target_pattern(height: int, width: int) -> np.ndarray:
    """Black and white rings broken by diagonal stripes: uint8 (height, width, 3), the same at every call.

    The larger side holds eight rings across; the smaller one shows the middle of them.
    """
    side = max(height, width)
    y, x = np.meshgrid(*((np.arange(n) + 0.5 - n / 2) / side for n in (height, width)), indexing="ij")
    rings = np.sin(2 * np.pi * 8 * np.hypot(x, y))
    stripes = np.sin(2 * np.pi * 6 * (x + y))
    return np.repeat(np.where(rings * stripes > 0, 255, 0).astype(np.uint8)[..., None], 3, axis=2)


class Target:
    """A picture to pull towards, at whatever size it is wanted.

    Args:
        path: its file; None for `target_pattern`.

    Raises:
        ValueError: the file is no readable image.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._picture = load_image(path) if path is not None else None
        self._pixels: dict[tuple[int, int], Tensor] = {}
        self._latents: dict[tuple[int, int], Tensor] = {}

    def image(self, height: int, width: int) -> np.ndarray:
        """uint8 (height, width, 3): the file's picture, centre-cropped, or the pattern."""
        return target_pattern(height, width) if self._picture is None else fit_image(self._picture, (height, width))

    def pixels(self, like: Tensor) -> Tensor:
        """(1, 3, H, W) in [-1, 1] for images `like` (B, 3, H, W)."""
        height, width = like.shape[-2:]
        if (height, width) not in self._pixels:
            self._pixels[height, width] = to_tensor([self.image(height, width)]).to(like)
        return self._pixels[height, width]

    @torch.no_grad()
    def latents(self, model: LatentDiffusion, like: Tensor) -> Tensor:
        """Scaled latents (1, C, h, w) for images `like` (B, 3, H, W); each size is encoded once."""
        height, width = like.shape[-2:]
        if (height, width) not in self._latents:
            self._latents[height, width] = model.encode(self.pixels(like))
        return self._latents[height, width]
