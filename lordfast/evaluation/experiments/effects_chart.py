"""The result of an experiment with purifiers as one picture: every condition's distance, with its interval."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from lordfast.evaluation.experiments.effects_table import DISTANCES, short
from lordfast.files import write_atomic

_PLAIN, _ATTACKED, _PURIFIED = "#2f6f4f", "#b03a2e", "#2c5f9e"


def chart(results: dict[str, Any]) -> Figure:
    """A panel per measure, a line per condition; the vertical lines are clean and, where purified, attacked."""
    rows = results["rows"]
    measures = rows[0]["measures"]
    figure = Figure(figsize=(2.2 + 2.7 * len(measures), 1.5 + 0.27 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    for index, (panel, measure) in enumerate(zip(panels, measures, strict=True)):
        for place, row in enumerate(rows):
            found = row["measures"][index]["mean"]
            if found is None:
                continue
            if found["low"] is not None:
                panel.plot((found["low"], found["high"]), (place, place), color=_colour(row), linewidth=1.6, alpha=0.6)
            panel.plot(found["value"], place, "o", color=_colour(row), markersize=4.5)
        for row, name in _lines(rows):
            found = row["measures"][index]["mean"]
            if found is not None:
                panel.axvline(found["value"], color=_colour(row), linewidth=0.9, linestyle=(0, (3, 2)), label=name)
        panel.set_title(f"{DISTANCES[measure['distance']]}\n{short(measure['features'])}", fontsize=9)
        panel.grid(axis="x", linewidth=0.4, alpha=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    titles = [row["title"] if row["n"] == results["replicates"] else f"{row['title']} (n={row['n']})" for row in rows]
    panels[0].set_yticks(range(len(rows)), titles)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    state = "" if results["complete"] else "UNFINISHED. "
    text = (
        f"{state}LoRA on pictures treated in this way: distance of what it draws to clean pictures, lower is closer. "
        f"Mean and 95 % interval over {results['replicates']} replicates; dashed: clean, and attacked unpurified."
    )
    figure.suptitle("\n".join(textwrap.wrap(text, 24 + 34 * len(measures))), fontsize=9)
    return figure


def _colour(row: dict[str, Any]) -> str:
    if row["purifier"] is not None:
        return _PURIFIED
    return _PLAIN if row["eps"] is None else _ATTACKED


def _lines(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    purified = {row["eps"] for row in rows if row["purifier"] is not None}
    plain = [row for row in rows if row["purifier"] is None]
    return [(row, row["title"]) for row in plain if row["eps"] is None or row["eps"] in purified]


def write_chart(results: dict[str, Any], path: Path) -> None:
    """Write `chart` as PNG."""
    stream = io.BytesIO()
    chart(results).savefig(stream, format="png", dpi=130)
    write_atomic(path, stream.getvalue())
