"""Charts as inline SVG: lines over steps, heat maps, histograms, and values with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from lordfast.report.numbers import Measured, decimals, written
from lordfast.report.svg import COLD, HOT, INK, MUTED, ON_HEAT, RULE, SERIES, draw

_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))


@dataclass(frozen=True)
class Line:
    """A curve: as many x as y, and, where given, an interval (low, high) or None for each."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    intervals: Sequence[tuple[float, float] | None] = ()


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value with its neighbours: ``window`` in all, an odd number, cut off evenly at both ends.

    Element i is the mean of ``values[i - h : i + h + 1]`` with h = min(window // 2, i, n - 1 - i), so that an end does
    not lean towards the middle.

    Raises:
        ValueError: a window that is even or less than 1.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window: expected an odd number of at least 1, got {window}")
    last = len(values) - 1
    smooth = []
    for i in range(len(values)):
        half = min(window // 2, i, last - i)
        around = values[i - half : i + half + 1]
        smooth.append(sum(around) / len(around))
    return smooth


def _series(index: int) -> str:
    return SERIES[index % len(SERIES)]


def _short(text: str, room: int) -> str:
    return text if len(text) <= room else text[: room - 1].rstrip() + "…"


def _apart(lines: Sequence[Line]) -> float:
    """How far to move curves with intervals apart, so that these don't hide each other."""
    places = [place for line in lines if line.intervals for place in line.x]
    return 0.012 * (max(places) - min(places)) if len(lines) > 1 and places else 0.0


def _legend(figure: Figure, handles: Sequence[Artist], names: Sequence[str]) -> None:
    """Below the drawing: in one row where that is wide enough."""
    labels = [_short(name, 50) for name in names]
    columns = len(labels) if sum(map(len, labels)) + 6 * len(labels) < 60 else 1
    figure.legend(
        handles, labels, loc="outside lower center", ncols=columns, fontsize=10.5, borderpad=0, columnspacing=1.4
    )


def line_chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    window: int = 1,
    points: bool = False,
    y_range: tuple[float | None, float | None] = (None, None),
    reference: tuple[str, float] | None = None,
) -> str:
    """Curves over a common axis, as an SVG. Of long names and labels, here and in the other charts, the end is cut off.

    Args:
        window: above 1, the curve is drawn faintly, and its `running_mean` over it.
        points: mark every point.
        y_range: ends of the vertical axis; an end that is None follows the data.
        reference: name and height of a horizontal line to compare with.

    Raises:
        ValueError: no lines, or one with more x than y or the other way round, or with a part of its intervals.
    """
    if not lines:
        raise ValueError("lines: expected at least one, got none")
    for line in lines:
        if len(line.x) != len(line.y) or not line.x:
            raise ValueError(f"lines: expected as many x as y in {line.label!r}, got {len(line.x)} and {len(line.y)}")
        if line.intervals and len(line.intervals) != len(line.x):
            raise ValueError(
                f"lines: expected no intervals or one per x in {line.label!r}, got {len(line.intervals)} for "
                f"{len(line.x)}"
            )

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        handles = []
        apart = _apart(lines)
        for i, (line, dash) in enumerate(zip(lines, cycle(_DASHES), strict=False)):
            x = [place + apart * (i - (len(lines) - 1) / 2) for place in line.x]
            style: dict[str, Any] = {
                "color": _series(i),
                "linewidth": 1.8,
                "linestyle": dash,
                "solid_capstyle": "round",
            }
            if window > 1:
                axes.plot(x, line.y, color=_series(i), linewidth=0.7, alpha=0.35)
            for place, interval in zip(x, line.intervals, strict=False):
                if interval is not None:
                    axes.plot((place, place), interval, color=_series(i), linewidth=2, alpha=0.5)
            handles += axes.plot(
                x, running_mean(line.y, window), marker="o" if points else None, markersize=4.5, **style
            )
        if reference is not None:
            name, height = reference
            axes.axhline(height, color=MUTED, linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate(
                _short(name, 50), (1, height), xycoords=("axes fraction", "data"), xytext=(0, 3),
                textcoords="offset points", ha="right", va="bottom", color=MUTED, fontsize=9,
            )  # fmt: skip
        axes.set_ylim(*y_range)
        axes.grid(axis="y", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel(_short(x_label, 50))
        axes.set_title(_short(y_label, 50), loc="left", fontsize=10.5, color=MUTED)
        if len(lines) > 1:
            _legend(figure, handles, [line.label for line in lines])

    return draw(215 + (18 if len(lines) > 1 else 0), paint)


def heat_map(
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    x_label: str,
    low: float,
    high: float,
    centre: float | None = None,
    digits: int = 2,
) -> str:
    """A table of numbers as coloured cells, as an SVG.

    Args:
        values: a list per row; None stays empty.
        low, high: the values without colour and in full colour; with `centre`, those in full colour of either kind.
        centre: the value without colour, where there are two kinds of colour.
        digits: decimals in the cells.

    Raises:
        ValueError: values that don't fit rows and columns, or ends that are not in order.
    """
    if not rows or not columns or len(values) != len(rows) or any(len(row) != len(columns) for row in values):
        shape = f"{len(values)} rows of {sorted({len(row) for row in values})}"
        raise ValueError(f"values: expected {len(rows)} rows of {len(columns)}, got {shape}")
    if not (low < high if centre is None else low < centre < high):
        raise ValueError(f"expected low < centre < high, got low={low}, centre={centre}, high={high}")

    def colour(value: float) -> tuple[str, float]:
        if centre is None:
            share = (value - low) / (high - low)
        elif value >= centre:
            share = (value - centre) / (high - centre)
        else:
            return COLD, min(1.0, (centre - value) / (centre - low))
        return HOT, min(1.0, max(0.0, share))

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for r, row in enumerate(values):
            for c, value in enumerate(row):
                if value is None:
                    continue
                face, share = colour(value)
                axes.add_patch(Rectangle((c - 0.47, r - 0.46), 0.94, 0.92, facecolor=RULE, alpha=0.35, linewidth=0))
                axes.add_patch(Rectangle((c - 0.47, r - 0.46), 0.94, 0.92, facecolor=face, alpha=share, linewidth=0))
                text = ON_HEAT if share > 0.62 else INK
                axes.text(c, r, written(value, digits), ha="center", va="center_baseline", color=text, fontsize=10.5)
        axes.set_xlim(-0.5, len(columns) - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xticks(range(len(columns)), [_short(name, 12) for name in columns])
        axes.set_yticks(range(len(rows)), [_short(name, 24) for name in rows])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(_short(x_label, 50))

    return draw(45 + 20 * len(rows), paint)


def histogram(groups: Sequence[tuple[str, Sequence[float]]], *, x_label: str, bins: int | None = None) -> str:
    """How the values of each group are distributed, as shares of the group, as an SVG.

    Args:
        groups: name and finite values of each.
        bins: of equal width, from the smallest to the largest value of all groups; left out, about twice the square
            root of the largest group's size, from 5 to 24.

    Raises:
        ValueError: no groups, or one without values.
    """
    if not groups or not all(len(values) for _, values in groups):
        counts = ", ".join(f"{name!r}: {len(values)}" for name, values in groups) or "none"
        raise ValueError(f"groups: expected at least one, each with values, got {counts}")
    everything = [value for _, values in groups for value in values]
    low, high = min(everything), max(everything)
    if bins is None:
        bins = min(24, max(5, round(2 * math.sqrt(max(len(values) for _, values in groups)))))
    if high == low:
        # A width of its own for the one bar that there is.
        half = max(abs(low), 1e-6) * 0.05
        low, high = low - half, high + half

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        handles: list[Artist] = []
        for i, (_, values) in enumerate(groups):
            counts, edges = np.histogram(values, bins, (low, high))
            axes.stairs(counts / len(values), edges, fill=True, color=_series(i), alpha=0.35)
            handles.append(axes.stairs(counts / len(values), edges, color=_series(i), linewidth=1.4))
        axes.set_ylim(0, None)
        axes.grid(axis="y", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        # Close values have long labels, which matplotlib would shorten to an offset that nobody reads.
        axes.xaxis.set_major_locator(MaxNLocator(5 if high - low > 0.01 * max(abs(low), abs(high)) else 3))
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.set_xlabel(_short(x_label, 50))
        axes.set_title("share", loc="left", fontsize=10.5, color=MUTED)
        if len(groups) > 1:
            _legend(figure, handles, [f"{name} ({len(values)})" for name, values in groups])

    return draw(215 + (18 if len(groups) > 1 else 0), paint)


def interval_chart(
    rows: Sequence[tuple[str, Measured]], *, x_label: str, references: Sequence[tuple[str, float]] = ()
) -> str:
    """A point per row, with its interval where it has one, as an SVG.

    Args:
        references: names and places of vertical lines to compare with.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("rows: expected at least one, got none")
    ends = [end for _, found in rows for end in (found.value, *(found.interval or ()))]
    digits = decimals(ends)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for i, (name, found) in enumerate(rows):
            if found.interval is not None:
                axes.plot(found.interval, (i, i), color=_series(i), linewidth=2.4, solid_capstyle="round", alpha=0.6)
            axes.plot(found.value, i, marker="o", markersize=7.5, color=_series(i), linestyle="none")
            # Above the points, not beside the axis, where long names would leave no room.
            above: dict[str, Any] = {
                "xycoords": ("axes fraction", "data"),
                "xytext": (0, 9),
                "textcoords": "offset points",
            }
            axes.annotate(_short(name, 42), (0, i), ha="left", color=MUTED, **above)
            axes.annotate(written(found.value, digits), (1, i), ha="right", color=INK, **above)
        for place, (name, value) in enumerate(references):
            axes.axvline(value, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
            # Away from each other: the first to the left, where there are several.
            side = -1 if place == 0 and len(references) > 1 else 1
            axes.annotate(
                _short(name, 24), (value, 0), xycoords=("data", "axes fraction"), xytext=(3 * side, 3),
                textcoords="offset points", ha="right" if side < 0 else "left", va="bottom", color=MUTED, fontsize=9,
            )  # fmt: skip
        axes.set_yticks([])
        axes.set_ylim(len(rows) - (0.35 if references else 0.6), -0.75)
        axes.margins(x=0.12)
        axes.tick_params(length=0)
        axes.grid(axis="x", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel(_short(x_label, 50))

    return draw(45 + 40 * len(rows) + (12 if references else 0), paint)
