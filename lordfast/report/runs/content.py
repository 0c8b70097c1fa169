"""What the page of a run is put together from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lordfast.report.blocks import Block, Section, Tile
from lordfast.report.runs.album import Album
from lordfast.report.runs.read import Run


@dataclass(frozen=True)
class Content:
    """What a command adds to the page of its run.

    Attributes:
        title: of the page.
        story: a sentence or two: what was done.
        tiles: the numbers that say the most.
        sections: in order, before those that every run has.
        notes: sentences that should not be missed.
        seconds: time per phase, by name, where the run knows more than its total.
    """

    title: str
    story: str
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = ()
    notes: Sequence[str] = ()
    seconds: dict[str, float] = field(default_factory=dict)


Describe = Callable[[Run, Album], Content]


def section(title: str, *blocks: Block | None) -> list[Section]:
    """A section of those blocks that there are; none of none."""
    found = [block for block in blocks if block is not None]
    return [Section(title, found)] if found else []


def counted(n: int, word: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"
