"""Intervals hold the true value as often as they say, and say nothing where there is nothing to say."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, norm, t

from lordfast.evaluation import (
    auroc,
    auroc_interval,
    bootstrap_interval,
    frechet_distance,
    frechet_interval,
    kernel_distance,
    kernel_interval,
    mean_interval,
    wilson_interval,
)
from lordfast.evaluation.intervals import student_quantile

TRIALS = 200
# Three standard deviations of a share among 200 around 95 % are 4.6 %.
SLACK = 0.046


@pytest.mark.parametrize("n", [6, 30])
def test_coverage_of_a_mean(n: int) -> None:
    hits = 0
    for trial in range(TRIALS):
        low, high = mean_interval(np.random.default_rng(trial).normal(3, 2, n), resamples=200, seed=trial)
        assert low is not None and high is not None
        hits += low <= 3 <= high
    # 200 resamples leave 1 % of noise in the quantiles.
    assert abs(hits / TRIALS - 0.95) < SLACK + 0.01


def test_two_samples_and_the_seed() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, 20), rng.normal(1, 1, 50)

    def difference(a: np.ndarray, b: np.ndarray) -> float:
        return float(b.mean() - a.mean())

    first = bootstrap_interval(difference, one, other, seed=1)
    assert first == bootstrap_interval(difference, one, other, seed=1)
    assert first != bootstrap_interval(difference, one, other, seed=2)
    low, high = first
    assert low is not None and high is not None
    expected = difference(one, other)
    error = t.ppf(0.975, 19) * math.sqrt(one.var(ddof=1) / 20 + other.var(ddof=1) / 50)
    np.testing.assert_allclose([low, high], [expected - error, expected + error], atol=0.15)
    wide = bootstrap_interval(difference, one, other, level=0.99, seed=1)
    assert wide.low is not None and wide.high is not None
    assert wide.low < low < high < wide.high


def test_equal_images_and_a_single_one() -> None:
    assert mean_interval(np.full(5, 2.5)) == (2.5, 2.5)
    assert mean_interval(np.array([2.5])) == (None, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval(np.array([])), r"samples: expected at least one image in each, got \[0\]"),
        (lambda: mean_interval(np.array([1.0, np.nan])), "samples: expected finite values"),
        (lambda: mean_interval(np.ones(3), level=1.0), "level: expected a number between 0 and 1, got 1.0"),
        (lambda: mean_interval(np.ones(3), resamples=0), "resamples: expected at least 1, got 0"),
        (lambda: wilson_interval(4, 3), "successes: expected a number from 0 to n > 0, got 4 of 3"),
        (lambda: wilson_interval(0, 0), "successes: .*got 0 of 0"),
        (lambda: auroc_interval(1.2, 3, 3), "area: expected a number from 0 to 1, got 1.2"),
        (lambda: auroc_interval(0.5, 0, 3), "clean, attacked: expected at least one image each, got 0 and 3"),
        (lambda: kernel_interval(torch.ones(2, 3), torch.ones(5, 3)), r"generated: .*at least 3 images.*\(2, 3\)"),
        (lambda: frechet_interval(torch.ones(4, 3), torch.ones(5, 2)), "reference: expected 3 features"),
        (lambda: frechet_interval(torch.ones(4, 3), torch.ones(5, 3), resamples=1), "resamples: expected at least 2"),
    ],
)
def test_what_has_no_interval(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_student_quantiles() -> None:
    for freedom in (1, 2, 3, 5, 20, 300):
        assert student_quantile(0.95, freedom) == pytest.approx(t.ppf(0.975, freedom), rel=3e-3)


@pytest.mark.parametrize(("share", "n"), [(0.5, 20), (0.9, 20), (0.97, 40)])
def test_coverage_of_a_share(share: float, n: int) -> None:
    # All outcomes with their probabilities: no sampling noise.
    probability = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]
    inside = [low <= share <= high for low, high in (wilson_interval(k, n) for k in range(n + 1))]
    assert 0.91 < np.dot(probability, inside) < 0.985


def test_a_share_of_all_has_a_width() -> None:
    low, high = wilson_interval(12, 12)
    assert high == 1.0
    # Clopper and Pearson's exact one, one-sided at the edge.
    assert low == pytest.approx(beta.ppf(0.025, 12, 1), abs=0.03)
    assert wilson_interval(0, 12) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("distance", [0.0, 1.0, 2.5])
def test_coverage_of_an_auroc(distance: float) -> None:
    area, hits = norm.cdf(distance / math.sqrt(2)), 0
    for trial in range(TRIALS):
        rng = np.random.default_rng(trial)
        found = auroc(torch.from_numpy(rng.normal(0, 1, 12)), torch.from_numpy(rng.normal(distance, 1, 16)))
        low, high = auroc_interval(found, 12, 16)
        assert low is not None and high is not None
        hits += low <= area <= high
    assert hits / TRIALS > 0.95 - SLACK


def test_a_perfect_detector_on_few_images_may_be_imperfect() -> None:
    few, many = auroc_interval(1.0, 6, 6), auroc_interval(1.0, 200, 200)
    assert few.high == many.high == pytest.approx(1.0)
    assert few.low is not None and many.low is not None
    assert few.low < 0.8 < 0.98 < many.low
    low, high = auroc_interval(0.0, 6, 6)
    assert (1 - high, 1 - low) == pytest.approx(few)  # type: ignore[operator]


def gaussian(seed: int, n: int, shift: float = 0.0, features: int = 6) -> torch.Tensor:
    return torch.randn(n, features, generator=torch.Generator().manual_seed(seed)).double() + shift


def test_the_kernel_interval_is_around_the_unbiased_estimate() -> None:
    one, other = gaussian(0, 15), gaussian(1, 15, 0.3)
    low, high = kernel_interval(one, other)
    assert low is not None and high is not None
    assert (low + high) / 2 == pytest.approx(kernel_distance(one, other)["kernel_distance"], rel=1e-6)
    # The jackknife, spelled out.
    without = [
        [kernel_of(np.delete(a, i, 0) if k == 0 else a, np.delete(b, i, 0) if k == 1 else b) for i in range(15)]
        for k, (a, b) in enumerate([(one.numpy(), other.numpy())] * 2)
    ]
    variance = sum(14 / 15 * ((np.array(d) - np.mean(d)) ** 2).sum() for d in without)
    assert (high - low) / 2 == pytest.approx(t.ppf(0.975, 14) * math.sqrt(variance), rel=1e-3)


def kernel_of(x: np.ndarray, y: np.ndarray) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / a.shape[1] + 1) ** 3

    n, m = len(x), len(y)
    within = (k(x, x).sum() - np.trace(k(x, x))) / (n * (n - 1)) + (k(y, y).sum() - np.trace(k(y, y))) / (m * (m - 1))
    return float(within - 2 * k(x, y).mean())


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_coverage_of_the_kernel_distance(shift: float) -> None:
    # Of equal sets it is 0; else that of sets so large that its error hardly matters.
    truth = 0.0 if shift == 0 else kernel_of(gaussian(1000, 1500).numpy(), gaussian(1001, 1500, shift).numpy())
    hits = 0
    for trial in range(TRIALS):
        low, high = kernel_interval(gaussian(2 * trial, 10), gaussian(2 * trial + 1, 25, shift))
        assert low is not None and high is not None
        hits += low <= truth <= high
    assert hits / TRIALS > 0.95 - SLACK


def test_the_frechet_interval_holds_what_sets_of_these_sizes_have_on_average() -> None:
    values, intervals = [], []
    for trial in range(80):
        one, other = gaussian(2 * trial, 12), gaussian(2 * trial + 1, 25, 0.4)
        values.append(frechet_distance(one, other))
        intervals.append(frechet_interval(one, other, resamples=40, seed=trial))
    hits = [low <= np.mean(values) <= high for low, high in intervals]  # type: ignore[operator]
    # Three standard deviations of a share among 80 are 7 %.
    assert np.mean(hits) > 0.95 - 0.07
    widths = [high - low for low, high in intervals]  # type: ignore[operator]
    # Neither of no use: four standard deviations are what an exact interval has.
    assert np.mean(widths) < 8 * np.std(values)


def test_the_frechet_interval_of_fewer_images_than_features_and_of_too_large_sets() -> None:
    one, other = gaussian(0, 5, features=40), gaussian(1, 9, 0.5, features=40)
    low, high = frechet_interval(one, other, resamples=50)
    assert low is not None and high is not None
    assert (low + high) / 2 == pytest.approx(frechet_distance(one, other), rel=1e-4)
    assert low == frechet_interval(one, other, resamples=50).low
    assert low != frechet_interval(one, other, resamples=50, seed=1).low
    large = torch.ones(513, 513)
    assert frechet_interval(large, large) == (None, None)
