"""The matrix as heat maps, one per metric, the darker the stronger the attack."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lordfast.evaluation.transfer.matrix import find
from lordfast.evaluation.transfer.table import decimals, unavailable
from lordfast.files import write_atomic

LABEL = 18
"""Letters in a line of a column's label."""


def write_chart(matrix: dict[str, Any], path: Path) -> None:
    """Write `matrix_figure` as PNG."""
    buffer = io.BytesIO()
    matrix_figure(matrix).savefig(buffer, format="png", dpi=130)
    write_atomic(path, buffer.getvalue())


def matrix_figure(matrix: dict[str, Any]) -> Figure:
    """A heat map per metric that any cell has, with the numbers in the cells; the others are named below, with why."""
    missing = unavailable(matrix)
    names = [name for name, metric in matrix["metrics"].items() if metric["title"] not in missing]
    rows, columns = len(matrix["rows"]), len(matrix["columns"])
    longest = max(len(row["name"]) for row in matrix["rows"])
    width = max(3.4, 1.3 * columns + 0.085 * longest + 0.3)
    across = max(1, min(len(names), int(13 / width)))
    down = -(-len(names) // across)
    lines = max(len(_wrapped(column["label"])) for column in matrix["columns"])
    notes = [line for title, reason in missing.items() for line in textwrap.wrap(f"No {title}: {reason}.", 100)]
    height = down * (0.9 + 0.5 * rows + 0.17 * lines) + 0.2 + 0.2 * len(notes)
    # A dollar sign in a label is a dollar sign.
    with rc_context({"text.parse_math": False, "font.size": 10}):
        figure = Figure(figsize=(max(across * width, 6.0), height), layout="constrained")
        for i, name in enumerate(names):
            _heat_map(figure.add_subplot(down, across, i + 1), matrix, name)
        if notes:
            figure.supxlabel("\n".join(notes), fontsize=9, color="0.35")
    return figure


def _heat_map(axes: Axes, matrix: dict[str, Any], name: str) -> None:
    rows, columns = matrix["rows"], matrix["columns"]
    found = [[find(matrix, row["name"], column["name"])[name]["value"] for column in columns] for row in rows]
    values = np.array([[np.nan if value is None else value for value in line] for line in found])
    stronger = matrix["metrics"][name]["stronger"]
    # Paper white at the weak end, so that black numbers can be read on most cells.
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    strength = (values - low) / (high - low) if high > low else np.zeros_like(values)
    strength = strength if stronger == "higher" else 1 - strength if high > low else strength
    axes.imshow(strength, cmap="Oranges", vmin=0, vmax=1.35, aspect="auto")
    digits = decimals((high - low) / 10)
    for r, line in enumerate(found):
        for c, value in enumerate(line):
            text = "-" if value is None else f"{value:.{digits}f}"
            axes.text(c, r, text, ha="center", va="center", color="black", fontsize=11)
    axes.set_xticks(range(len(columns)), ["\n".join(_wrapped(column["label"])) for column in columns])
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(f"{matrix['metrics'][name]['title']}\n{stronger} (darker) = stronger attack", fontsize=11)


def _wrapped(label: str) -> list[str]:
    return textwrap.wrap(label, LABEL, max_lines=4, placeholder=" ...") or [label]
