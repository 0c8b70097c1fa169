"""The matrix that the measured cells make: means with intervals, each attack against random signs, and doubts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lordfast.evaluation.transfer.cells import METRICS, PAIRED, Value, mean_value
from lordfast.evaluation.transfer.config import Column

Cells = Mapping[tuple[str, str], dict[str, Any]]
"""What `measure_cell` gave, by the row's name and the column's key."""

_REASONS = {
    "psnr": "all outputs are identical to those of the originals",
    "ssim": "the pictures are smaller than SSIM's window",
    "ms_ssim": "the pictures are too small for two scales",
}


def assemble(
    rows: Sequence[dict[str, Any]],
    columns: Sequence[Column],
    cells: Cells,
    *,
    without_clip: str | None,
    features: str,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """What matrix.json holds.

    Args:
        rows: descriptions: ``name``, ``kind``, for random signs the attacks that they are ``like``.
        cells: of every row and column.
        without_clip: why there are no CLIP scores, or None where there is a CLIP model.

    Returns:
        ``metrics`` (title and the direction of a stronger attack), ``rows``, ``columns``, ``cells`` in the order of
        rows and then columns, ``warnings``. A cell has a `Value` per metric; an attack's cell with random signs beside
        it has ``minus_random``, the mean difference to them over the same images with its interval, per paired metric.
    """

    def value(found: Sequence[float | None], reason: str) -> Value:
        return mean_value(found, reason, resamples=resamples, seed=seed)

    reasons = {**_REASONS, "clip": without_clip or "the images have no captions"}
    signs_of = {name: row["name"] for row in rows for name in row.get("like", [])}
    made, warnings = [], []
    for row in rows:
        for column in columns:
            cell = cells[row["name"], column.key]
            images = cell["rows"]
            entry: dict[str, Any] = {"row": row["name"], "column": column.key, "images": len(images)}
            entry |= {name: value([image[name] for image in images], reasons[name]) for name in PAIRED}
            entry["fid"] = cell["fid"]
            if row["name"] in signs_of:
                others = cells[signs_of[row["name"]], column.key]["rows"]
                entry["minus_random"] = {
                    name: value(_differences(images, others, name), reasons[name]) for name in PAIRED
                }
            made.append(entry)
            identical = sum(image["psnr"] is None for image in images)
            if identical:
                warnings.append(
                    f"{row['name']}, {column.label}: {identical} of {len(images)} outputs are identical to those of "
                    "the originals; their infinite PSNR is not in the mean"
                )
    first = {column.key: cells[rows[0]["name"], column.key]["rows"] for column in columns}
    described = [
        {
            "name": column.key,
            "label": column.label,
            "model": column.model,
            "prompt": column.prompt,
            "clip_of_originals": value([image["clip_original"] for image in first[column.key]], reasons["clip"]),
        }
        for column in columns
    ]
    metrics = {name: {"title": metric.title, "stronger": metric.stronger} for name, metric in METRICS.items()}
    return {
        "metrics": metrics,
        "features": features,
        "rows": list(rows),
        "columns": described,
        "cells": made,
        "warnings": warnings + _doubts(cells, without_clip),
    }


def _differences(images: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], name: str) -> list[float | None]:
    by_name = {other["image"]: other[name] for other in others}
    pairs = [(image[name], by_name[image["image"]]) for image in images]
    return [None if one is None or other is None else one - other for one, other in pairs]


def _doubts(cells: Cells, without_clip: str | None) -> list[str]:
    found = []
    if without_clip is not None:
        found.append(f"no CLIP scores: {without_clip}")
    images = [image for cell in cells.values() for image in cell["rows"]]
    uncaptioned = {image["image"] for image in images if image["clip"] is None}
    if without_clip is None and uncaptioned:
        found.append(f"{len(uncaptioned)} images have no caption, and no CLIP score in the columns without a prompt")
    scales = sorted({image["ms_ssim_scales"] for image in images if image["ms_ssim"] is not None})
    if scales and scales != [5]:
        shown = " or ".join(map(str, scales))
        found.append(
            f"MS-SSIM is over {shown} scales: the pictures are too small for all five; compare it only with MS-SSIM "
            "of pictures of the same size"
        )
    small = [(len(cell["rows"]), cell["fid"]["features"]) for cell in cells.values() if "features" in cell["fid"]]
    if any(count <= features for count, features in small):
        count, features = small[0]
        found.append(
            f"the Frechet distance of {count} images in {features} features depends on how many images there are; "
            "compare it only within this matrix"
        )
    return found


def find(matrix: dict[str, Any], row: str, column: str) -> dict[str, Any]:
    """The cell of `row` and `column`, by their names."""
    return next(cell for cell in matrix["cells"] if (cell["row"], cell["column"]) == (row, column))
