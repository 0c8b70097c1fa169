"""Curves of what a training run logs step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lordfast.report.blocks import Chart
from lordfast.report.charts import Line, line_chart

POINTS = 800
"""Most points of a drawn curve; a longer one is averaged over neighbours."""


def loss_window(steps: int) -> int:
    """How many steps the bold curve averages over: about a tenth of all, an odd number."""
    return max(1, steps // 10) // 2 * 2 + 1


def curve(rows: Sequence[dict[str, Any]], key: str, label: str) -> Line:
    """The values of `key` over the steps that logged a finite one."""
    here = [row for row in rows if _is_number(row.get(key))]
    return Line(label, [row["step"] for row in here], [row[key] for row in here])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def thin(line: Line, most: int = POINTS) -> tuple[Line, int]:
    """`line` with at most `most` points, each the mean of as many neighbours, and how many."""
    each = -(-len(line.x) // most)
    if each <= 1:
        return line, 1

    def means(values: Sequence[float]) -> list[float]:
        groups = [values[i : i + each] for i in range(0, len(values), each)]
        return [sum(group) / len(group) for group in groups]

    return Line(line.label, means(line.x), means(line.y)), each


def loss_chart(
    title: str, lines: Sequence[Line], caption: str = "", *, y_label: str = "loss", smooth: bool = True, **options: Any
) -> Chart:
    """Losses over steps, faint, and their running means over about a tenth of all steps.

    Args:
        smooth: without it, only the values themselves, from where they begin.
        options: of `line_chart`.
    """
    lines = [line for line in lines if line.x]
    ends = ", ".join(f"{line.label} ends at {line.y[-1]:.3g}" for line in lines)
    thinned = [thin(line) for line in lines]
    points = max(len(line.x) for line, _ in thinned)
    window = loss_window(points) if smooth else 1
    if smooth:
        options = {"y_range": (0, None), **options}
    svg = line_chart([line for line, _ in thinned], x_label="step", y_label=y_label, window=window, **options)
    each = max(each for _, each in thinned)
    said = [caption]
    if smooth:
        said.append(f"Bold: mean over {window * each} steps.")
    if each > 1:
        said.append(f"{'Faint: means' if smooth else 'Means'} over {each}.")
    return Chart(title, svg, f"Curves, {title}: {ends}.", " ".join(filter(None, said)))


def stage1_charts(rows: Sequence[dict[str, Any]], prefix: str = "", caption: str = "") -> list[Chart]:
    """The losses of a Stage-1 run: denoising of clean and perturbed images, and detection where there is one."""
    denoising = [curve(rows, "ldm_perturbed", "perturbed images"), curve(rows, "ldm_clean", "clean images")]
    charts = []
    if any(line.x for line in denoising):
        charts.append(loss_chart(f"{prefix}denoising".capitalize(), denoising, caption))
    detection = curve(rows, "detection", "detection")
    if detection.x:
        # The sum of two cross entropies, each ln 2 for a gate at one half.
        chance = ("a gate that can't tell", 2 * math.log(2))
        charts.append(
            loss_chart(
                f"{prefix}detection".capitalize(),
                [detection],
                "Of the gates, lower is better.",
                reference=chance,
                y_range=(0, 1.15 * max(chance[1], *detection.y)),
            )
        )
    return charts
