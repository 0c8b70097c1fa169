"""A metric's entry in a summary: its value with an interval, or why there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lordfast.evaluation.intervals import Interval, mean_interval

Measure = dict[str, Any]
"""``value``, ``low`` and ``high`` (95 % interval, None where there is none), ``images``; or ``unavailable``: why."""


class Unavailable(ValueError):
    """A metric that this machine can't measure, for want of weights or a package; the message says which."""


def unavailable(reason: object) -> Measure:
    """The entry of a metric that could not be measured."""
    return {"unavailable": str(reason)}


def entry(value: float, interval: Interval, images: int, **more: Any) -> Measure:
    """The entry of a metric that was."""
    return {"value": value, "low": interval.low, "high": interval.high, "images": images, **more}


def mean_entry(values: npt.ArrayLike, *, resamples: int, seed: int, **more: Any) -> Measure:
    """Mean of (N,) values, one an image, with its bootstrap interval over images; without `resamples` none.

    Raises:
        ValueError: no values, or some that are not finite.
    """
    found = np.asarray(values, dtype=np.float64)
    if not len(found) or not np.isfinite(found).all():
        raise ValueError(f"values: expected finite numbers, at least one, got {found}")
    interval = mean_interval(found, resamples=resamples, seed=seed) if resamples else Interval(None, None)
    return entry(float(found.mean()), interval, len(found), **more)
