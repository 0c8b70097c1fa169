"""What changed between two pictures, strong enough to be seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lordfast.data.images import Uint8Image

LARGEST = 64
"""The largest factor: beyond it, a change of one grey level is all there is to see."""


def amplified(before: Uint8Image, after: Uint8Image, factor: int) -> Uint8Image:
    """The change between two uint8 images (H, W, 3), `factor` times as strong; grey is no change."""
    return (128 + factor * (after.astype(int) - before.astype(int))).clip(0, 255).astype(np.uint8)


def factor_for(pairs: Sequence[tuple[Uint8Image, Uint8Image]]) -> int:
    """A factor for all of `pairs`, so that they compare: a power of two up to 64.

    Of the median pair, 99 % of all pixels are shown as they are, and not cut off.
    """
    changes = [np.percentile(np.abs(after.astype(int) - before.astype(int)), 99) for before, after in pairs]
    most = float(np.median(changes)) if changes else 0.0
    factor = LARGEST
    while factor > 1 and factor * most > 100:
        factor //= 2
    return factor
