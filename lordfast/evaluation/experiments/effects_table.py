"""The result of an experiment with purifiers as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from lordfast.evaluation.experiments.changes import CHANGE, PICTURES
from lordfast.evaluation.table import Section, number, section_to_markdown

DISTANCES = {
    "frechet": "Frechet distance",
    "kernel": "kernel distance (KID)",
    CHANGE: "change of what is drawn, RMS in grey levels",
}
_ESTIMATES = ("mean", "against_clean", "against_unpurified", "recovered")
_PARTS = ("value", "low", "high", "n")


def short(features: Sequence[str]) -> dict[str, str]:
    """Features -> a name for each: ``classifier`` for ``lordfast.demo.classifier:load_classifier``, a path's last part.

    Where several would have the same name, each is called by all that it is.
    """
    names = {
        spec: spec.partition(":")[0].rpartition(".")[2] if ":" in spec else spec.rpartition("/")[2] for spec in features
    }
    given = list(names.values())
    return {spec: name if given.count(name) == 1 else spec for spec, name in names.items()}


def title_of(measure: dict[str, Any]) -> str:
    """What was measured, and in which features."""
    name = DISTANCES[measure["distance"]]
    return name if measure["features"] == PICTURES else f"{name} in {measure['features']} features"


def written(value: float, digits: int = 3) -> str:
    """`value` to as many significant digits, those before the point all of them: 1234 and not 1.23e+03."""
    text = number(value, digits)
    return f"{value:.0f}" if "e+" in text else text


def cell_text(estimate: dict[str, Any] | None, n: int, signed: bool = False) -> str:
    """``1.2 (0.9 to 1.5)``; the number of replicates too, where it is not `n`; a dash where there is none."""
    if estimate is None or estimate["value"] is None:
        return "-"
    sign = "+" if signed and estimate["value"] > 0 else ""
    text = sign + written(estimate["value"])
    if estimate["low"] is not None:
        text += f" ({written(estimate['low'])} to {written(estimate['high'])})"
    return text if estimate["n"] == n else f"{text} [n = {estimate['n']}]"


def sections(results: dict[str, Any]) -> list[Section]:
    """A table per measure: a row per condition."""
    columns = ["LoRA trained on", "n", "distance", "worse than clean by", "purified - unpurified", "recovered share"]
    found = []
    for index, measure in enumerate(results["rows"][0]["measures"]):
        lines = []
        for row in results["rows"]:
            one = row["measures"][index]
            cells = [cell_text(one["mean"], row["n"])]
            cells += [cell_text(one[name], row["n"], signed=True) for name in ("against_clean", "against_unpurified")]
            recovered = cell_text(one["recovered"], row["n"])
            lines.append([row["title"], f"{row['n']} of {results['replicates']}", *cells, recovered])
        found.append(Section(f"{title_of(measure)} (lower is closer)", columns, lines))
    return found


def to_markdown(results: dict[str, Any]) -> str:
    """The tables, after what they rest on and how far they are, and before how to read them."""
    blocks = [_state(results), *(section_to_markdown(section) for section in sections(results)), _reading(results)]
    return "\n".join([*blocks, *times(results)])


def times(results: dict[str, Any]) -> list[str]:
    """A table of the seconds that the steps took; none without any."""
    rows = [
        [name, str(found["cells"]), number(found["mean"], 3), number(found["total"], 4)]
        for name, found in results["seconds"].items()
    ]
    columns = ["phase", "cells", "seconds per cell", "seconds in all"]
    return [section_to_markdown(Section("Where the time went", columns, rows))] if rows else []


def unfinished(results: dict[str, Any]) -> list[str]:
    """How far a half-finished grid is, and what failed; no lines for a finished one."""
    cells, lines = results["cells"], []
    if not results["complete"]:
        parts = [f"{cells['left']} are still to be computed"] if cells["left"] else []
        parts += [f"{cells['failed']} failed"] if cells["failed"] else []
        parts += [f"{cells['blocked']} need a failed one"] if cells["blocked"] else []
        lines.append(
            f"**Unfinished: {cells['done']} of {cells['all']} cells are there, {', '.join(parts)}.** Rows rest"
        )
        lines[-1] += " on the replicates that n counts; a row without any shows dashes."
        lines += [f"* failed: {one['cell']}: {one['type']}: {_line(one['message'])}" for one in results["failed"]]
        lines.append("")
    return lines


def _state(results: dict[str, Any]) -> str:
    lines = unfinished(results)
    people = "identity" if results["identities"] == 1 else "identities"
    parts = [f"{results['identities']} {people}", f"{counted(results['seeds'], 'seed')} each"]
    lines.append(
        f"{counted(results['replicates'], 'replicate')}: {', '.join(parts)}; attack {results['attack']}, model "
        f"{results['model']}."
    )
    return "\n".join(lines) + "\n"


def counted(n: int, word: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _line(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 200 else words[:199] + "…"


def _reading(results: dict[str, Any]) -> str:
    rows = [row for row in results["rows"] if row["purifier"] is not None]
    count = len(rows) * len(results["rows"][0]["measures"])
    few = "" if results["replicates"] > 1 else " One replicate has no interval: it shows no effect at all."
    several = results["seeds"] > 1
    shared = " Replicates of one identity share its reference pictures, so they are not quite independent."
    chance = (
        f" Of {count} comparisons of a purifier with nothing, about 1 in 20 leaves 0 out by chance alone, which no "
        "correction accounts for."
    )
    return (
        "## How to read it\n\n"
        "In brackets: the 95 % interval over replicates (Student's, with n - 1 degrees of freedom), not over images; "
        "for the recovered share, Fieller's for a ratio of paired means. **An interval of a difference that includes 0 "
        f"shows no effect.**{few}{shared if several else ''}\n\n"
        "* distance: of generated pictures to fresh clean pictures of the same identity; mean over replicates.\n"
        "* change of what is drawn: of the pictures of this LoRA from those that the clean one draws from the same "
        "noise, which is 0 for clean itself. It says how much the training pictures changed the LoRA, not whether for "
        "the worse.\n"
        "* worse than clean by: this condition - clean, within a replicate.\n"
        "* purified - unpurified: with the purifier - without it, on the same pictures, within a replicate; below 0 it "
        f"helps.{chance if count else ''}\n"
        "* recovered share: mean(attacked - purified) / mean(attacked - clean). The means are divided, not the "
        "replicates' values: a single replicate's denominator may be near 0. 1 is everything, 0 nothing, above 1 "
        "better than clean. A dash: the attack worsened nothing on average; no brackets: what it worsened may be 0, so "
        "the share has no bounds.\n"
    )


def to_csv(results: dict[str, Any]) -> str:
    """RFC 4180: a line per condition and measure, an empty field where there is no number."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    names = [name if part == "value" else f"{name}_{part}" for name in _ESTIMATES for part in _PARTS]
    writer.writerow(["condition", "eps", "purifier", "features", "distance", "replicates", *names])
    for row in results["rows"]:
        for measure in row["measures"]:
            start = [row["condition"], row["eps"], row["purifier"], measure["features"], measure["distance"]]
            values = [(measure[name] or {}).get(part) for name in _ESTIMATES for part in _PARTS]
            writer.writerow([*start, results["replicates"], *values])
    return stream.getvalue()
