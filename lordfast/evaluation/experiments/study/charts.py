"""The results of a study as pictures: methods with error bars, curves over the attacked share, lambda as heat maps."""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lordfast.evaluation.experiments.effects_table import counted
from lordfast.evaluation.experiments.study.tables import rows_of, settings_of, title_of
from lordfast.files import write_atomic

_CLEAN, _ATTACKED, _OTHERS = "#2f6f4f", "#b03a2e", "#2c5f9e"
_LINES = ("#b03a2e", "#c98a1b", "#2c5f9e", "#2f6f4f", "#7a4d9e", "#5f6b6d", "#1b8a9a", "#a05a2c")
_DASHES = (0, (3, 2))


def write_charts(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write what there is to show as PNG: ``chart-DATASET.png``, ``curves.png``,
    ``curves-paired.png``, ``gate-DATASET.png``."""
    figures: dict[str, Figure] = {}
    if results["columns"]:
        figures |= {f"chart-{dataset}": effects_chart(results, dataset) for dataset in results["datasets"]}
        if len({setting[2] for setting in settings_of(results)}) > 1:
            figures |= {"curves": curves_chart(results), "curves-paired": curves_chart(results, paired=True)}
    for dataset in results["datasets"]:
        rows = [row for row in results["gates"] if row["dataset"] == dataset and row["cells"]]
        if rows:
            figures[f"gate-{dataset}"] = gate_chart(results, rows)
    paths = []
    for name, figure in figures.items():
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=130)
        paths.append(folder / f"{name}.png")
        write_atomic(paths[-1], stream.getvalue())
    return paths


def effects_chart(results: dict[str, Any], dataset: str) -> Figure:
    """A panel per measure, a line per attack and method: how far it is from the LoRA of clean images, paired."""
    lines = [row for setting in settings_of(results) for row in rows_of(results, dataset, setting)[1:]]
    lines += [
        row
        for row in results["rows"]
        if row["dataset"] == dataset and row["attack"] is None and row["method"] != "clean-lora"
    ]
    columns = results["columns"]
    figure = Figure(figsize=(3.4 + 2.4 * len(columns), 1.8 + 0.27 * len(lines)), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for panel, column in zip(panels, columns, strict=True):
        panel.axvline(0, color=_CLEAN, linewidth=0.9, linestyle=_DASHES)
        for place, row in enumerate(lines):
            found = row["measures"].get(column["key"], {}).get("against_clean")
            if found is None:
                continue
            if found["low"] is not None:
                panel.plot((found["low"], found["high"]), (place, place), color=_colour(row), linewidth=1.6, alpha=0.6)
            panel.plot(found["value"], place, "o", color=_colour(row), markersize=4.5)
        panel.set_title(textwrap.fill(f"{column['title']} ({column['better']} is better)", 24), fontsize=8)
        _plain(panel)
    names = [f"{row['exposure']}: {title_of(row['method'])}" for row in lines]
    panels[0].set_yticks(range(len(lines)), names)
    panels[0].set_ylim(len(lines) - 0.5, -0.5)
    text = (
        f"{_state(results)}{dataset}: how far from what the LoRA of clean images draws? Mean difference within "
        f"replicates and 95 % interval over {counted(results['per_dataset'], 'replicate')}; an interval that includes "
        "0 shows no effect."
    )
    figure.suptitle("\n".join(textwrap.wrap(text, 40 + 28 * len(columns))), fontsize=9)
    return figure


def curves_chart(results: dict[str, Any], paired: bool = False) -> Figure:
    """A row of panels per dataset, attack and budget, a panel per measure, a curve per method over the attacked share.

    Args:
        paired: the difference from the LoRA of clean images within replicates, whose interval leaves out what the
            replicates differ in; else the mean.
    """
    places = list(dict.fromkeys((d, s[0], s[1]) for d in results["datasets"] for s in settings_of(results)))
    columns = results["columns"]
    figure = Figure(figsize=(3.0 * len(columns) + 0.4, 2.5 * len(places) + 1.1), layout="constrained")
    grid = figure.subplots(len(places), len(columns), squeeze=False)
    handles: dict[str, Any] = {}
    for (dataset, attack, budget), panels in zip(places, grid, strict=True):
        for panel, column in zip(panels, columns, strict=True):
            lines = curves(results, dataset, attack, budget, column["key"], "against_clean" if paired else None)
            for index, (method, points) in enumerate(lines.items()):
                # A little apart, so that bars don't hide each other.
                shares = [100 * share + 0.7 * index for share, _ in points]
                values = [entry["value"] for _, entry in points]
                low, high = ([_end(entry, end) for _, entry in points] for end in ("low", "high"))
                ends = [
                    [value - end for value, end in zip(values, low, strict=True)],
                    [end - value for value, end in zip(values, high, strict=True)],
                ]
                colour = _LINES[index % len(_LINES)]
                handles[title_of(method)] = panel.errorbar(
                    shares, values, ends, color=colour, marker="o", markersize=3.5,
                    linewidth=1.3, elinewidth=0.9, capsize=2,
                )  # fmt: skip
            panel.set_title(f"{dataset}, {attack}: {column['title']}", fontsize=8)
            panel.set_xlabel("% of the pictures attacked", fontsize=8)
            _plain(panel)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    what = "Difference from the LoRA of clean images within replicates" if paired else "Mean"
    text = f"{_state(results)}{what}, and 95 % interval over {counted(results['per_dataset'], 'replicate')}."
    figure.suptitle(text, fontsize=9)
    return figure


def _end(entry: dict[str, Any], end: str) -> float:
    """Where a bar ends; without an interval it has no length."""
    return entry["value"] if entry[end] is None else entry[end]


def curves(
    results: dict[str, Any], dataset: str, attack: str, budget: int, key: str, part: str | None = None
) -> dict[str, list[tuple[float, dict[str, Any]]]]:
    """Method -> (share of attacked pictures, estimate), from clean on; the clean LoRA is where the plain one begins.

    Args:
        part: of a measure's effects; the mean when left out.
    """
    found: dict[str, list[tuple[float, dict[str, Any]]]] = {}
    for row in results["rows"]:
        here = row["attack"] is None or (row["attack"], row["budget"]) == (attack, budget)
        entry = row["measures"].get(key)
        if part is not None and entry is not None:
            entry = {"value": 0.0, "low": None, "high": None} if row["method"] == "clean-lora" else entry[part]
        if row["dataset"] == dataset and here and entry is not None and entry["value"] is not None:
            method = "lora" if row["method"] == "clean-lora" else row["method"]
            found.setdefault(method, []).append((row["proportion"], entry))
    return {method: sorted(points, key=lambda point: point[0]) for method, points in found.items()}


def gate_chart(results: dict[str, Any], rows: list[dict[str, Any]]) -> Figure:
    """A heat map of the AUROC of lambda per LoRD, attack and budget: layers down, timesteps across."""
    layers = list(dict.fromkeys(entry["layer"] for entry in rows[0]["cells"]))
    steps = [entry["timestep"] for entry in rows[0]["timesteps"]]
    figure = Figure(figsize=(3.2 + 1.5 * len(rows), 1.6 + 0.13 * len(layers)), layout="constrained")
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for panel, row in zip(panels, rows, strict=True):
        values = {(entry["layer"], entry["timestep"]): entry["auroc"] for entry in row["cells"]}
        table = [[values.get((layer, step), float("nan")) for step in steps] for layer in layers]
        image = panel.imshow(table, aspect="auto", vmin=0, vmax=1, cmap="RdBu_r", interpolation="nearest")
        area = row["measures"]["auroc"]["value"]
        panel.set_title(f"{title_of(row['method'])}\n{row['attack']} {row['eps']}\npooled {area:.2f}", fontsize=7)
        panel.set_xticks(range(len(steps)), [str(step) for step in steps])
        panel.set_xlabel("timestep", fontsize=7)
        panel.tick_params(labelsize=6)
    panels[0].set_yticks(range(len(layers)), [layer.replace(".transformer_blocks.0", "") for layer in layers])
    figure.colorbar(image, ax=panels[-1], label="AUROC of lambda, mean over replicates")
    figure.suptitle(f"{_state(results)}{rows[0]['dataset']}", fontsize=9)
    return figure


def _state(results: dict[str, Any]) -> str:
    return "" if results["complete"] else "UNFINISHED. "


def _colour(row: dict[str, Any]) -> str:
    if row["attack"] is None:
        return _CLEAN
    return _ATTACKED if row["method"] == "lora" else _OTHERS


def _plain(panel: Any) -> None:
    panel.grid(linewidth=0.4, alpha=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
    panel.xaxis.set_major_locator(MaxNLocator(4))
