"""Plots and the README's table from results files. `python benchmarks/plot.py --help`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from lordfast.files import write_atomic
from lordfast.profiling.results import read_rows
from lordfast.profiling.session import script

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
Row = Mapping[str, str]

# Okabe and Ito's colours, told apart by the colour-blind, and a hatch each for print without colour.
STYLES: dict[str, tuple[str, str, str]] = {
    "eager": ("#E69F00", "", "eager formula"),
    "eager_compiled": ("#F0E442", "//", "eager formula, torch.compile"),
    "peft_lora_2r": ("#999999", "..", "PEFT LoRA, rank 2r"),
    "copy": ("#999999", "..", "copy"),
    "lordfast": ("#0072B2", "", "lordfast"),
    "lordfast+optimize": ("#004B77", "", "lordfast, optimised"),
    "lordfast+optimize, compiled": ("#004B77", "//", "lordfast, optimised, torch.compile"),
    "lordfast:reference": ("#56B4E9", "\\\\", "lordfast, reference"),
    "lordfast:native": ("#009E73", "xx", "lordfast, native"),
    "lordfast:triton": ("#CC79A7", "++", "lordfast, triton"),
}
BARE = {"lord_linear": "the bare frozen layer", "pgd_step": "an in-place add", "unet": "the plain UNet"}


@dataclass(kw_only=True)
class Config:
    """Ratios to the bare layer as PNG files beside the results, and as a table in a Markdown file."""

    results: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Results files; by default those of layers, PGD steps and UNets in benchmarks/results."""
    out: Path | None = None
    """Folder of the plots; by default that of the first results file."""
    readme: Path | None = None
    """Put the table into this file, between <!-- bench:begin --> and <!-- bench:end -->."""


def main(config: Config) -> int:
    """Read, plot, and write the table."""
    found = sorted((Path(__file__).parent / "results").glob("*/*.csv"))
    # Others have columns of their own.
    paths = config.results or tuple(path for path in found if path.stem.split("_")[0] in ("ops", "pgd", "unet"))
    if not paths:
        raise ValueError("results: there are none; run a benchmark first or name the files")
    rows = [row for path in paths for row in read_rows(path) if row["median_us"]]
    out = config.out or paths[0].parent
    for path in plot_all(rows, out):
        print(path)
    if config.readme is not None:
        insert(config.readme, markdown(rows))
        print(config.readme)
    return 0


def groups(rows: Iterable[Row], names: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    """The rows by the values of these columns, in the order of the file."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


def plot_all(rows: Sequence[Row], out: Path) -> list[Path]:
    """A PNG for each device, thread count, operation, direction and gate width: a panel a dtype."""
    made = []
    for key, some in groups(rows, ("device_key", "threads", "op", "direction", "H")).items():
        name = "-".join(part for part in (key[0], f"{key[1]}t", *key[2:4], f"h{key[4]}" if key[4] else "") if part)
        path = out / f"{name.replace('+', '-and-').replace(' ', '-').replace('/', '-')}.png"
        out.mkdir(parents=True, exist_ok=True)
        _figure(some, path)
        made.append(path)
    return made


def _figure(rows: Sequence[Row], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    panels = groups(rows, ("dtype",))
    present = {row["variant"] for row in rows}
    variants = [name for name in STYLES if name in present]
    cases = max(len(groups(some, ("case",))) for some in panels.values())
    width = max(6.5, 1.5 + 0.16 * cases * (len(variants) + 1.5))
    figure, axes = plt.subplots(
        len(panels), 1, figsize=(width, 1.9 + 2.9 * len(panels)), squeeze=False, layout="constrained"
    )
    for ax, ((dtype,), some) in zip(axes[:, 0], panels.items(), strict=True):
        _panel(ax, some, variants)
        ax.set_title(dtype, loc="left", fontsize=10)
    boxes = []
    for colour, hatch, label in (STYLES[name] for name in variants):
        boxes.append(Patch(facecolor=colour, hatch=hatch, edgecolor="#333333", label=label))
    figure.legend(handles=boxes, loc="outside lower center", ncols=min(3, len(boxes)), frameon=False, fontsize=9)
    figure.suptitle(_title(rows[0]), fontsize=10.5)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _title(row: Row) -> str:
    where = row["device"] + ("" if row["driver"] else f" ({row['cpu_isa']}), {row['threads']} thread(s)")
    gate = f", r = {row['r']}, H = {row['H']}" if row["r"] else ""
    what = {"lord_linear": "LoRD layer", "pgd_step": "PGD step", "unet": "UNet"}[row["op"]]
    direction = "" if row["op"] == "pgd_step" else f", {row['direction']}"
    how = f"{row['timing']}, torch {row['torch']}, lordfast {row['lordfast']} {row['commit']}".strip()
    return f"{what}{direction}{gate}: time over that of {BARE[row['op']]}\n{where}, {row['date'][:10]}\n{how}"


def _panel(ax: Any, rows: Sequence[Row], variants: Sequence[str]) -> None:
    """Bars of the medians' ratios with p20-p80 whiskers; a bar that would flatten the others is cut at the top."""
    by_case = groups(rows, ("case",))
    bar = 0.84 / max(len(variants), 1)
    shown = [row for row in rows if row["variant"] in variants]
    # Neither a whisker of a loaded machine nor the reference's l2 step, a hundred adds long, decides the scale.
    ordinary = [_ratios(row) for row in shown if row["variant"] != "lordfast:reference"] or [(1.0, 1.0, 1.0)]
    top = min(max(high for *_, high in map(_ratios, shown)), 2 * max(ratio for _, ratio, _ in ordinary)) * 1.2
    for place, name in enumerate(variants):
        colour, hatch, _ = STYLES[name]
        for at, some in enumerate(by_case.values()):
            row = next((row for row in some if row["variant"] == name), None)
            if row is None:
                continue
            x, (low, ratio, high) = at - 0.42 + bar * (place + 0.5), _ratios(row)
            ax.bar(x, ratio, bar * 0.92, color=colour, hatch=hatch, edgecolor="#333333", linewidth=0.5)
            ax.errorbar(x, ratio, [[ratio - low], [high - ratio]], color="#333333", linewidth=0.9, capsize=1.5)
            text = f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:.0f}"
            how: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 6.5, "rotation": 90}
            if high > top:
                how |= {"va": "top", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1}}
            above = (x, min(high, top)), (0, -3 if high > top else 2)
            ax.annotate(text, above[0], above[1], textcoords="offset points", **how)
    ax.axhline(1, color="#333333", linewidth=0.8, linestyle="--")
    ax.set_ylim(0, top)
    ax.set_xticks(range(len(by_case)), [case.replace(" ", "\n", 2) for (case,) in by_case], fontsize=8)
    ax.set_ylabel("x bare")
    ax.spines[["top", "right"]].set_visible(False)


