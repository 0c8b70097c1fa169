"""Plots of whole steps of Stage 1 and of attacks, from their results. `python benchmarks/plot_steps.py --help`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from plot import groups
from whole_steps import COLUMNS

from lordfast.profiling.session import script

Row = dict[str, str]
COLOURS = {"plain": "#999999", "LoRD": "#E69F00", "lordfast": "#0072B2", "pertur": "#CC79A7"}


@dataclass(kw_only=True)
class Config:
    """Bars of the time of a step, one picture a file, device and kind of step."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Results files; by default all stage1.csv and attack_steps.csv of benchmarks/results."""
    out: Path | None = None
    """Folder of the plots; by default that of each results file."""


def main(config: Config) -> int:
    """Read and plot."""
    folder = Path(__file__).parent / "results"
    paths = config.results or tuple(sorted([*folder.glob("*/stage1.csv"), *folder.glob("*/attack_steps.csv")]))
    if not paths:
        raise ValueError("results: there are none; run a benchmark first or name the files")
    for path in paths:
        target = (config.out or path.parent) / f"{path.stem}.png"
        draw(read(path), target)
        print(target)
    return 0


def read(path: Path) -> list[Row]:
    """The rows of a file that were timed.

    Raises:
        ValueError: another kind of file.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise ValueError(f"{path} holds no whole steps: its columns are not those of bench_stage1.py")
    return [row for row in rows if row["median_s"]]


def draw(rows: Sequence[Row], path: Path) -> None:
    """One panel a model: seconds a step with p20 to p80, and beside each bar the ratio and the MFU."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = list(groups(rows, ("model", "dtype", "batch")).items())
    heights = [len(some) for _, some in panels]
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(8, 0.9 + sum(0.34 * h + 0.75 for h in heights)), height_ratios=heights, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for ax, ((model, dtype, batch), some) in zip(axes[:, 0], panels, strict=True):
        _panel(ax, some)
        ax.set_title(f"{model}, {some[0]['resolution']} px, {dtype}, {batch} images", fontsize=9, loc="left")
    first = rows[0]
    where = first["device"] + ("" if first["driver"] else f" ({first['cpu_isa']}), {first['threads']} thread(s)")
    what = {"stage1": "A training step of Stage 1", "pgd": "A step of PGD"}[first["step"]]
    figure.suptitle(f"{what}\n{where}, torch {first['torch']}, {first['date'][:10]}, {first['commit']}", fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _panel(ax: Any, rows: Sequence[Row]) -> None:
    top = max(float(row["p80_s"]) for row in rows)
    for at, row in enumerate(rows):
        median, low, high = (float(row[name]) for name in ("median_s", "p20_s", "p80_s"))
        colour = next((c for start, c in COLOURS.items() if row["variant"].startswith(start)), "#56B4E9")
        ax.barh(at, median, color=colour, edgecolor="#333333", linewidth=0.5)
        ax.errorbar(median, at, xerr=[[median - low], [high - median]], color="#333333", linewidth=0.9, capsize=2)
        ratio = f"{float(row['ratio']):.2f}x, " if row["ratio"] else ""
        ax.text(high + 0.01 * top, at, f"{ratio}MFU {float(row['mfu']):.0%}", va="center", fontsize=8)
    ax.set_yticks(range(len(rows)), [row["variant"] for row in rows], fontsize=8)
    ax.invert_yaxis()
    ax.set_xlim(0, 1.25 * top)
    ax.set_xlabel("seconds a step", fontsize=8)
    ax.tick_params(axis="x", labelsize=8)
    ax.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    script(main, Config)
