"""Image against image: which generated image belongs to which reference, and how much the two differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from lordfast.data import ImageRecord, output_names
from lordfast.data.images import Uint8Image, check_image
from lordfast.evaluation.measure import mean_entry

SSIM_WINDOW = 11
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales of MS-SSIM, finest first (Wang, Simoncelli and Bovik 2003)."""

_WITHOUT = {
    "psnr": "all pairs are identical: their PSNR is infinite",
    "ssim": f"all images are smaller than SSIM's window, {SSIM_WINDOW} pixels",
    "ms_ssim": f"all images are smaller than two of SSIM's windows, {2 * SSIM_WINDOW} pixels: no second scale fits",
    "mean_change": "",
}
"""Measure of a pair -> why no pair has it."""


@dataclass(frozen=True)
class Matches:
    """Records matched by name: the pairs (ours, theirs), and what is left over on either side."""

    pairs: list[tuple[ImageRecord, ImageRecord]]
    only_ours: list[ImageRecord]
    only_theirs: list[ImageRecord]


def match_keys(records: Sequence[ImageRecord]) -> list[str]:
    """The name under which each image is matched: sub-folder and stem of the PNG that it becomes in an attack's folder.

    "sub/a.jpg" and "sub/a.png" match; where one folder has both, "a.jpg.png" belongs to "a.jpg". All keys of a folder
    differ.
    """
    return [PurePosixPath(name).with_suffix("").as_posix() for name in output_names(records)]


def match_names(ours: Sequence[ImageRecord], theirs: Sequence[ImageRecord]) -> Matches:
    """Match two folders' records by `match_keys`, in the order of `ours`."""
    mine = dict(zip(match_keys(ours), ours, strict=True))
    others = dict(zip(match_keys(theirs), theirs, strict=True))
    return Matches(
        pairs=[(record, others[key]) for key, record in mine.items() if key in others],
        only_ours=[record for key, record in mine.items() if key not in others],
        only_theirs=[record for key, record in others.items() if key not in mine],
    )


def _unit(image: Uint8Image) -> Tensor:
    return torch.from_numpy(image.astype(np.float64) / 255).permute(2, 0, 1)[None]


def ms_ssim_scales(side: int) -> int:
    """On how many scales, 2 to 5, MS-SSIM compares images whose shorter side has `side` pixels; 0 for too small ones.

    As many as the window fits into: five take 176 pixels, four 99, three 44, two 22.
    """
    for scales in range(len(SCALE_WEIGHTS), 1, -1):
        # Each scale halves the side; torchmetrics asks for (scales - 1)^2 windows, which is more for four.
        if side // max(2 ** (scales - 1), (scales - 1) ** 2) >= SSIM_WINDOW:
            return scales
    return 0


def _ms_ssim(ours: Tensor, theirs: Tensor, scales: int) -> float:
    weights = SCALE_WEIGHTS[:scales]
    betas = tuple(weight / sum(weights) for weight in weights)
    # relu: a negative contrast, of images that are each other's negatives, has no fractional power.
    return float(
        multiscale_structural_similarity_index_measure(ours, theirs, data_range=1.0, betas=betas, normalize="relu")
    )


def check_pair(image: Uint8Image, reference: Uint8Image) -> None:
    """Raise a TypeError or ValueError unless both are uint8 images (H, W, 3) of one size."""
    check_image(image, "image")
    check_image(reference, "reference")
    if image.shape != reference.shape:
        raise ValueError(f"reference: expected shape {image.shape} as the image has, got {reference.shape}")


def compare_pair(image: Uint8Image, reference: Uint8Image) -> dict[str, Any]:
    """How far `image` is from `reference`, both uint8 (H, W, 3) of one size.

    Returns:
        ``psnr`` in dB (None for identical images, whose PSNR is infinite); ``ssim``, with an 11 x 11 Gaussian window
        of sigma 1.5 over the whole image, borders reflected (None for images smaller than the window); ``ms_ssim``,
        the same over several scales (None for images smaller than two windows), and how many, ``ms_ssim_scales``:
        smaller images have the finest of the five only, their weights brought to the sum 1, so values compare only
        where the scales are the same;
        ``largest_change`` and ``mean_change`` in grey levels.

    Raises:
        TypeError, ValueError: no uint8 images, or images of two sizes.
    """
    check_pair(image, reference)
    change = np.abs(image.astype(np.int16) - reference.astype(np.int16))
    ours, theirs = _unit(image), _unit(reference)
    psnr = float(peak_signal_noise_ratio(ours, theirs, data_range=1.0)) if change.any() else None
    ssim = None
    if min(image.shape[:2]) >= SSIM_WINDOW:
        ssim = float(structural_similarity_index_measure(ours, theirs, data_range=1.0))  # type: ignore[arg-type]
    scales = ms_ssim_scales(min(image.shape[:2]))
    return {
        "psnr": psnr,
        "ssim": ssim,
        "ms_ssim": _ms_ssim(ours, theirs, scales) if scales else None,
        "ms_ssim_scales": scales,
        "largest_change": int(change.max()),
        "mean_change": float(change.mean()),
    }


def summarise_pairs(
    rows: Sequence[dict[str, Any]], *, resamples: int = 1000, seed: int = 0
) -> tuple[dict[str, Any], list[str]]:
    """Means over the rows of `compare_pair`, the largest change of all, and warnings about what a mean leaves out.

    ``_low`` and ``_high`` of each mean are the ends of its bootstrap interval over pairs, None without `resamples`;
    ``unavailable`` says of each measure that no pair has why that is.
    """
    identical = sum(row["psnr"] is None for row in rows)
    small = sum(row["ssim"] is None for row in rows)
    caveats = []
    if identical:
        caveats.append(f"{identical} of {len(rows)} pairs are identical: their infinite PSNR is not in the mean")
    if small:
        caveats.append(
            f"{small} of {len(rows)} images are smaller than SSIM's window ({SSIM_WINDOW} pixels) and have none"
        )
    flat = sum(row["ms_ssim"] is None for row in rows) - small
    if flat:
        caveats.append(f"{flat} of {len(rows)} images are smaller than two of SSIM's windows and have no MS-SSIM")
    scales = sorted({row["ms_ssim_scales"] for row in rows if row["ms_ssim"] is not None})
    if len(scales) > 1:
        caveats.append(f"MS-SSIM is over {' or '.join(map(str, scales))} scales, as many as fit each image")
    summary: dict[str, Any] = {"pairs": len(rows)}
    missing: dict[str, str] = {}
    for name, reason in _WITHOUT.items():
        values = [row[name] for row in rows if row[name] is not None]
        if values:
            found = mean_entry(values, resamples=resamples, seed=seed)
            summary |= {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
        else:
            summary |= {name: None, f"{name}_low": None, f"{name}_high": None}
            missing[name] = reason
    summary |= {
        "ms_ssim_scales": scales,
        "largest_change": max(row["largest_change"] for row in rows),
        "identical": identical,
        "unavailable": missing,
    }
    return summary, caveats
