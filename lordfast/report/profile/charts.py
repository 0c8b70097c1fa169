"""The roofline, and bars of where the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from lordfast.report.numbers import decimals, written
from lordfast.report.svg import INK, MUTED, SERIES, draw

_MARKERS = {"forward": "o", "backward": "s", "recompute": "D"}


@dataclass(frozen=True)
class Point:
    """FLOPs per byte and GFLOP/s of layers of one kind in one pass, and the time they take."""

    kind: str
    direction: str
    intensity: float
    gflops: float
    ms: float


def roofline(points: Sequence[Point], *, gbps: float, gflops: float) -> str:
    """GFLOP/s over FLOPs per byte, both logarithmic, under what the machine can do at best, as an SVG.

    A colour for each kind, a shape for each pass; the larger, the more time. At most six kinds.

    Raises:
        ValueError: no points, or ceilings that are not positive.
    """
    if not points:
        raise ValueError("points: expected at least one, got none")
    if not (gbps > 0 and gflops > 0):
        raise ValueError(f"gbps, gflops: expected positive ceilings, got {gbps} and {gflops}")
    kinds = list(dict.fromkeys(point.kind for point in points))[: len(SERIES)]
    shown = [point for point in points if point.kind in kinds]
    ridge = gflops / gbps
    left = min([point.intensity for point in shown] + [ridge]) / 2
    right = max([point.intensity for point in shown] + [ridge]) * 2.5
    low = min([point.gflops for point in shown] + [left * gbps]) / 2
    longest = max(point.ms for point in shown)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.plot([left, ridge, right], [left * gbps, gflops, gflops], color=INK, linewidth=1.6)
        axes.annotate(
            f"{gflops:,.0f} GFLOP/s", (right, gflops), xytext=(0, 4), textcoords="offset points", ha="right",
            color=MUTED, fontsize=9,
        )  # fmt: skip
        axes.annotate(
            f"{gbps:,.0f} GB/s", (left, left * gbps), xytext=(12, 2), textcoords="offset points", ha="left",
            color=MUTED, fontsize=9,
        )  # fmt: skip
        for point in shown:
            axes.plot(
                point.intensity, point.gflops, linestyle="none", marker=_MARKERS[point.direction],
                markersize=4.5 + 8 * (point.ms / longest) ** 0.5, color=SERIES[kinds.index(point.kind)], alpha=0.8,
                markeredgecolor=INK, markeredgewidth=0.4,
            )  # fmt: skip
        axes.set_xlim(left, right)
        axes.set_ylim(low, gflops * 3)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=6))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
            axis.set_minor_locator(NullLocator())
            axis.set_minor_formatter(NullFormatter())
        axes.grid(linewidth=0.6)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        axes.set_xlabel("FLOPs per byte")
        axes.set_title("GFLOP/s", loc="left", fontsize=10.5, color=MUTED)
        directions = list(dict.fromkeys(point.direction for point in shown))
        handles = [
            *(
                Line2D([], [], linestyle="none", marker="o", color=SERIES[i], label=kind)
                for i, kind in enumerate(kinds)
            ),
            *(Line2D([], [], linestyle="none", marker=_MARKERS[name], color=MUTED, label=name) for name in directions),
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=2, fontsize=9.5, borderpad=0, columnspacing=1.2,
            handletextpad=0.3,
        )  # fmt: skip

    return draw(250 + 15 * -(-(len(kinds) + 3) // 2), paint)


@dataclass(frozen=True)
class Bar:
    """A name and its parts, as many as there are names of parts."""

    label: str
    parts: Sequence[float]


def bar_chart(bars: Sequence[Bar], names: Sequence[str], *, x_label: str) -> str:
    """Stacked horizontal bars, the label above each with its sum, as an SVG.

    Raises:
        ValueError: no bars, or one with another number of parts than there are names.
    """
    if not bars:
        raise ValueError("bars: expected at least one, got none")
    for bar in bars:
        if len(bar.parts) != len(names):
            raise ValueError(f"bars: expected {len(names)} parts in {bar.label!r}, got {len(bar.parts)}")

    digits = decimals([sum(bar.parts) for bar in bars])

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, bar in enumerate(bars):
            start = 0.0
            for part, colour in zip(bar.parts, SERIES, strict=False):
                axes.barh(row, part, left=start, height=0.42, color=colour, linewidth=0)
                start += part
            axes.annotate(
                bar.label, (0, row - 0.24), xytext=(0, 1.5), textcoords="offset points", ha="left", va="bottom",
                color=INK, fontsize=9.5,
            )  # fmt: skip
            axes.annotate(
                written(start, digits), (1, row - 0.24), xycoords=("axes fraction", "data"), xytext=(0, 1.5),
                textcoords="offset points", ha="right", va="bottom", color=INK, fontsize=9.5,
            )  # fmt: skip
        axes.set_ylim(len(bars) - 0.65, -0.95)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="x", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_xlabel(x_label)
        if len(names) > 1:
            handles = [
                Line2D([], [], linestyle="none", marker="s", color=colour, label=name)
                for name, colour in zip(names, SERIES, strict=False)
            ]
            figure.legend(
                handles=handles, loc="outside lower center", ncols=len(names), fontsize=9.5, borderpad=0,
                columnspacing=1.2, handletextpad=0.3,
            )  # fmt: skip

    return draw(60 + 34 * len(bars) + (18 if len(names) > 1 else 0), paint)
