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
        top, _, bottom = str(text).partition("/")
        value = float(top) / float(bottom) if bottom else float(top)
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
            if not value >= 0:
                raise ValueError(f"{name}: expected 0 or more, in [0, 1] pixels, got {value}")
            if self.norm == "linf" and value > 1:
                raise ValueError(
                    f"{name}: {value:g} is above 1, the whole range of a pixel; {value:g} grey levels are {value:g}/255"
                )

    @property
    def grey_levels(self) -> int:
        """The largest whole number of grey levels within an linf eps; 1e-6 forgives the division in ``8/255``."""
        return math.floor(self.eps * 255 + 1e-6)

    def quantise(self, perturbed: np.ndarray, original: np.ndarray) -> np.ndarray:
        """The 8-bit image nearest to `perturbed` (float, grey levels in [0, 255]) that obeys the budget exactly.

        Args:
            perturbed: float array, any shape (H, W, 3).
            original: the uint8 image, same shape.
        """
        base = original.astype(np.int16)
        delta = np.rint(perturbed).clip(0, 255).astype(np.int16) - base
        if self.norm == "linf":
            delta = delta.clip(-self.grey_levels, self.grey_levels)
        elif np.linalg.norm(delta.astype(np.float64)) > self.eps * 255:
            # Towards zero, no entry grows, so the norm can't exceed that of the unrounded perturbation.
            exact = perturbed.astype(np.float64) - base
            norm = np.linalg.norm(exact)
            delta = np.trunc(exact * min(1.0, self.eps * 255 / norm) if norm else exact).astype(np.int16)
        return (base + delta).clip(0, 255).astype(np.uint8)
