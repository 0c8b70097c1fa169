"""The matrix as Markdown, as CSV, and for the terminal."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from lordfast.evaluation.table import Section, markdown
from lordfast.evaluation.transfer.cells import PAIRED, Value
from lordfast.evaluation.transfer.matrix import find

HEAD = ("row", "kind", "model", "prompt", "metric", "stronger_attack", "value", "low", "high", "images", "reason")


def decimals(width: float) -> int:
    """How many decimals show two significant digits of `width`; 0 to 7."""
    return max(0, min(7, 1 - math.floor(math.log10(width)))) if width > 0 else 4


def shown(value: Value, *, signed: bool = False, interval: bool = True) -> str:
    """A mean and its interval, such as ``21.3 (20.1 to 22.5)``; a dash where there is none."""
    mean, low, high = (value[name] for name in ("value", "low", "high"))
    if mean is None:
        return "-"
    sign = "+" if signed else ""
    if low is None or high is None:
        return f"{mean:{sign}.4g}"
    digits = decimals(high - low)
    around = f" ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})" if interval else ""
    return f"{mean:{sign}.{digits}f}{around}"


def sections(matrix: dict[str, Any], *, brief: bool = False) -> list[Section]:
    """A table per metric: attacks and random signs down, models and prompts across; then attacks minus random signs.

    Args:
        brief: without the intervals and the differences.
    """
    rows, columns = [row["name"] for row in matrix["rows"]], matrix["columns"]
    labels = ["", *(column["label"] for column in columns)]
    found = []
    for name, metric in matrix["metrics"].items():
        body = [
            [row, *(shown(find(matrix, row, column["name"])[name], interval=not brief) for column in columns)]
            for row in rows
        ]
        if name == "clip":
            body.append(["originals", *(shown(column["clip_of_originals"], interval=not brief) for column in columns)])
        if all(cell == "-" for row in body for cell in row[1:]):
            # Once, in words, in place of a table of dashes.
            continue
        found.append(Section(f"{_title(matrix, name)}: {metric['stronger']} = stronger attack", labels, body))
    attacks = [row["name"] for row in matrix["rows"] if "minus_random" in find(matrix, row["name"], columns[0]["name"])]
    for name in PAIRED if attacks and not brief else ():
        cells = [[find(matrix, row, column["name"])["minus_random"][name] for column in columns] for row in attacks]
        if any(cell["value"] is not None for row in cells for cell in row):
            body = [
                [row, *(shown(cell, signed=True) for cell in line)] for row, line in zip(attacks, cells, strict=True)
            ]
            title = f"{matrix['metrics'][name]['title']}, attack minus random signs: below 0 = stronger than they"
            found.append(Section(title, labels, body))
    return found


def _title(matrix: dict[str, Any], name: str) -> str:
    title = matrix["metrics"][name]["title"]
    return f"{title} on {matrix['features']} features" if name == "fid" else title


def unavailable(matrix: dict[str, Any]) -> dict[str, str]:
    """The metrics that no cell has, by title, and why."""
    found = {}
    for name, metric in matrix["metrics"].items():
        values = [cell[name] for cell in matrix["cells"]]
        if all(value["value"] is None for value in values):
            found[metric["title"]] = values[0]["reason"]
    return found


def to_markdown(matrix: dict[str, Any]) -> str:
    """Every table, what is not available and why, and the warnings."""
    notes = "".join(f"* No {title}: {reason}.\n" for title, reason in unavailable(matrix).items())
    head = "# Transfer\n\nMeans over images with 95 % intervals.\n\n" + (f"{notes}\n" if notes else "")
    return head + markdown(sections(matrix), matrix["warnings"])


def to_csv(matrix: dict[str, Any]) -> str:
    """A line per row, column and metric (RFC 4180: quotes where needed, CRLF), empty fields where there is no value."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(HEAD)
    columns = {column["name"]: column for column in matrix["columns"]}
    kinds = {row["name"]: row["kind"] for row in matrix["rows"]}
    for cell in matrix["cells"]:
        column = columns[cell["column"]]
        for name, metric in matrix["metrics"].items():
            value = cell[name]
            writer.writerow(
                (
                    *(cell["row"], kinds[cell["row"]], column["model"], column["prompt"], name, metric["stronger"]),
                    *(value["value"], value["low"], value["high"], cell["images"], value.get("reason")),
                )
            )
    return stream.getvalue()
