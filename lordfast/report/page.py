"""Fill the template: one HTML file that loads nothing, and in which no text of the user's becomes markup."""

from __future__ import annotations

import base64
import hashlib
import io
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from lordfast.data.images import Uint8Image, check_image
from lordfast.files import write_atomic
from lordfast.report.blocks import Chart, Page, Table
from lordfast.report.numbers import Measured, decimals, written
from lordfast.report.svg import place

PIXELATED = 128
"""Shorter side, in pixels, up to which images are shown pixel by pixel; larger ones are photographs."""


def write_page(page: Page, path: str | Path) -> None:
    """Write `page` to `path`: complete or not at all."""
    write_atomic(path, render_page(page))


def render_page(page: Page) -> str:
    """`page` as an HTML document. The same page gives the same text."""
    source = {name: files("lordfast.report").joinpath(name).read_text(encoding="utf-8") for name in _FILES}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    numbers = count(1)

    def drawing(chart: Chart) -> Markup:
        return Markup(place(chart.svg, f"c{next(numbers)}-", chart.alt))

    filters: dict[str, Any] = {"kind": lambda block: type(block).__name__, "uri": image_uri}
    environment.filters |= filters | {"drawing": drawing, "cells": table_cells}
    style, script = source["page.css"], source["page.js"]
    # The page runs this script and no other, and loads nothing, whatever stands in it.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.from_string(source["page.html.j2"])
    return template.render(
        page=page, pixelated=PIXELATED, style=Markup(style), script=Markup(script), script_digest=digest
    )


_FILES = ("page.html.j2", "page.css", "page.js")


def image_uri(image: Uint8Image) -> str:
    """uint8 (H, W, 3) in a data: address: as PNG, pixel by pixel; above `PIXELATED`, as JPEG where that is shorter."""
    check_image(image, "image")
    picture = Image.fromarray(image)
    kinds = ["PNG"] if min(image.shape[:2]) <= PIXELATED else ["PNG", "JPEG"]
    found = []
    for kind in kinds:
        stream = io.BytesIO()
        options: dict[str, Any] = {"optimize": True} if kind == "PNG" else {"quality": 88, "subsampling": 0}
        picture.save(stream, format=kind, **options)
        found.append(f"data:image/{kind.lower()};base64," + base64.b64encode(stream.getvalue()).decode())
    return min(found, key=len)


def table_cells(table: Table) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of a table as the template shows them: every column with the decimals its largest number needs."""
    digits = []
    for c in range(len(table.columns)):
        found = [cells[c] for _, cells in table.rows]
        numbers = [cell for cell in found if isinstance(cell, Measured)]
        digits.append(decimals(end for cell in numbers for end in (cell.value, *(cell.interval or ()))))

    def show(cell: Measured | str | None, places: int) -> dict[str, Any]:
        if cell is None:
            return {"text": "–", "value": None, "interval": None}
        if isinstance(cell, str):
            return {"text": cell, "value": None, "interval": None}
        interval = None
        if cell.interval is not None:
            interval = f"{written(cell.interval[0], places)} to {written(cell.interval[1], places)}"
        return {"text": written(cell.value, places), "value": repr(cell.value), "interval": interval}

    return [
        (name, [show(cell, places) for cell, places in zip(cells, digits, strict=True)]) for name, cells in table.rows
    ]
