"""Image against image: which generated image belongs to which reference, and how much the two differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from lordfast.data import ImageRecord, output_names
from lordfast.data.images import Uint8Image, check_image

SSIM_WINDOW = 11


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


def compare_pair(image: Uint8Image, reference: Uint8Image) -> dict[str, Any]:
    """How far `image` is from `reference`, both uint8 (H, W, 3) of one size.

    Returns:
        ``psnr`` in dB (None for identical images, whose PSNR is infinite); ``ssim``, with an 11 x 11 Gaussian window
        of sigma 1.5 over the whole image, borders reflected (None for images smaller than the window);
        ``largest_change`` and ``mean_change`` in grey levels.

    Raises:
        TypeError, ValueError: no uint8 images, or images of two sizes.
    """
    check_image(image, "image")
    check_image(reference, "reference")
    if image.shape != reference.shape:
        raise ValueError(f"reference: expected shape {image.shape} as the image has, got {reference.shape}")
    change = np.abs(image.astype(np.int16) - reference.astype(np.int16))
    ours, theirs = _unit(image), _unit(reference)
    psnr = float(peak_signal_noise_ratio(ours, theirs, data_range=1.0)) if change.any() else None
    ssim = None
    if min(image.shape[:2]) >= SSIM_WINDOW:
        ssim = float(structural_similarity_index_measure(ours, theirs, data_range=1.0))  # type: ignore[arg-type]
    return {
        "psnr": psnr,
        "ssim": ssim,
        "largest_change": int(change.max()),
        "mean_change": float(change.mean()),
    }


def summarise_pairs(rows: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Means over the rows of `compare_pair`, the largest change of all, and warnings about what a mean leaves out."""

    def mean(name: str) -> float | None:
        values = [row[name] for row in rows if row[name] is not None]
        return fmean(values) if values else None

    identical = sum(row["psnr"] is None for row in rows)
    small = sum(row["ssim"] is None for row in rows)
    caveats = []
    if identical:
        caveats.append(f"{identical} of {len(rows)} pairs are identical: their infinite PSNR is not in the mean")
    if small:
        caveats.append(
            f"{small} of {len(rows)} images are smaller than SSIM's window ({SSIM_WINDOW} pixels) and have none"
        )
    summary = {
        "pairs": len(rows),
        "psnr": mean("psnr"),
        "ssim": mean("ssim"),
        "largest_change": max(row["largest_change"] for row in rows),
        "mean_change": mean("mean_change"),
        "identical": identical,
    }
    return summary, caveats
