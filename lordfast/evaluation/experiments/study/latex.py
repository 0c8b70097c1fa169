"""The paper's table as LaTeX: a plain tabular, which needs no package."""

from __future__ import annotations

from typing import Any

from lordfast.evaluation.experiments.effects_table import written
from lordfast.evaluation.experiments.study.tables import headline, rows_of, setting_title, settings_of, title_of

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
}
_ARROWS = {"lower": r"$\downarrow$", "higher": r"$\uparrow$"}


def escape(text: str) -> str:
    """`text` as LaTeX prints it."""
    return "".join(_SPECIAL.get(letter, letter) for letter in text)


def to_latex(results: dict[str, Any]) -> str:
    """A table for every attack, budget and proportion; what is not there, or not finished, is a dash.

    Without any table where nothing has been measured.
    """
    blocks = [] if results["complete"] else ["% UNFINISHED: not all cells of the study are there."]
    if results["columns"]:
        blocks += [_table(results, setting) for setting in settings_of(results)]
    return "\n".join(blocks) + "\n"


def _table(results: dict[str, Any], setting: tuple[str, int, float]) -> str:
    columns, datasets = headline(results), results["datasets"]
    width = len(columns)
    lines = [f"% {setting_title(results, setting)}; mean $\\pm$ half the 95 % interval over replicates"]
    lines += [rf"\begin{{tabular}}{{l{'c' * (width * len(datasets))}}}", r"\hline"]
    lines.append(" & ".join(["", *(rf"\multicolumn{{{width}}}{{c}}{{{escape(d)}}}" for d in datasets)]) + r" \\")
    heads = [f"{escape(column['title'])} {_ARROWS[column['better']]}" for column in columns]
    lines += [" & ".join(["Method", *heads * len(datasets)]) + r" \\", r"\hline"]
    cells: dict[str, dict[str, list[str]]] = {}
    for dataset in datasets:
        for row in rows_of(results, dataset, setting):
            found = [_value(row["measures"].get(column["key"])) for column in columns]
            cells.setdefault(row["method"], {})[dataset] = found
    for method, row_cells in cells.items():
        values = [value for dataset in datasets for value in row_cells.get(dataset, ["--"] * width)]
        lines.append(" & ".join([escape(title_of(method)), *values]) + r" \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}"])


def _value(entry: dict[str, Any] | None) -> str:
    if entry is None or entry["value"] is None:
        return "--"
    if entry["low"] is None:
        return written(entry["value"])
    return rf"${written(entry['value'])} \pm {written((entry['high'] - entry['low']) / 2, 2)}$"
