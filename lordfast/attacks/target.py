"""The picture that targeted attacks push towards: a high-contrast pattern drawn here, or a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lordfast.data import fit_image, load_image


def target_pattern(resolution: int) -> np.ndarray:
    """Black and white rings broken by diagonal stripes: uint8 (resolution, resolution, 3), the same at every call."""
    axis = (np.arange(resolution) + 0.5) / resolution - 0.5
    y, x = np.meshgrid(axis, axis, indexing="ij")
    rings = np.sin(2 * np.pi * 8 * np.hypot(x, y))
    stripes = np.sin(2 * np.pi * 6 * (x + y))
    return np.repeat(np.where(rings * stripes > 0, 255, 0).astype(np.uint8)[..., None], 3, axis=2)


def target_image(path: Path | None, resolution: int) -> np.ndarray:
    """The target as uint8 (resolution, resolution, 3): the file at `path`, or the pattern for None."""
    return target_pattern(resolution) if path is None else fit_image(load_image(path), resolution)
