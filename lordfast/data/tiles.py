"""Overlapping tiles of an image, and how what was computed on them becomes one array again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


def tile_starts(length: int, side: int, overlap: int) -> list[int]:
    """Where tiles of `side` begin along an axis of `length`, evenly, so that neighbours share at least `overlap`."""
    if length <= side:
        return [0]
    count = -(-(length - overlap) // (side - overlap))
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


@dataclass(frozen=True)
class Tiling:
    """Square tiles over an image of `height` x `width`, each side at least `side`.

    Attributes:
        overlap: pixels that neighbours share at least, less than `side`.
    """

    height: int
    width: int
    side: int
    overlap: int

    def __post_init__(self) -> None:
        if min(self.height, self.width) < self.side:
            raise ValueError(
                f"height, width: expected at least the tiles' side {self.side}, got {self.height}, {self.width}"
            )
        if not 0 <= self.overlap < self.side:
            raise ValueError(f"overlap: expected 0 or more and less than side {self.side}, got {self.overlap}")

    @property
    def corners(self) -> list[tuple[int, int]]:
        """Top and left of each tile, row by row."""
        tops = tile_starts(self.height, self.side, self.overlap)
        lefts = tile_starts(self.width, self.side, self.overlap)
        return [(top, left) for top in tops for left in lefts]

    def cut(self, image: np.ndarray) -> list[np.ndarray]:
        """The tiles of `image` (height, width, ...), copied."""
        return [image[top : top + self.side, left : left + self.side].copy() for top, left in self.corners]

    def merge(self, tiles: Sequence[np.ndarray]) -> np.ndarray:
        """The weighted mean of `tiles` (side, side, C), float64 (height, width, C).

        A tile's weight falls towards its borders, so that no seam shows. It is a mean: where all tiles lie within
        bounds, so does the result.
        """
        ramp = np.minimum(np.arange(1, self.side + 1), np.arange(self.side, 0, -1)).clip(max=self.overlap + 1)
        weight = np.multiply.outer(ramp, ramp).astype(np.float64)[..., None]
        total = np.zeros((self.height, self.width, tiles[0].shape[2]))
        weights = np.zeros((self.height, self.width, 1))
        for (top, left), tile in zip(self.corners, tiles, strict=True):
            window = np.s_[top : top + self.side, left : left + self.side]
            total[window] += weight * tile
            weights[window] += weight
        return total / weights
