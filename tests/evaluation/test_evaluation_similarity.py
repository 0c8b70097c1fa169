"""Mean cosines of hand-made embeddings, and which pictures their intervals are about."""

import math

import numpy as np
import pytest
import torch

from lordfast.evaluation.similarity import mean_cosine


def at(*degrees: float) -> torch.Tensor:
    """Unit vectors in the plane."""
    angles = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_the_mean_over_all_pairs_by_hand() -> None:
    found, rows = mean_cosine(at(0, 90), at(60, 120, 180), resamples=0, seed=0)
    # Rows: (cos 60 + cos 120 + cos 180) / 3 and (cos 30 + cos 30 + cos 90) / 3.
    np.testing.assert_allclose(rows, [-1 / 3, math.sqrt(3) / 3], atol=1e-12)
    assert found["value"] == pytest.approx((math.sqrt(3) - 1) / 6)
    assert (found["images"], found["reference"], found["low"], found["low_given_reference"]) == (2, 3, None, None)


def test_the_cosine_with_the_mean_by_hand() -> None:
    # The mean of 30 and 90 degrees points to 60, whatever its length.
    found, rows = mean_cosine(at(60, 0, 240), at(30, 90), resamples=0, seed=0, to_mean=True)
    np.testing.assert_allclose(rows, [1, 0.5, -1], atol=1e-12)
    assert found["value"] == pytest.approx(0.5 / 3)
    assert mean_cosine(at(0), at(0, 180), resamples=0, seed=0, to_mean=True)[1].tolist() == [0.0]


@pytest.mark.parametrize("to_mean", [False, True])
def test_both_sets_are_resampled_or_the_generated_alone(to_mean: bool) -> None:
    rng = np.random.default_rng(0)
    same, spread = at(*[20.0] * 30), at(*rng.normal(0, 40, 30))
    over_reference, _ = mean_cosine(same, spread, resamples=200, seed=1, to_mean=to_mean)
    given = over_reference["high_given_reference"] - over_reference["low_given_reference"]
    assert given == pytest.approx(0, abs=1e-12), "equal pictures"
    assert over_reference["low"] < over_reference["value"] < over_reference["high"]
    single, _ = mean_cosine(spread, at(20), resamples=200, seed=1, to_mean=to_mean)
    assert single["low"] == single["low_given_reference"] < single["value"] < single["high"]
    assert mean_cosine(spread, at(20), resamples=200, seed=2, to_mean=to_mean)[0]["low"] != single["low"]


def test_coverage_of_the_mean_over_all_pairs() -> None:
    """E cos = E g . E r for independent pictures; of pairs taken for independent the interval would be half as wide."""
    spread = math.radians(30)
    truth = math.cos(math.radians(25)) * math.exp(-(spread**2))
    hits, given, trials = 0, 0, 100
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        angles = rng.normal(0, 30, 40), rng.normal(25, 30, 30)
        found, _ = mean_cosine(*(at(*values) for values in angles), resamples=150, seed=trial)
        hits += found["low"] <= truth <= found["high"]
        given += found["low_given_reference"] <= truth <= found["high_given_reference"]
    # Three standard deviations of a share among 100 are 6.5 %.
    assert hits / trials > 0.95 - 0.065
    assert given / trials < 0.9, "for the truth over other references too, the narrower one is too narrow"
