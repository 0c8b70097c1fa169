"""The numbers of an evaluation as tables: Markdown for table.md, rich for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

SHOWN_LAYERS = 5
"""Layers that the terminal's table lists; table.md has all."""

INTERVAL = "95 % interval"


@dataclass(frozen=True)
class Section:
    """A table: its title, column heads, and rows of as many cells."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def sections(summary: dict[str, Any], layers: int | None = None) -> list[Section]:
    """The tables of a summary.json; of the LoRD layers only the `layers` best, or all."""
    found = []
    distribution = summary.get("distribution", {})
    # Summaries of older versions know one kind of features.
    found += [
        _distribution(part) for part in distribution.get("sets", {"": distribution} if distribution else {}).values()
    ]
    if "pairs" in summary:
        found.append(_pairs(summary["pairs"]))
    if any(part in summary for part, _ in SCORES):
        found.append(_scores(summary))
    if "frequency" in summary:
        found.append(_frequency(summary["frequency"]))
    if "detection" in summary:
        found.append(_detection(summary["detection"], layers))
    if "denoising" in summary:
        found.append(_denoising(summary["denoising"]))
    return found


def reasons(summary: dict[str, Any]) -> list[str]:
    """Why metrics are unavailable, a line for each reason."""
    found: dict[str, list[str]] = {}
    for metric, reason in summary["unavailable"].items():
        found.setdefault(reason, []).append(metric)
    return [f"{', '.join(metrics)}: {reason}" for reason, metrics in found.items()]


def number(value: float | None, digits: int = 4) -> str:
    """`value` to as many significant digits; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}g}"


def _interval_of(part: dict[str, Any], name: str) -> str:
    low, high = part[f"{name}_low"], part[f"{name}_high"]
    return "-" if low is None or high is None else f"{number(low, 3)} to {number(high, 3)}"


def _measured(measure: dict[str, Any]) -> list[str]:
    """Value and interval of a `Measure`, or that there are none; why, `reasons` has once for all that lack the same."""
    if "unavailable" in measure:
        return ["unavailable", "-"]
    return [number(measure["value"]), _interval_of({f"value_{end}": measure[end] for end in ("low", "high")}, "value")]


def _distribution(part: dict[str, Any]) -> Section:
    columns = ["measure", "value", INTERVAL]
    title = f"Distances on {part['features']} features (lower is closer)"
    if "unavailable" in part:
        return Section(title, columns, [["all", *_measured(part)]])
    names = ("FID", "KID") if "fid" in part else ("Frechet distance", "kernel distance (KID)")
    deviation = part["kernel_distance_std"]
    kernel = number(part["kernel_distance"])
    if deviation is not None:
        kernel += f" ± {number(deviation, 2)}"
    rows = [
        [names[0], number(part["frechet_distance"]), _interval_of(part, "frechet_distance")],
        [names[1], kernel, _interval_of(part, "kernel_distance")],
        ["KID subsets", f"{part['kid_subsets']} of {part['kid_subset_size']} images", ""],
        ["images", f"{part['generated']} generated, {part['reference']} reference", ""],
    ]
    return Section(title, columns, rows)


def _scales(part: dict[str, Any]) -> str:
    scales = part.get("ms_ssim_scales")
    return f" ({' or '.join(map(str, scales))} scales)" if scales else ""


def _pairs(part: dict[str, Any]) -> Section:
    missing = part.get("unavailable", {})

    def row(title: str, name: str) -> list[str]:
        if name in missing:
            return [title, f"unavailable: {missing[name]}", "-"]
        return [title, number(part.get(name)), _interval_of(part, name) if f"{name}_low" in part else "-"]

    rows = [
        row("PSNR, mean (dB)", "psnr"),
        row("SSIM, mean", "ssim"),
        row(f"MS-SSIM, mean{_scales(part)}", "ms_ssim"),
        row("mean change (grey levels)", "mean_change"),
        ["largest change (grey levels)", str(part["largest_change"]), "-"],
    ]
    for side in ("generated", "reference"):
        if part[f"unmatched_{side}"]:
            rows.append([f"{side} images without a partner", str(len(part[f"unmatched_{side}"])), "-"])
    return Section(f"{part['pairs']} pairs with the same name", ["measure", "value", INTERVAL], rows)


