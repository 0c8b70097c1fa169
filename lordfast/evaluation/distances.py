"""Confidence intervals of the distances between two sets of features, over images.

Neither is an ordinary bootstrap of the distance. A sample drawn with replacement holds duplicates: it varies less than
the set it comes from, which shifts a Frechet distance up, and it has pairs of equal images, which the unbiased kernel
distance counts as close.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lordfast.evaluation.intervals import Interval, check_level, student_quantile
from lordfast.training.seeds import derive_seed

LARGEST = 512
"""Rank from which a Frechet distance takes so long that hundreds of them are out of the question."""
_ROWS = 1024


def kernel_interval(generated: Tensor, reference: Tensor, *, level: float = 0.95) -> Interval:
    """Interval of the unbiased kernel distance (KID) of features (N, F), (M, F): jackknife over images of both sets.

    estimate -+ t s, where s^2 = sum over both sets of (n - 1) / n sum_i (d_i - mean d)^2, d_i is the distance without
    image i, and t is Student's quantile with the smaller set's n - 1 degrees of freedom. The jackknife's variance errs
    upwards (Efron and Stein), also where the two sets are alike and the distance, a degenerate U-statistic then, is far
    from normal: the interval is rather too wide than too narrow for few images. The estimate is that of all images at
    once, which the mean over random subsets only approximates.

    Raises:
        ValueError: fewer than 3 images in a set, or a level out of range.
    """
    check_level(level)
    _check(generated, reference)
    x, y = generated.double(), reference.double()
    n, m = len(x), len(y)
    within_x, within_y = _row_sums(x, x) - _kernel_diagonal(x), _row_sums(y, y) - _kernel_diagonal(y)
    across_x, across_y = _row_sums(x, y), _row_sums(y, x)
    sum_x, sum_y, sum_xy = within_x.sum(), within_y.sum(), across_x.sum()
    estimate = sum_x / (n * (n - 1)) + sum_y / (m * (m - 1)) - 2 * sum_xy / (n * m)
    # Without image i, its row and its column go.
    without_x = (
        (sum_x - 2 * within_x) / ((n - 1) * (n - 2)) + sum_y / (m * (m - 1)) - 2 * (sum_xy - across_x) / ((n - 1) * m)
    )
    without_y = (
        sum_x / (n * (n - 1)) + (sum_y - 2 * within_y) / ((m - 1) * (m - 2)) - 2 * (sum_xy - across_y) / (n * (m - 1))
    )
    variance = sum((len(d) - 1) / len(d) * (d - d.mean()).square().sum() for d in (without_x, without_y))
    half = student_quantile(level, min(n, m) - 1) * math.sqrt(float(variance))
    return Interval(float(estimate) - half, float(estimate) + half)


def frechet_interval(
    generated: Tensor,
    reference: Tensor,
    *,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
    paired: bool = False,
) -> Interval:
    """Interval of the Frechet distance of features (N, F), (M, F): how far other sets of the same sizes would move it.

    estimate -+ t s with s the standard deviation over resamples of both sets and t Student's quantile with the smaller
    set's n - 1 degrees of freedom; cut at 0. The Frechet distance of few images is biased upwards, and resampling adds
    that bias once more: the interval takes only the spread from the resamples, so it lies around the (biased) estimate.
    It is one for the distance that sets of these sizes have on average, not for that of infinitely many images; compare
    it only with distances from sets of the same sizes.

    The trace of (C_g C_r)^(1/2) is the nuclear norm of A B^T, with A and B the centred features over sqrt(n - 1) or,
    where there are more images than features, the R of their QR decompositions.

    Args:
        paired: row i of both sets comes from the same image, and both are resampled alike: two versions of the same
            images differ far less than two sets of other images do.

    Returns:
        (None, None) where the smallest of N, M and F is above 512: that would take hours.

    Raises:
        ValueError: fewer than 3 images in a set, pairs of two counts, no resample, or a level out of range.
    """
    check_level(level)
    _check(generated, reference)
    if resamples < 2:
        raise ValueError(f"resamples: expected at least 2, got {resamples}")
    if paired and len(generated) != len(reference):
        raise ValueError(f"paired: expected as many reference as generated, got {len(reference)} and {len(generated)}")
    if min(*generated.shape, *reference.shape) > LARGEST:
        return Interval(None, None)
    x, y = generated.double().cpu(), reference.double().cpu()
    rng = np.random.default_rng(derive_seed(seed, "frechet"))
    drawn = _resampled(rng, len(x), len(y), resamples)
    values = [accurate_frechet(x[one], y[one if paired else other]) for one, other in drawn]
    estimate = accurate_frechet(x, y)
    half = student_quantile(level, min(len(x), len(y)) - 1) * float(np.std(values, ddof=1))
    return Interval(max(0.0, estimate - half), estimate + half)


def _resampled(
    rng: np.random.Generator, n: int, m: int, times: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    for _ in range(times):
        yield rng.integers(n, size=n), rng.integers(m, size=m)


def accurate_frechet(generated: Tensor, reference: Tensor) -> float:
    """The Frechet distance of features (N, F), (M, F), each of at least 2 images, without forming a covariance.

    Eigenvalues of the product of two covariances, as torchmetrics takes them, lose half of the digits, which hides the
    distance between two versions of the same images; these singular values don't.
    """
    x, y = generated.double().cpu(), reference.double().cpu()
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    a, b = _root(x - mean_x), _root(y - mean_y)
    shared = float(torch.linalg.svdvals(a @ b.T).sum())
    distance = (mean_x - mean_y).square().sum() + a.square().sum() + b.square().sum()
    # Of equal sets, rounding would leave a negative distance.
    return max(0.0, float(distance) - 2 * shared)


def _root(centred: Tensor) -> Tensor:
    """A with A^T A the covariance, of as few rows as can be."""
    rows = centred / math.sqrt(len(centred) - 1)
    return torch.linalg.qr(rows, mode="r").R if len(rows) > rows.shape[1] else rows


def _row_sums(x: Tensor, y: Tensor) -> Tensor:
    """sum_j k(x_i, y_j) for every i, in blocks."""
    return torch.cat([((x[i : i + _ROWS] @ y.T) / x.shape[1] + 1).pow(3).sum(dim=1) for i in range(0, len(x), _ROWS)])


def _kernel_diagonal(x: Tensor) -> Tensor:
    return (x.square().sum(dim=1) / x.shape[1] + 1).pow(3)


def _check(generated: Tensor, reference: Tensor) -> None:
    for argument, features in (("generated", generated), ("reference", reference)):
        if features.ndim != 2 or features.shape[0] < 3:
            raise ValueError(
                f"{argument}: an interval needs at least 3 images, as features (N, F), got {tuple(features.shape)}"
            )
    if generated.shape[1] != reference.shape[1]:
        raise ValueError(
            f"reference: expected {generated.shape[1]} features an image as generated has, got {reference.shape[1]}"
        )
