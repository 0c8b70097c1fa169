"""Frechet and kernel distance against the textbook formulas, and what is said of small sets."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torchmetrics.image.fid import FrechetInceptionDistance

from lordfast.evaluation.distances import accurate_frechet, frechet_interval
from lordfast.evaluation.distribution import compare, covariance_rank, frechet_distance, kernel_distance

RNG = np.random.default_rng(11)


class Given(torch.nn.Identity):
    """Features that torchmetrics takes as they are."""

    num_features = 6


def features(n: int, f: int, shift: float = 0.0, spread: float = 1.0) -> np.ndarray:
    mixed = RNG.normal(size=(n, f)) @ RNG.normal(size=(f, f)) / f**0.5
    return spread * mixed + shift


def textbook_frechet(x: np.ndarray, y: np.ndarray) -> float:
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(cx @ cy).real
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(cx + cy - 2 * root))


def textbook_kernel(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD: means over pairs of two different images within a set, and over all pairs across."""

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    within_x = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    within_y = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
    return float(within_x + within_y - 2 * np.mean([k(a, b) for a in x for b in y]))


def tensors(*arrays: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("sizes", [(60, 40), (5, 9)], ids=["full-rank", "singular"])
def test_frechet_distance(sizes: tuple[int, int]) -> None:
    x, y = features(sizes[0], 6), features(sizes[1], 6, shift=0.3, spread=1.5)
    # sqrtm of a singular product is itself good to about the root of the machine's precision.
    tolerance = 1e-9 if min(sizes) > 6 else 1e-5
    assert frechet_distance(*tensors(x, y)) == pytest.approx(textbook_frechet(x, y), rel=tolerance)


def test_frechet_distance_is_that_of_torchmetrics() -> None:
    x, y = tensors(features(60, 6), features(40, 6, shift=0.3, spread=1.5))
    metric = FrechetInceptionDistance(feature=Given())
    metric.update(y, real=True)
    metric.update(x, real=False)
    assert frechet_distance(x, y) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_frechet_distance_of_a_shift_is_its_square() -> None:
    x = features(50, 4)
    assert frechet_distance(*tensors(x + np.array([3.0, 0, 4.0, 0]), x)) == pytest.approx(25.0, rel=1e-6)
    assert frechet_distance(*tensors(x, x)) == pytest.approx(0.0, abs=1e-6)


def gaussian_sample(n: int, mean: tuple[float, ...], deviations: tuple[float, ...]) -> np.ndarray:
    """n draws whose own mean and covariance are exactly these."""
    raw = RNG.normal(size=(n, len(mean)))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.cov(raw, rowvar=False))).T
    return white * deviations + mean


def test_frechet_distance_of_two_gaussians_in_closed_form() -> None:
    x = gaussian_sample(40, (1.0, 2.0, 0.0), (2.0, 1.0, 0.5))
    y = gaussian_sample(25, (4.0, -2.0, 0.0), (1.0, 3.0, 0.5))
    # |mu - nu|^2 + sum of (sigma - tau)^2, as both covariances are diagonal.
    assert frechet_distance(*tensors(x, y)) == pytest.approx(25 + 1 + 4)
    assert accurate_frechet(*tensors(x, y)) == pytest.approx(25 + 1 + 4)


def test_kernel_distance_is_unbiased() -> None:
    """Its mean over many small samples is the squared discrepancy of the two laws, here of two points each."""
    rng = np.random.default_rng(3)
    one, other = np.array([-1.0, 1.0]), np.array([0.0, 1.5])

    def mean_kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean((np.outer(a, b) + 1) ** 3))

    truth = mean_kernel(one, one) + mean_kernel(other, other) - 2 * mean_kernel(one, other)
    samples = ((rng.choice(one, (5, 1)), rng.choice(other, (5, 1))) for _ in range(400))
    values = np.array([kernel_distance(*tensors(*pair))["kernel_distance"] for pair in samples])
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - truth) < 3 * error
    # With the pairs of an image and itself, the mean would be off by (E k(x, x) - E k(x, x')) / 5 of each law.
    bias = sum(np.mean((law**2 + 1) ** 3) - mean_kernel(law, law) for law in (one, other)) / 5
    assert bias > 6 * error


def test_kernel_distance_of_whole_sets_is_the_formula() -> None:
    x, y = features(14, 5), features(14, 5, shift=0.5)
    found = kernel_distance(*tensors(x, y))
    assert found["kernel_distance"] == pytest.approx(textbook_kernel(x, y), rel=1e-10)
    assert (found["kid_subsets"], found["kid_subset_size"], found["kernel_distance_std"]) == (1, 14, None)


