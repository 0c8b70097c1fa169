"""How much an attack may change an image, in units of [0, 1] pixels, and how the saved 8-bit file keeps to it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Norm = Literal["linf", "l2"]


def parse_budget(text: str | float, name: str = "eps") -> float:
    """A number in [0, 1] pixels from ``"8/255"``, ``"0.03"`` or a float.

    Raises:
        ValueError: it is no number, is negative or not finite; the message names the argument `name`.
    """
    try:
        top, slash, bottom = str(text).partition("/")
        value = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(f"{name}: expected pixels in [0, 1], such as 8/255 or 0.03, got {text!r}") from error
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: expected pixels in [0, 1], such as 8/255 or 0.03, got {text!r}")
    return value


@dataclass(frozen=True)
class Budget:
    """eps and step size in [0, 1] pixels: per pixel for linf, of the whole image's L2 norm for l2."""

    eps: float
    step_size: float
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"norm: expected linf or l2, got {self.norm!r}")
        for name in ("eps", "step_size"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a number of 0 or more, in [0, 1] pixels, got {value}")
            if self.norm == "linf" and value > 1:
                raise ValueError(
                    f"{name}: {value:g} is above 1, the whole range of a pixel; {value:g} grey levels are {value:g}/255"
                )

    @property
    def grey_levels(self) -> int:
        """The largest whole number of grey levels within an linf eps; 1e-6 forgives the division in ``8/255``."""
        return math.floor(self.eps * 255 + 1e-6)

    def quantise(self, perturbed: np.ndarray, original: np.ndarray) -> np.ndarray:
        """The 8-bit image next to `perturbed` (float, grey levels in [0, 255]) that obeys the budget exactly.

        For linf it is the nearest one. For l2, where rounding alone can leave the ball, the perturbation is scaled down
        before it is rounded, by as little as it takes.

        Args:
            perturbed: float array, any shape (H, W, 3).
            original: the uint8 image, same shape.
        """
        base = original.astype(np.int16)
        exact = perturbed.astype(np.float64).clip(0, 255) - base
        delta = np.rint(exact)
        if self.norm == "linf":
            delta = delta.clip(-self.grey_levels, self.grey_levels)
        elif not self._within(delta):
            # No entry of rint(scale * exact) shrinks as the scale grows, nor does the norm: bisect.
            fits, exceeds = 0.0, 1.0
            for _ in range(24):
                middle = (fits + exceeds) / 2
                fits, exceeds = (middle, exceeds) if self._within(np.rint(exact * middle)) else (fits, middle)
            delta = np.rint(exact * fits)
        return (base + delta.astype(np.int16)).astype(np.uint8)

    def _within(self, delta: np.ndarray) -> bool:
        """Whether whole grey levels obey the l2 budget; 1e-9 forgives the division in ``8/255``."""
        return float(np.square(delta).sum()) <= (self.eps * 255) ** 2 * (1 + 1e-9)
