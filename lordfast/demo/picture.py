"""The demo's result as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lordfast.data import image_grid, list_images, load_image, save_png
from lordfast.demo.methods import METHODS, method_title
from lordfast.report.difference import amplified

COLUMNS = 12
AMPLIFIED = 4
"""How much larger the picture shows what the attack changed."""


def draw_picture(stories: Sequence[Path], path: Path) -> None:
    """Write clean, attacked, difference, and what each method draws, a row each, to `path` (PNG).

    Args:
        stories: folder of each seed; the columns are shared among them.
    """
    each = max(1, COLUMNS // len(stories))

    def row(folder: str) -> list[np.ndarray]:
        found = []
        for story in stories:
            records = list_images(story / folder, captions="ignore")
            found += [load_image(record.path) for record in records[:each]]
        return found

    clean, attacked = row("data/clean"), row("attacked")
    rows = {
        "clean images": clean,
        "attacked images": attacked,
        f"difference x {AMPLIFIED}": [amplified(a, b, AMPLIFIED) for a, b in zip(clean, attacked, strict=True)],
    }
    rows |= {f"drawn by {method_title(name)}": row(f"generated/{name}") for name in METHODS}
    save_png(image_grid(list(rows.values()), labels=list(rows), scale=2), path)
