"""A few images as one picture: each version beside what every target model makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lordfast.data import fit_image, image_grid, load_image, save_png
from lordfast.evaluation.transfer.config import ORIGINAL, Column
from lordfast.evaluation.transfer.twins import Twins
from lordfast.evaluation.transfer.variation import outputs_folder

SIDE = 128
"""Pixels that a picture takes at least."""


def write_pictures(twins: Twins, columns: Sequence[Column], run: Path, count: int) -> None:
    """Write ``pictures.png`` into the run folder: for each of the first `count` images a row per version.

    The first column is the version itself, brought to the size of the outputs in the second; then the outputs.
    """
    rows, labels = [], []
    for i, name in enumerate(twins.names[:count]):
        for row in (None, *twins.rows):
            outputs = [load_image(outputs_folder(run, column, row) / name) for column in columns]
            version = twins.original(i) if row is None else twins.version(row, i)
            rows.append([fit_image(version, outputs[0].shape[:2]), *outputs])
            labels.append(f"{name}\n{ORIGINAL}" if row is None else row.name)
    scale = max(1, SIDE // rows[0][0].shape[0])
    heads = ["image", *(column.label for column in columns)]
    save_png(image_grid(rows, labels=labels, column_labels=heads, scale=scale), run / "pictures.png")
