"""Fair timing of several variants: round after round, each once, so that a slow minute is slow for all of them."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Effort:
    """How long to measure: `repeats` rounds, or as many as fit in `seconds`, at least `least`."""

    repeats: int = 30
    seconds: float = 12.0
    least: int = 5
    draws: int = 4
    """Input sets on which the numbers are checked before."""


@dataclass(frozen=True)
class Timing:
    """Seconds: the median, the 20th and the 80th percentile of `repeats` measurements."""

    median: float
    p20: float
    p80: float
    repeats: int


def time_in_turn(
    calls: Mapping[K, Callable[[], float]],
    effort: Effort,
    *,
    clock: Callable[[], float] = time.perf_counter,
    seed: int = 0,
) -> dict[K, Timing]:
    """Time `calls`, each of which returns seconds, in rounds of a shuffled order after one untimed round."""
    samples: dict[K, list[float]] = {key: [] for key in calls}
    # Shuffled: always behind the same neighbour, a call would always find that one's caches.
    order, shuffle = list(calls), random.Random(seed).shuffle
    collecting = gc.isenabled()
    gc.disable()
    try:
        for key in order:
            calls[key]()
        end = clock() + effort.seconds
        while order and (done := len(samples[order[0]])) < effort.repeats:
            if done >= effort.least and clock() >= end:
                break
            shuffle(order)
            for key in order:
                samples[key].append(calls[key]())
    finally:
        if collecting:
            gc.enable()
    return {key: summarize(values) for key, values in samples.items()}


def summarize(samples: list[float]) -> Timing:
    """Percentiles with linear interpolation between measurements."""
    ranked = sorted(samples)

    def percentile(share: float) -> float:
        at = share * (len(ranked) - 1)
        below = int(at)
        above = min(below + 1, len(ranked) - 1)
        return ranked[below] + (at - below) * (ranked[above] - ranked[below])

    return Timing(percentile(0.5), percentile(0.2), percentile(0.8), len(ranked))
