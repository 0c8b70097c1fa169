"""How much what a LoRA draws differs from what the one trained on clean pictures draws from the same noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lordfast.data import list_images, load_image

PICTURES, CHANGE = "pictures", "change"


def drawn_change(one: Path, other: Path) -> float:
    """The root mean square difference of two folders of pictures with the same names, in grey levels.

    Raises:
        ValueError: their names differ.
    """
    ours, theirs = (list_images(folder, captions="ignore") for folder in (one, other))
    if [record.name for record in ours] != [record.name for record in theirs]:
        raise ValueError(f"pictures: expected the same names in {one} and {other}")
    squares = [
        np.square(load_image(mine.path).astype(np.float64) - load_image(yours.path)).mean()
        for mine, yours in zip(ours, theirs, strict=True)
    ]
    return float(np.sqrt(np.mean(squares)))


class Changes:
    """`drawn_change` of the cells of a grid against their replicate's clean one; each is computed once.

    Args:
        cells: the grid's folder.
    """

    def __init__(self, cells: Path) -> None:
        self._cells = cells
        self._known: dict[str, float] = {}

    def of(self, replicate: str, condition: str) -> float:
        """Of a finished cell whose replicate's clean cell is finished too."""
        name = f"{replicate}/{condition}"
        if name not in self._known:
            drawn = (self._cells / f"{replicate}/{part}/generated" for part in (condition, "clean"))
            self._known[name] = drawn_change(*drawn)
        return self._known[name]
