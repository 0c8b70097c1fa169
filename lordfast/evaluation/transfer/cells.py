"""A cell of the matrix: what a target model makes of one attack's images, against what it makes of the originals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lordfast.data import load_image
from lordfast.data.images import Uint8Image, fit_image
from lordfast.evaluation.clip import ClipScore
from lordfast.evaluation.distances import LARGEST, accurate_frechet, frechet_interval
from lordfast.evaluation.distribution import FRECHET_RESAMPLES
from lordfast.evaluation.features import extract
from lordfast.evaluation.intervals import Interval, mean_interval
from lordfast.evaluation.pairs import compare_pair

Value = dict[str, Any]
"""``value``, ``low`` and ``high`` of a metric in a cell; where value is None, ``reason`` says why."""


@dataclass(frozen=True)
class Metric:
    """Attributes:
    title: with its unit.
    stronger: which way a stronger attack moves it.
    """

    title: str
    stronger: str


METRICS = {
    "psnr": Metric("PSNR (dB)", "lower"),
    "ssim": Metric("SSIM", "lower"),
    "ms_ssim": Metric("MS-SSIM", "lower"),
    "clip": Metric("CLIP score", "lower"),
    "fid": Metric("Frechet distance", "higher"),
}
"""Between output(original) and output(attacked); the CLIP score is that of output(attacked) and its prompt."""

PAIRED = ("psnr", "ssim", "ms_ssim", "clip")
"""Metrics that each image has for itself."""


@dataclass
class Measures:
    """What cells are measured with.

    Attributes:
        features: for the Frechet distance.
        side: to which pictures are brought for `features`; None leaves them as they are.
        clip: None where there is none.
    """

    features: nn.Module
    device: torch.device
    side: int | None
    clip: ClipScore | None
    batch_size: int
    resamples: int
    seed: int

    def extract(self, paths: Sequence[Path]) -> Tensor:
        """Features of the pictures at `paths`, float64 (N, F)."""
        images = (self._fit(load_image(path)) for path in paths)
        return extract(self.features, images, device=self.device, batch_size=self.batch_size)

    def check(self, side: int) -> None:
        """Raise a ValueError unless `features` takes pictures of `side` pixels."""
        extract(self.features, [self._fit(np.zeros((side, side, 3), np.uint8))], device=self.device)

    def _fit(self, image: Uint8Image) -> Uint8Image:
        return image if self.side is None else fit_image(image, self.side)


def measure_cell(
    measures: Measures,
    names: Sequence[str],
    originals: Sequence[Path],
    attacked: Sequence[Path],
    prompts: Sequence[str | None],
    reference: Tensor,
    clip_of_originals: Sequence[float | None],
) -> dict[str, Any]:
    """Measure the outputs at `attacked` against those at `originals`, both in the order of `names`.

    Args:
        reference: features of the originals' outputs.
        clip_of_originals: CLIP scores of the originals' outputs.

    Returns:
        ``rows``, what each image has for itself; ``fid``, a `Value` of the two sets.
    """
    rows = []
    for name, one, other, prompt, before in zip(names, originals, attacked, prompts, clip_of_originals, strict=True):
        image = load_image(other)
        row = {"image": name, **compare_pair(image, load_image(one))}
        rows.append({**row, "clip": clip_score(measures.clip, image, prompt), "clip_original": before})
    return {"rows": rows, "fid": _frechet(measures, measures.extract(attacked), reference)}


def clip_score(clip: ClipScore | None, image: Uint8Image, prompt: str | None) -> float | None:
    """The score, or None without a model or a prompt."""
    return None if clip is None or not prompt else clip(image, prompt)


def _frechet(measures: Measures, generated: Tensor, reference: Tensor) -> Value:
    if len(generated) < 2:
        return _missing("takes at least 2 images")
    interval = Interval(None, None)
    if measures.resamples and len(generated) >= 3 and min(generated.shape) <= LARGEST:
        resamples = min(measures.resamples, FRECHET_RESAMPLES)
        interval = frechet_interval(generated, reference, resamples=resamples, seed=measures.seed, paired=True)
    distance = accurate_frechet(generated, reference)
    return {"value": distance, "low": interval.low, "high": interval.high, "features": generated.shape[1]}


def _missing(reason: str) -> Value:
    return {"value": None, "low": None, "high": None, "reason": reason}


def mean_value(values: Sequence[float | None], reason: str, *, resamples: int, seed: int) -> Value:
    """Mean of the values that are there, with a 95 % bootstrap interval over images; `reason` where none is."""
    there = np.array([value for value in values if value is not None])
    if not len(there):
        return _missing(reason)
    low, high = mean_interval(there, resamples=resamples, seed=seed) if resamples else (None, None)
    return {"value": float(there.mean()), "low": low, "high": high}