def test_kernel_distance_tells_equal_distributions_from_others() -> None:
    mix = RNG.normal(size=(8, 8)) / 8**0.5
    same_a, same_b = RNG.normal(size=(400, 8)) @ mix, RNG.normal(size=(400, 8)) @ mix
    near = kernel_distance(*tensors(same_a, same_b))["kernel_distance"]
    far = kernel_distance(*tensors(same_a, same_b + 0.5))["kernel_distance"]
    assert abs(near) < 0.05 < far


def test_subsets_shrink_to_the_smaller_set_and_follow_the_seed() -> None:
    x, y = tensors(features(20, 4), features(9, 4, shift=0.2))
    one = kernel_distance(x, y, subsets=10, seed=1)
    assert (one["kid_subsets"], one["kid_subset_size"]) == (10, 9)
    assert one["kernel_distance_std"] > 0
    assert one == kernel_distance(x, y, subsets=10, seed=1)
    assert one != kernel_distance(x, y, subsets=10, seed=2)


def test_subsets_leave_the_global_generator_alone() -> None:
    x, y = tensors(features(9, 3), features(8, 3))
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    kernel_distance(x, y, subsets=3)
    assert torch.equal(torch.rand(3), expected)


def test_a_singular_covariance_is_announced_for_its_set_alone() -> None:
    summary, caveats = compare(*tensors(features(6, 6), features(40, 6)))
    assert len(caveats) == 1
    assert "generated features is singular: rank 5 of 6 from 6 images" in caveats[0] and "more than 6" in caveats[0]
    assert (summary["generated"], summary["reference"], summary["feature_dim"]) == (6, 40, 6)


def test_a_dependent_feature_is_announced_though_there_are_images_enough() -> None:
    x, y = features(40, 5), features(30, 5)
    assert compare(*tensors(x, y))[1] == []
    y[:, 4] = y[:, 0] - 2 * y[:, 1]
    assert covariance_rank(torch.from_numpy(y)) == 4
    caveats = compare(*tensors(x, y))[1]
    assert len(caveats) == 1 and "reference" in caveats[0] and "depend on others" in caveats[0]


def test_too_few_images_and_bad_subsets() -> None:
    x = torch.from_numpy(features(5, 3))
    with pytest.raises(ValueError, match="generated: expected at least 2 images"):
        frechet_distance(x[:1], x)
    with pytest.raises(ValueError, match="reference: expected at least 2 images"):
        kernel_distance(x, x[:1])
    with pytest.raises(ValueError, match="kid_subset_size: expected at least 2, got 1"):
        kernel_distance(x, x, subset_size=1)
    with pytest.raises(ValueError, match="kid_subsets: expected at least 1, got 0"):
        kernel_distance(x, x, subsets=0)


def test_the_accurate_distance_sees_what_rounding_hides() -> None:
    rng = np.random.default_rng(0)
    for count, features in ((5, 40), (40, 5), (8, 8)):
        x = torch.tensor(rng.normal(100, 50, (count, features)))
        assert accurate_frechet(x, x) < 1e-9
        shift = torch.tensor(rng.normal(0, 1e-3, features))
        # A mere shift leaves the covariance: |shift|^2 is all there is.
        assert accurate_frechet(x + shift, x) == pytest.approx(float(shift @ shift), rel=1e-3)
        y = torch.tensor(rng.normal(90, 30, (count + 2, features)))
        assert accurate_frechet(y, x) == pytest.approx(textbook_frechet(y.numpy(), x.numpy()), rel=1e-5)


def test_pairs_are_resampled_as_pairs() -> None:
    rng = np.random.default_rng(0)
    x = torch.tensor(rng.normal(0, 5, (30, 4)))
    y = x + 0.5 + torch.tensor(rng.normal(0, 0.1, x.shape))
    value = accurate_frechet(y, x)
    apart, together = frechet_interval(y, x, resamples=100), frechet_interval(y, x, resamples=100, paired=True)
    assert together.low < value < together.high
    assert together.high - together.low < (apart.high - apart.low) / 10
    # The order of the pairs does not matter, who belongs to whom does.
    turned = frechet_interval(y.roll(1, 0), x, resamples=100, paired=True)
    assert turned.high - turned.low > 5 * (together.high - together.low)
    with pytest.raises(ValueError, match="paired: expected as many reference as generated, got 29 and 30"):
        frechet_interval(y, x[1:], paired=True)
