"""A page written by hand with a measured table in it: only what stands between the markers is replaced."""

from __future__ import annotations

from pathlib import Path

from lordfast.files import write_atomic

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"


def _split(path: Path) -> tuple[str, str]:
    if not path.is_file():
        raise ValueError(f"page: {path} does not exist; expected a file that holds the lines {BEGIN} and {END}")
    text = path.read_bytes().decode("utf-8")
    lines = [line.strip() for line in text.splitlines()]
    if lines.count(BEGIN) != 1 or lines.count(END) != 1 or lines.index(BEGIN) > lines.index(END):
        raise ValueError(f"page: expected the line {BEGIN} once in {path}, and then {END} once, each by itself")
    return text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]


def check_page(path: Path) -> None:
    """Raise ValueError unless `fill_page` can work."""
    _split(path)


def fill_page(path: Path, table: str) -> None:
    """Put `table` between the markers in `path`.

    Raises:
        ValueError: there is no such file, or it does not hold each marker once, in order.
    """
    before, after = _split(path)
    write_atomic(path, f"{before}\n\n{table.strip()}\n\n{after}".encode())
