"""What a page is made of. Every text is plain text: the page escapes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, Union

from lordfast.data.images import Uint8Image
from lordfast.report.numbers import Better, Measured


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Note:
    """A sentence that should not be missed."""

    text: str


@dataclass(frozen=True)
class Tile:
    """A question, its answer in a few words, and the numbers behind it, a line each."""

    label: str
    value: str
    lines: Sequence[str] = ()
    tone: Literal["neutral", "good", "bad"] = "neutral"


@dataclass(frozen=True)
class Tiles:
    tiles: Sequence[Tile]


@dataclass(frozen=True)
class Picture:
    """An image, uint8 (H, W, 3), shown enlarged without smoothing."""

    image: Uint8Image
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class PictureRow:
    """Pictures that belong together, and what they are."""

    title: str
    pictures: Sequence[Picture]
    caption: str = ""


@dataclass(frozen=True)
class Gallery:
    """Rows as cards, where there is room `cards` of them side by side, each with `across` pictures side by side."""

    rows: Sequence[PictureRow]
    across: int = 4
    cards: int = 2


@dataclass(frozen=True)
class Column:
    """A column of a table; `better` puts an arrow on it, `explanation` a sentence under the table."""

    title: str
    better: Better | None = None
    explanation: str = ""


@dataclass(frozen=True)
class Table:
    """A row is its name and a cell per column; None is a cell that was not measured.

    Raises:
        ValueError: a row with another number of cells than there are columns.
    """

    head: str
    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[Measured | str | None]]]
    caption: str = ""

    def __post_init__(self) -> None:
        for name, cells in self.rows:
            if len(cells) != len(self.columns):
                raise ValueError(f"rows: expected {len(self.columns)} cells in {name!r}, got {len(cells)}")


@dataclass(frozen=True)
class Chart:
    """An SVG from `lordfast.report.charts`; `alt` says what it shows to those who can't see it."""

    title: str
    svg: str
    alt: str
    caption: str = ""


@dataclass(frozen=True)
class Charts:
    """Charts, where there is room `cards` of them side by side."""

    charts: Sequence[Chart]
    cards: int = 2


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    items: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """Text as it stands in a file."""

    text: str


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away under `summary`."""

    summary: str
    blocks: Sequence[Block]


Block: TypeAlias = Union[Paragraph, Note, Tiles, Gallery, Table, Charts, Facts, Code, Details]  # noqa: UP007


@dataclass(frozen=True)
class Section:
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Page:
    """`top` stands above the first section, `kicker` above the title, `foot` at the end."""

    title: str
    sections: Sequence[Section]
    top: Sequence[Block] = field(default_factory=tuple)
    kicker: str = ""
    foot: str = ""