SCORES = {
    ("clip", "clip_iqa"): "CLIP-IQA, P(good) (higher is better)",
    ("clip", "clip_i"): "CLIP-I, cosine with the reference (higher is closer)",
    ("clip", "clip_t"): "CLIP-T, cosine with the prompt (higher is closer)",
    ("dino", "dino"): "DINO, cosine with the reference (higher is closer)",
    ("identity", "ism"): "ISM, cosine with the reference's face (higher is closer)",
    ("identity", "fdfr"): "FDFR, share without a face (lower is better)",
    ("lpips", "lpips"): "LPIPS of pairs (lower is closer)",
}
"""Part and metric -> what it is and which way is better."""


def _scores(summary: dict[str, Any]) -> Section:
    rows = [
        [title, *_measured(summary[part][metric])]
        for (part, metric), title in SCORES.items()
        if metric in summary.get(part, {})
    ]
    return Section("Scores of the generated images, mean over images", ["measure", "value", INTERVAL], rows)


def _denoising(part: dict[str, Any]) -> Section:
    rows = [["all timesteps", *_measured(part["loss"])]]
    rows += [[f"timestep {values['timestep']}", *_measured(values)] for values in part["timesteps"]]
    title = f"Denoising loss on {part['loss']['images']} reference images (lower is better)"
    return Section(title, ["timesteps", "loss", INTERVAL], rows)


def _frequency(part: dict[str, Any]) -> Section:
    rows = []
    for label, found in part.items():
        rows.append([f"{label}: share of the power", number(found["share"]), _interval_of(found, "share")])
        rows.append([f"{label}: grey levels", number(found["amplitude"]), _interval_of(found, "amplitude")])
    return Section("High frequencies (above half of Nyquist's), mean over images", ["images", "value", INTERVAL], rows)


def _detection(part: dict[str, Any], layers: int | None) -> Section:
    def row(name: str, values: dict[str, Any]) -> list[str]:
        means = (number(values[key]) for key in ("lambda_clean", "lambda_attacked"))
        return [name, number(values["auroc"]), _interval_of(values, "auroc"), *means]

    ranked = sorted(part["layers"], key=lambda values: -values["auroc"])
    rows = [row("all layers and timesteps", part)]
    rows += [row(f"timestep {values['timestep']}, all layers", values) for values in part["timesteps"]]
    rows += [row(values["layer"], values) for values in ranked[:layers]]
    if layers is not None and len(ranked) > layers:
        rows.append([f"... {len(ranked) - layers} more layers in table.md", "", "", "", ""])
    title = f"Lambda on {part['clean']} clean and {part['attacked']} attacked images"
    return Section(title, ["gates", "AUROC", INTERVAL, "lambda clean", "lambda attacked"], rows)


def section_to_markdown(section: Section) -> str:
    """A heading and its table."""
    lines = [section.columns, ["---"] * len(section.columns), *section.rows]
    # A bar would end the cell, a line end the row; feature modules and prompts are the user's.
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines]
    table = "\n".join(f"| {' | '.join(line)} |" for line in cells)
    return f"## {section.title}\n\n{table}\n"


def section_to_rich(section: Section) -> Table:
    """The same for a rich console."""
    # Names and prompts may hold brackets, which rich takes for markup.
    table = Table(title=Text(section.title), title_justify="left")
    for place, column in enumerate(section.columns):
        table.add_column(Text(column), justify="right" if place else "left", overflow="fold")
    for row in section.rows:
        table.add_row(*map(Text, row))
    return table


def to_markdown(summary: dict[str, Any]) -> str:
    """Every table, what is unavailable, and the warnings, as Markdown."""
    absent = [f"unavailable: {reason}" for reason in reasons(summary)]
    return markdown(sections(summary), [*absent, *summary["warnings"]])


def to_rich(summary: dict[str, Any]) -> Group:
    """Every table for a rich console."""
    return rich_tables(sections(summary, SHOWN_LAYERS))


def markdown(tables: Sequence[Section], warnings: Sequence[str]) -> str:
    """Tables under their titles, and then the warnings as a list."""
    blocks = [section_to_markdown(section) for section in tables]
    if warnings:
        blocks.append("## Warnings\n\n" + "".join(f"* {text}\n" for text in warnings))
    return "\n".join(blocks)


def rich_tables(tables: Sequence[Section]) -> Group:
    """Tables for a rich console."""
    return Group(*(section_to_rich(section) for section in tables))
