"""Lambda in pictures: over layers and timesteps, for clean and attacked images, and how well it tells them apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lordfast.report.blocks import Block, Chart, Charts, Column, Details, Table
from lordfast.report.charts import Line, heat_map, line_chart
from lordfast.report.numbers import Measured

_LAYER = re.compile(
    r"(?:(down|up)_blocks\.(\d+)|(mid)_block)\.attentions\.(\d+)\.transformer_blocks\.(\d+)\.attn([12])\."
)


def attention_name(layer: str) -> str:
    """The attention that a layer belongs to, in few letters: ``down 1.0 self``; the parent's name for other layers."""
    match = _LAYER.match(layer)
    if match is None:
        return layer.rpartition(".")[0] or layer
    side, block, _, attention, inner, kind = match.groups()
    place = f"{side} {block}.{attention}" if side else f"mid {attention}"
    return f"{place}{'' if inner == '0' else '.' + inner} {'self' if kind == '1' else 'cross'}"


def _depth(name: str) -> int:
    """Where in the UNet, so that rows run from its input to its output."""
    return {"down": 0, "mid": 1, "up": 2}.get(name.partition(" ")[0], 3)


def lambda_blocks(detection: dict[str, Any]) -> list[Block]:
    """Heat maps, curves and the folded table of every layer, from the ``detection`` part of an evaluation."""
    return [lambda_maps(detection), lambda_curves(detection), _every_layer(detection)]


def lambda_maps(detection: dict[str, Any]) -> Charts:
    """Mean lambda of clean and of attacked images, and its AUROC, over attention layers and timesteps."""
    cells, timesteps = detection["cells"], [row["timestep"] for row in detection["timesteps"]]
    names = sorted(dict.fromkeys(attention_name(cell["layer"]) for cell in cells), key=_depth)

    def means(key: str) -> list[list[float | None]]:
        found: dict[tuple[str, int], list[float]] = {}
        for cell in cells:
            found.setdefault((attention_name(cell["layer"]), cell["timestep"]), []).append(cell[key])
        groups = [[found.get((name, timestep), []) for timestep in timesteps] for name in names]
        return [[sum(group) / len(group) if group else None for group in row] for row in groups]

    def map_of(title: str, key: str, caption: str, centre: float | None = None) -> Chart:
        svg = heat_map(
            means(key), names, [str(t) for t in timesteps], x_label="timestep (more noise to the right)",
            low=0, high=1, centre=centre,
        )  # fmt: skip
        return Chart(title, svg, f"Heat map: {title}, attention layers down, timesteps across.", caption)

    return Charts(
        [
            map_of("Mean λ, clean images", "lambda_clean", "A gate that does its work stays near 0 here."),
            map_of("Mean λ, attacked images", "lambda_attacked", "And opens, near 1, here."),
            map_of("AUROC of λ", "auroc", "1 tells every attacked image from every clean one, 0.5 is chance.", 0.5),
        ],
        cards=3,
    )


def lambda_curves(detection: dict[str, Any]) -> Charts:
    """AUROC and mean lambda over the timesteps."""
    timesteps = [row["timestep"] for row in detection["timesteps"]]

    def along(key: str) -> list[float]:
        return [row[key] for row in detection["timesteps"]]

    auroc = line_chart(
        [Line("AUROC", timesteps, along("auroc"))],
        x_label="timestep", y_label="AUROC", points=True, y_range=(0, 1.04), reference=("chance", 0.5),
    )  # fmt: skip
    means = line_chart(
        [
            Line("attacked images", timesteps, along("lambda_attacked")),
            Line("clean images", timesteps, along("lambda_clean")),
        ],
        x_label="timestep", y_label="mean λ", points=True, y_range=(0, 1.04),
    )  # fmt: skip
    says = ", ".join(f"{value:.2f} at timestep {t}" for t, value in zip(timesteps, along("auroc"), strict=True))
    return Charts(
        [
            Chart(
                "AUROC per timestep", auroc, f"Curve: AUROC of lambda, {says}.", "From the mean logit of all layers."
            ),
            Chart(
                "Mean λ per timestep",
                means,
                "Curves: mean lambda of clean and of attacked images per timestep.",
                "Over all layers.",
            ),
        ]
    )


def _every_layer(detection: dict[str, Any]) -> Details:
    number: Callable[[dict[str, Any], str], Measured | None] = lambda row, key: Measured.read(row[key])  # noqa: E731
    rows = [
        (row["layer"], [number(row, key) for key in ("auroc", "lambda_clean", "lambda_attacked")])
        for row in sorted(detection["layers"], key=lambda row: -row["auroc"])
    ]
    columns = [Column("AUROC", "higher"), Column("λ, clean"), Column("λ, attacked")]
    return Details(f"All {len(rows)} layers", [Table("layer", columns, rows, "Means over the timesteps.")])
