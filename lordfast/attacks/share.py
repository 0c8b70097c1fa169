"""A share of a folder: what one of many independent jobs, which know nothing of each other, attacks of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Share `number` (from 1) of `count`.

    Attributes:
        name: ``-3-of-8``, for files of its own in the common run folder; empty for the whole.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str | None) -> Share:
        """``3/8``; None is the whole.

        Raises:
            ValueError: it is something else.
        """
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not 1 <= int(match.group(1)) <= int(match.group(2)):
            raise ValueError(f"share: expected K/N with K from 1 to N, such as 3/8, got {text!r}")
        return cls(int(match.group(1)), int(match.group(2)))

    @property
    def name(self) -> str:
        return f"-{self.number}-of-{self.count}" if self.count > 1 else ""

    def of(self, items: Sequence[T], run: int = 1) -> list[T]:
        """This share of `items`, dealt out `run` at a time, so that batches of that size come out whole."""
        return [item for i, item in enumerate(items) if i // run % self.count == self.number - 1]

    def siblings(self, folder: Path) -> list[Path]:
        """The files in `folder` that the shares of this division leave when they are done, this one's first."""
        numbers = sorted(range(1, self.count + 1), key=lambda number: number != self.number)
        return [folder / f"{number}-of-{self.count}.json" for number in numbers]
