"""Confidence intervals: how far a number would move with other images of the same kind.

All treat the images as independent draws. What they don't cover: another seed of the training, another identity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lordfast.training.seeds import derive_seed

Sample = npt.NDArray[np.floating[Any]]
RESAMPLES = 1000


class Interval(NamedTuple):
    """The two ends of a confidence interval; None where one image is all there is, which says nothing about others."""

    low: float | None
    high: float | None


def bootstrap_interval(
    statistic: Callable[..., float], *samples: Sample, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0
) -> Interval:
    """The percentile bootstrap: quantiles of `statistic` over samples of the same sizes, drawn with replacement.

    The quantiles are taken further out than (1 -+ level) / 2, where Student's distribution with n - 1 degrees of
    freedom has them and by the sqrt(n / (n - 1)) that resampling is too narrow (n: the smallest sample's size): without
    that, the interval of a mean of 10 images covers 90 % instead of 95 %. It remains too narrow where a statistic
    depends on a few extreme images, has no width where all images are equal, and is shifted for a statistic that
    duplicates bias: don't use it for Frechet or kernel distances, which have intervals of their own in `distances`.

    Args:
        statistic: called with as many arrays as there are `samples`.
        samples: arrays whose first axis runs over images; each is resampled by itself.
        resamples: how many times.
        level: the share of such intervals that is to hold the true value.
        seed: of the resampling.

    Raises:
        ValueError: no sample, an empty one, values that are not finite, or a level or number of resamples out of range.
    """
    check_level(level)
    if resamples < 1:
        raise ValueError(f"resamples: expected at least 1, got {resamples}")
    if not samples or not all(len(sample) for sample in samples):
        raise ValueError(f"samples: expected at least one image in each, got {[len(sample) for sample in samples]}")
    if not all(np.isfinite(sample).all() for sample in samples):
        raise ValueError("samples: expected finite values")
    smallest = min(len(sample) for sample in samples)
    if smallest == 1:
        return Interval(None, None)
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    values = [
        statistic(*(sample[rng.integers(len(sample), size=len(sample))] for sample in samples))
        for _ in range(resamples)
    ]
    outside = NormalDist().cdf(-math.sqrt(smallest / (smallest - 1)) * student_quantile(level, smallest - 1))
    low, high = np.quantile(values, [outside, 1 - outside])
    return Interval(float(low), float(high))


def mean_interval(values: Sample, *, resamples: int = RESAMPLES, level: float = 0.95, seed: int = 0) -> Interval:
    """`bootstrap_interval` of the mean of (N,) values."""
    return bootstrap_interval(lambda drawn: float(drawn.mean()), values, resamples=resamples, level=level, seed=seed)


def student_interval(values: Sample, level: float = 0.95) -> Interval:
    """Student's interval of the mean of (N,) values: mean -+ t s / sqrt(N), with N - 1 degrees of freedom.

    For few values that scatter normally, such as the results of a handful of repetitions. It is not clipped to what
    the values can be.

    Raises:
        ValueError: no values, values that are not finite, or a level out of range.
    """
    check_level(level)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values: expected finite numbers, at least one, got {values}")
    if len(values) == 1:
        return Interval(None, None)
    half = student_quantile(level, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = float(np.mean(values))
    return Interval(mean - half, mean + half)


def fieller_interval(numerators: Sample, denominators: Sample, level: float = 0.95) -> Interval:
    """Fieller's interval of mean(numerators) / mean(denominators), both (N,) and of the same N repetitions.

    All ratios r for which Student's interval of the mean of numerators - r denominators, with N - 1 degrees of freedom,
    holds 0: it covers exactly `level` for pairs that scatter normally, however few. It holds 0 where Student's interval
    of the numerators' mean does.

    Returns:
        No ends for a single pair, and where Student's interval of the denominators' mean holds 0: the ratios are not
        bounded then.

    Raises:
        ValueError: different numbers of values, none, values that are not finite, or a level out of range.
    """
    check_level(level)
    n = len(numerators)
    if not n or n != len(denominators) or not (np.isfinite(numerators).all() and np.isfinite(denominators).all()):
        raise ValueError(f"numerators, denominators: expected as many finite numbers, got {numerators}, {denominators}")
    if n == 1:
        return Interval(None, None)
    top, bottom = float(np.mean(numerators)), float(np.mean(denominators))
    (tt, tb), (_, bb) = np.cov(numerators, denominators, ddof=1) / n * student_quantile(level, n - 1) ** 2
    # (top - r bottom)^2 <= tt - 2 r tb + r^2 bb, between the two roots r of the quadratic.
    scale, middle = bottom**2 - float(bb), top * bottom - float(tb)
    if scale <= 0:
        return Interval(None, None)
    half = math.sqrt(max(0.0, middle**2 - scale * (top**2 - float(tt))))
    return Interval((middle - half) / scale, (middle + half) / scale)


def wilson_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson's interval of a share: sound for few images and for shares of 0 and 1, which have a width too.

    (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n) with p = successes / n.

    Raises:
        ValueError: not 0 <= successes <= n with n > 0, or a level out of range.
    """
    check_level(level)
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"successes: expected a number from 0 to n > 0, got {successes} of {n}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    middle = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return Interval(max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))


def auroc_interval(area: float, clean: int, attacked: int, level: float = 0.95) -> Interval:
    """Newcombe's score interval of an AUROC from as many clean and attacked images.

    All areas t with |area - t| <= z sqrt(V(t)), V(t) = t (1 - t) (1 + N (1 - t) / (2 - t) + N t / (1 + t)) / (m n) for
    m clean and n attacked images and N = (m + n) / 2 - 1: Hanley and McNeil's variance, at t and not at the estimate.
    A bootstrap, or DeLong's variance, has no width at an area of 1, however few the images are; a good detector's area
    is 1 as a rule.
    It takes the two sets for independent: with clean and attacked versions of the same images it is rather too wide.

    Raises:
        ValueError: an area outside [0, 1], an empty set, or a level out of range.
    """
    check_level(level)
    if not 0 <= area <= 1:
        raise ValueError(f"area: expected a number from 0 to 1, got {area}")
    if clean < 1 or attacked < 1:
        raise ValueError(f"clean, attacked: expected at least one image each, got {clean} and {attacked}")
    z = NormalDist().inv_cdf((1 + level) / 2)
    more = (clean + attacked) / 2 - 1

    def compatible(t: float) -> bool:
        variance = t * (1 - t) * (1 + more * (1 - t) / (2 - t) + more * t / (1 + t)) / (clean * attacked)
        return abs(area - t) <= z * math.sqrt(variance)

    return Interval(_edge(compatible, area, 0.0), _edge(compatible, area, 1.0))


def _edge(compatible: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where `compatible`, true at `inside`, stops towards `outside`; bisection down to float64's resolution."""
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if compatible(middle) else (inside, middle)
    return inside


def student_quantile(level: float, freedom: int) -> float:
    """t with P(|T| <= t) = `level` for Student's distribution: exact for 1 and 2 degrees of freedom.

    Beyond, Hill's expansion in 1 / freedom around the normal quantile: within 0.3 % at a level of 95 %.
    """
    if freedom == 1:
        return math.tan(math.pi * level / 2)
    if freedom == 2:
        return level * math.sqrt(2 / (1 - level**2))
    z = NormalDist().inv_cdf((1 + level) / 2)
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * freedom**4)
    )


def check_level(level: float) -> None:
    """Raise a ValueError unless `level` is one of a confidence interval."""
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, got {level}")
