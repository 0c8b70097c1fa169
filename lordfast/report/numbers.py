"""Measured numbers with their intervals: read, written for people, and compared."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

Better = Literal["higher", "lower"]
Verdict = Literal["better", "worse", "no clear difference", "unknown"]


@dataclass(frozen=True)
class Measured:
    """A number, and the interval it lies in where one was measured."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def read(cls, found: Any) -> Measured | None:
        """From ``{"value", "low", "high"}`` or a plain number; None for anything else, and for NaN.

        An interval of which an end is missing or not finite is none.
        """
        if isinstance(found, dict):
            value, ends = found.get("value"), (found.get("low"), found.get("high"))
        else:
            value, ends = found, (None, None)
        if not _is_number(value):
            return None
        low, high = (float(end) if _is_number(end) else None for end in ends)
        return cls(float(value), *((low, high) if low is not None and high is not None else ()))

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def decimals(values: Iterable[float]) -> int:
    """How many decimals give the largest of `values` three significant digits; 0 to 6."""
    largest = max((abs(value) for value in values), default=0.0)
    return 2 if largest == 0 else min(6, max(0, 2 - math.floor(math.log10(largest))))


def written(value: float, digits: int) -> str:
    """`value` to `digits` decimals, with a real minus sign, and none before a zero."""
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", "\N{MINUS SIGN}")


def judge(one: Measured, other: Measured, better: Better) -> Verdict:
    """Is `one` better than `other`? Only intervals that don't overlap say so; without both, it is unknown."""
    ours, theirs = one.interval, other.interval
    if ours is None or theirs is None:
        return "unknown"
    if ours[0] <= theirs[1] and theirs[0] <= ours[1]:
        return "no clear difference"
    return "better" if (one.value > other.value) == (better == "higher") else "worse"
