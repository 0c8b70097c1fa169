"""An image of any size and mode as the squares that a model takes, and their changes as the image again."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from lordfast.attacks.budget import Budget
from lordfast.data.images import fit_layers, load_layers, on_white
from lordfast.data.tiles import Tiling
from lordfast.pixels import Uint8Image

Size = Literal["model", "original", "tiles"]
OVERLAP = 8
"""Tiles share at least side / OVERLAP pixels with their neighbours."""


@dataclass(frozen=True)
class Frame:
    """An image to attack.

    Attributes:
        colours: uint8 (H, W, 3): what the result changes, and what the budget is counted from.
        alpha: uint8 (H, W) or None.
        look: makes of uint8 (H, W, 3) the views, uint8 (h, w, 3), all of one size, that the model is shown.
        merge: makes of the views' changes, float (h, w, 3) in grey levels, the change of `colours`.
    """

    colours: Uint8Image
    alpha: np.ndarray | None
    look: Callable[[Uint8Image], list[Uint8Image]]
    merge: Callable[[Sequence[np.ndarray]], np.ndarray]

    @classmethod
    def of(cls, image: Uint8Image, alpha: np.ndarray | None = None) -> Frame:
        """An image that already has the size the model takes."""
        return cls(image, alpha, _whole, _only)

    @functools.cached_property
    def views(self) -> list[Uint8Image]:
        """What the model is shown of the image."""
        return self.look(on_white(self.colours, self.alpha))

    def views_of(self, result: Uint8Image) -> list[Uint8Image]:
        """What the model is shown of an attacked image (H, W, 3 or 4)."""
        return self.look(on_white(np.ascontiguousarray(result[..., :3]), self.alpha))

    def result(self, levels: Sequence[np.ndarray], budget: Budget) -> Uint8Image:
        """The attacked image, uint8 (H, W, 3), or (H, W, 4) with the alpha that came; it obeys `budget` exactly.

        Args:
            levels: the perturbed views, float grey levels (h, w, 3).
        """
        change = self.merge([level - view for level, view in zip(levels, self.views, strict=True)])
        if self.alpha is not None:
            # Colours that nobody sees stay as they are.
            change = np.where(self.alpha[..., None] > 0, change, 0)
        colours = budget.quantise(self.colours + change, self.colours)
        return colours if self.alpha is None else np.dstack([colours, self.alpha])

    def holds(self, colours: Uint8Image, alpha: np.ndarray | None, budget: Budget) -> bool:
        """Whether `colours` and `alpha`, read from a file, may be what `result` gave."""
        if colours.shape != self.colours.shape or (alpha is None) != (self.alpha is None):
            return False
        if alpha is not None and self.alpha is not None and not np.array_equal(alpha, self.alpha):
            return False
        # The budget leaves alone what obeys it, and nothing else.
        return np.array_equal(budget.quantise(colours.astype(float), self.colours), colours)


def _whole(image: Uint8Image) -> list[Uint8Image]:
    return [image]


def _only(changes: Sequence[np.ndarray]) -> np.ndarray:
    return changes[0]


def open_frame(path: Path, size: Size, side: int, multiple: int, content: bytes | None = None) -> Frame:
    """Read an image for an attack at the resolution `side`.

    Args:
        size: what the result looks like. ``model``: the centre-cropped square of `side`. ``original``: the image
            itself; the model sees it scaled so that its shorter side is `side`, and the change is resampled.
            ``tiles``: the image itself; the model sees it in full, in overlapping squares of `side`.
        multiple: what the sides of a view must be multiples of.
        content: what the file holds, where it is no file of its own.

    Raises:
        BadImageError: the file is no readable image.
    """
    colours, alpha = load_layers(path, content)
    if size == "model":
        return Frame.of(*fit_layers((colours, alpha), side))
    height, width = colours.shape[:2]
    if size == "original":
        scaled = _Scaled(height, width, side, multiple)
        return Frame(colours, alpha, scaled.look, scaled.merge)
    tiled = _Tiled(height, width, side)
    return Frame(colours, alpha, tiled.look, tiled.merge)


def _padded(image: Uint8Image, height: int, width: int) -> Uint8Image:
    """`image` continued downwards and to the right by its mirror image."""
    below, right = height - image.shape[0], width - image.shape[1]
    return np.pad(image, ((0, below), (0, right), (0, 0)), mode="symmetric")


class _Scaled:
    """One view: the whole image, its shorter side scaled to `side`, continued to a multiple of what the model takes."""

    def __init__(self, height: int, width: int, side: int, multiple: int) -> None:
        scale = side / min(height, width)
        self._whole = (height, width)
        self._small = max(side, round(height * scale)), max(side, round(width * scale))
        self._padded = tuple(-(-length // multiple) * multiple for length in self._small)

    def look(self, image: Uint8Image) -> list[Uint8Image]:
        small = Image.fromarray(image).resize(self._small[::-1], Image.Resampling.LANCZOS)
        return [_padded(np.array(small), *self._padded)]

    def merge(self, changes: Sequence[np.ndarray]) -> np.ndarray:
        change = torch.from_numpy(changes[0][: self._small[0], : self._small[1]]).permute(2, 0, 1)[None]
        # The cubic overshoots the budget by a little; rounding to 8 bits takes that back.
        resized = F.interpolate(change, size=self._whole, mode="bicubic", antialias=True, align_corners=False)
        return resized[0].permute(1, 2, 0).numpy()


class _Tiled:
    """Overlapping views at full size; an image smaller than one is continued by its mirror image."""

    def __init__(self, height: int, width: int, side: int) -> None:
        self._whole = (height, width)
        self._tiling = Tiling(max(side, height), max(side, width), side, side // OVERLAP)

    def look(self, image: Uint8Image) -> list[Uint8Image]:
        return self._tiling.cut(_padded(image, self._tiling.height, self._tiling.width))

    def merge(self, changes: Sequence[np.ndarray]) -> np.ndarray:
        return self._tiling.merge(changes)[: self._whole[0], : self._whole[1]]
