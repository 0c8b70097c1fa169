"""``lordfast pairs super-resolution``: images and their low-resolution twins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lordfast.data.degrade import check_degradation, crop_to_multiple, degrade
from lordfast.pixels import Uint8Image
from lordfast.training.pairs import Kind, PairsConfig, run_pairs

COMMAND = "pairs super-resolution"


@dataclass(kw_only=True)
class SuperResolutionConfig(PairsConfig):
    """Make super-resolution pairs: high/NAME.png, cut to a multiple of --factor, and low/NAME.png.

    The low picture is the high one blurred, scaled down with antialiasing, noised and compressed, in this order; only
    the scaling is on unless asked for.
    """

    factor: int = 4
    """By which the sides shrink."""
    blur: float = 0.0
    """Standard deviation of a Gaussian blur, in pixels of the high picture."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise, in grey levels of the low picture."""
    jpeg: int | None = None
    """Quality, 1 to 95, of a JPEG that the low picture goes through."""


def run_super_resolution(config: SuperResolutionConfig) -> dict[str, Any]:
    """`run_pairs` with low-resolution twins.

    Raises:
        ValueError, OSError: numbers out of range, an image smaller than the factor, variants that nothing random tells
            apart; or as `run_pairs`.
    """
    check_degradation(config.factor, config.blur, config.noise, config.jpeg)
    if config.variants > 1 and not (config.noise or config.crop == "random"):
        raise ValueError(
            f"variants: {config.variants} pairs of an image differ only with crop random or noise, got neither"
        )
    numbers = {"factor": config.factor, "blur": config.blur, "noise": config.noise, "jpeg": config.jpeg}

    def make(image: Uint8Image, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
        high = crop_to_multiple(image, config.factor)
        return {"file_name": high, "low": degrade(high, **numbers, rng=rng)}, numbers  # type: ignore[arg-type]

    def check(image: Uint8Image, rng: np.random.Generator) -> None:
        crop_to_multiple(image, config.factor)

    return run_pairs(config, Kind(COMMAND, {"file_name": "high", "low": "low"}, make, check))
