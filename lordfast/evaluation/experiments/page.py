"""A page written by hand with a measured table in it: only what stands between the markers is replaced."""

from __future__ import annotations

import re
from pathlib import Path

from lordfast.files import write_atomic

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"


def _split(path: Path) -> tuple[str, str]:
    if not path.is_file():
        raise ValueError(f"page: {path} does not exist; expected a file that holds the lines {BEGIN} and {END}")
    text = path.read_bytes().decode("utf-8")
    begins, ends = (list(re.finditer(rf"^{re.escape(mark)}\s*?$", text, re.MULTILINE)) for mark in (BEGIN, END))
    if len(begins) != 1 or len(ends) != 1 or begins[0].start() > ends[0].start():
        raise ValueError(f"page: expected the line {BEGIN} once in {path}, and then {END} once, each by itself")
    return text[: begins[0].start() + len(BEGIN)], text[ends[0].start() :]


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