def _ratios(row: Row) -> tuple[float, float, float]:
    """p20, median and p80 over the bare median."""
    ratio, median = float(row["ratio_bare"]), float(row["median_us"])
    low, high = (float(row[side]) * ratio / median for side in ("p20_us", "p80_us"))
    return low, ratio, high


def markdown(rows: Sequence[Row]) -> str:
    """Tables of `lord_linear` and of whole UNets: a row a case, multiples of the bare time."""
    blocks = []
    names = {"eager": "eager", "eager_compiled": "eager, compiled", "peft_lora_2r": "LoRA 2r", "lordfast": "lordfast"}
    names["lordfast+optimize"] = "optimised"
    shown = [row for row in rows if row["op"] in ("lord_linear", "unet")]
    for (op, key, threads, hidden, r), some in groups(shown, ("op", "device_key", "threads", "H", "r")).items():
        first = some[0]
        where = first["device"] if first["driver"] else f"{first['device']} ({key}), {threads} thread(s)"
        setting = f"{where}, torch {first['torch']}, {first['date'][:10]}, r = {r}, H = {hidden}"
        columns = {name: title for name, title in names.items() if any(row["variant"] == name for row in some)}
        bare = "plain UNet" if op == "unet" else "bare layer"
        head = ["", "dtype", "direction", f"{bare}, us", *columns.values(), "ran on"]
        lines = [
            f"{setting}; multiples of the {bare}'s time:",
            "",
            f"| {' | '.join(head)} |",
            f"|{'---|' * 3}{'---:|' * (len(head) - 4)}---|",
        ]
        for (case, dtype, direction), variants in groups(some, ("case", "dtype", "direction")).items():
            by_name = {row["variant"]: row for row in variants}
            base = by_name.get("plain" if op == "unet" else "bare_linear")
            cells = [f"{float(by_name[n]['ratio_bare']):.2f}" if n in by_name else "" for n in columns]
            ran = by_name["lordfast"]["backend"] if "lordfast" in by_name else ""
            us = f"{float(base['median_us']):.0f}" if base else ""
            lines.append(f"| {case} | {dtype} | {direction} | {us} | {' | '.join(cells)} | {ran} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def insert(path: Path, text: str) -> None:
    """Replace what stands between the markers of a Markdown file.

    Raises:
        ValueError: the file lacks a marker, or has it twice or in the wrong order.
    """
    before = path.read_text(encoding="utf-8")
    if before.count(BEGIN) != 1 or before.count(END) != 1 or before.index(BEGIN) > before.index(END):
        raise ValueError(f"readme: expected {path} to hold {BEGIN} and after it {END}, once each")
    head, tail = before.split(BEGIN)[0], before.split(END)[1]
    write_atomic(path, f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}".encode())


if __name__ == "__main__":
    script(main, Config)
