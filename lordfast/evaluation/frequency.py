"""High frequencies: attacked images have more of them, and so do the pictures of a model that learned the attack.

With luminance Y = 0.299 R + 0.587 G + 0.114 B in grey levels, Hann windows w (rows times columns), the window's mean
m = sum(w Y) / sum(w), and the discrete Fourier transform F over an H x W image:

    P(u, v) = |F[w (Y - m)]|^2 / (H W sum(w^2))
    high band: sqrt(u^2 + v^2) > 1/4 cycle per pixel, half of Nyquist's 1/2
    share = sum over the high band of P / sum of P
    amplitude = sqrt(sum over the high band of P), in grey levels

P sums to the variance of Y under the squared window, so that the amplitude is the standard deviation of what lies in
the band: white noise of n grey levels in Y has n sqrt(1 - pi / 16), as the disc below covers pi / 16 of the plane.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lordfast.evaluation.intervals import mean_interval
from lordfast.pixels import Uint8Image, check_image

Array = npt.NDArray[np.float64]

LUMINANCE = np.array((0.299, 0.587, 0.114))
BAND = 0.25
"""Cycles per pixel above which a frequency is high."""
SMALLEST = 8
"""Pixels a side below which the window leaves nothing to tell frequencies apart."""


def high_frequencies(image: Uint8Image) -> dict[str, float]:
    """``share`` and ``amplitude`` (grey levels) of the high frequencies of a uint8 image (H, W, 3); 0 where it is flat.

    Raises:
        TypeError, ValueError: no uint8 image, or a side of fewer than 8 pixels.
    """
    check_image(image)
    if min(image.shape[:2]) < SMALLEST:
        raise ValueError(f"image: expected at least {SMALLEST} pixels a side, got {image.shape[:2]}")
    window, high = _window_and_band(*image.shape[:2])
    luminance = image @ LUMINANCE
    centred = window * (luminance - (window * luminance).sum() / window.sum())
    power = np.abs(np.fft.fft2(centred)) ** 2 / (image.shape[0] * image.shape[1] * (window**2).sum())
    above, total = float(power[high].sum()), float(power.sum())
    # A flat image has rounding errors for a spectrum; one grey level in one pixel of a megapixel has 1e-6.
    return {"share": above / total if total > 1e-12 else 0.0, "amplitude": above**0.5 if total > 1e-12 else 0.0}


def summarise_frequencies(
    rows: Sequence[dict[str, Any]], *, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Means over the rows of `high_frequencies`, and ``_low`` and ``_high`` of each (bootstrap over images).

    Both ends are None for a single image, or without resamples.
    """
    found: dict[str, Any] = {"images": len(rows)}
    for name in ("share", "amplitude"):
        values = np.array([row[name] for row in rows])
        found[name] = float(values.mean())
        if resamples:
            low, high = mean_interval(values, resamples=resamples, level=level, seed=seed)
        else:
            low, high = None, None
        found |= {f"{name}_low": low, f"{name}_high": high}
    return found


@functools.lru_cache(maxsize=8)
def _window_and_band(height: int, width: int) -> tuple[Array, npt.NDArray[np.bool_]]:
    def hann(length: int) -> Array:
        # At the pixels' centres: no pixel weighs nothing.
        return np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2

    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    return np.outer(hann(height), hann(width)), radius > BAND
