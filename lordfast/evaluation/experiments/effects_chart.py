"""The result of an experiment with purifiers as one picture: how much worse than clean each condition is."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lordfast.evaluation.experiments.effects_table import DISTANCES, counted, short
from lordfast.files import write_atomic

_PLAIN, _ATTACKED, _PURIFIED = "#2f6f4f", "#b03a2e", "#2c5f9e"
_DASHES = (0, (3, 2))


def chart(results: dict[str, Any]) -> Figure:
    """A panel per measure, a line per condition: how much worse than clean it is, paired within replicates.

    The differences and not the distances, whose intervals hold what all conditions of a replicate share. Vertical lines
    stand at clean, which is 0, and at the attacks whose pictures were purified.
    """
    rows = results["rows"]
    measures = rows[0]["measures"]
    figure = Figure(figsize=(2.2 + 2.7 * len(measures), 1.6 + 0.27 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False)[0]
    names = short(list(dict.fromkeys(measure["features"] for measure in measures)))
    for index, (panel, measure) in enumerate(zip(panels, measures, strict=True)):
        panel.axvline(0, color=_PLAIN, linewidth=0.9, linestyle=_DASHES, label="clean")
        for place, row in enumerate(rows):
            found = row["measures"][index]["against_clean"]
            if found is None:
                continue
            if found["low"] is not None:
                panel.plot((found["low"], found["high"]), (place, place), color=_colour(row), linewidth=1.6, alpha=0.6)
            panel.plot(found["value"], place, "o", color=_colour(row), markersize=4.5)
            if _is_purified_by_others(row, rows):
                panel.axvline(found["value"], color=_ATTACKED, linewidth=0.9, linestyle=_DASHES, label=row["title"])
        name = textwrap.fill(DISTANCES[measure["distance"]], 26)
        panel.set_title(f"{name}\n{names[measure['features']]}", fontsize=9)
        panel.set_xlabel("worse than clean by", fontsize=8)
        panel.grid(axis="x", linewidth=0.4, alpha=0.6)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
        panel.xaxis.set_major_locator(MaxNLocator(4))
    titles = [row["title"] if row["n"] == results["replicates"] else f"{row['title']} (n={row['n']})" for row in rows]
    panels[0].set_yticks(range(len(rows)), titles)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    state = "" if results["complete"] else "UNFINISHED. "
    text = (
        f"{state}A LoRA trained on pictures treated in this way: how much further from clean pictures is what it draws "
        f"than with clean training pictures? Mean difference and 95 % interval over "
        f"{counted(results['replicates'], 'replicate')}; an interval that includes 0 shows no effect."
    )
    figure.suptitle("\n".join(textwrap.wrap(text, 24 + 34 * len(measures))), fontsize=9)
    return figure


def _colour(row: dict[str, Any]) -> str:
    if row["purifier"] is not None:
        return _PURIFIED
    return _PLAIN if row["eps"] is None else _ATTACKED


def _is_purified_by_others(row: dict[str, Any], rows: list[dict[str, Any]]) -> bool:
    if row["eps"] is None or row["purifier"] is not None:
        return False
    return any(other["purifier"] is not None and other["eps"] == row["eps"] for other in rows)


def write_chart(results: dict[str, Any], path: Path) -> None:
    """Write `chart` as PNG."""
    stream = io.BytesIO()
    chart(results).savefig(stream, format="png", dpi=130)
    write_atomic(path, stream.getvalue())
