"""Budgets: what may be written after --eps, and that the saved 8-bit image never exceeds it."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lordfast.attacks.budget import Budget, parse_budget
from lordfast.attacks.options import PgdOptions

SHAPE = (4, 5, 3)
BYTES = arrays.arrays(np.uint8, SHAPE)
MOVES = arrays.arrays(np.float64, SHAPE, elements=st.floats(-300, 300, width=32))


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), (" 16 / 255 ", 16 / 255), ("0.03", 0.03), ("1e-2", 0.01), ("0", 0.0), (0.5, 0.5), ("1", 1.0)],
)
def test_budgets_that_parse(text: str | float, value: float) -> None:
    assert parse_budget(text) == value


@pytest.mark.parametrize(
    "text", ["-1/255", -0.1, "abc", "", "8/", "/255", "8/255/2", "1/0", "nan", "inf", "1/inf/2", "8 255", "0x8"]
)
def test_budgets_that_do_not(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"^step_size: expected pixels in \[0, 1\], such as 8/255 or 0\.03, got "):
        parse_budget(text, "step_size")


def test_grey_levels_are_recognised() -> None:
    with pytest.raises(ValueError, match="eps: 8 is above 1, the whole range of a pixel; 8 grey levels are 8/255"):
        PgdOptions(eps="8").settings(0)
    with pytest.raises(ValueError, match="step_size: 2 is above 1.*2 grey levels are 2/255"):
        PgdOptions(step_size="2").settings(0)
    # The norm of a whole image may well be 8.
    assert PgdOptions(eps="8", step_size="2", norm="l2").settings(0).budget.eps == 8


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_budgets_check_their_numbers(value: float) -> None:
    for norm in ("linf", "l2"):
        with pytest.raises(ValueError, match="eps: expected a number of 0 or more"):
            Budget(value, 0.1, norm)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="step_size: expected a number of 0 or more"):
            Budget(0.1, value, norm)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="norm: expected linf or l2, got 'l1'"):
        Budget(0.1, 0.1, "l1")  # type: ignore[arg-type]


@given(st.integers(0, 255))
def test_grey_levels_survive_the_division(levels: int) -> None:
    assert Budget(parse_budget(f"{levels}/255"), 0).grey_levels == levels


def change(saved: np.ndarray, original: np.ndarray) -> np.ndarray:
    assert saved.dtype == np.uint8 and saved.shape == original.shape
    return saved.astype(np.int64) - original


@settings(max_examples=200, deadline=None)
@given(BYTES, MOVES, st.integers(0, 255), st.integers(1, 4))
def test_linf_is_obeyed_exactly_by_the_nearest_image(image: np.ndarray, move: np.ndarray, top: int, parts: int) -> None:
    eps = Fraction(top, 255 * parts)
    perturbed = image + move
    moved = change(Budget(float(eps), 0).quantise(perturbed, image), image)
    assert Fraction(int(np.abs(moved).max()), 255) <= eps
    # No other level within the budget and the range is nearer.
    reach = math.floor(eps * 255)
    low, high = np.maximum(image.astype(int) - reach, 0), np.minimum(image.astype(int) + reach, 255)
    nearest = np.abs(np.clip(np.rint(perturbed), low, high) - perturbed)
    assert (np.abs(image + moved - perturbed) <= nearest + 1e-9).all()


@settings(max_examples=200, deadline=None)
@given(BYTES, MOVES, st.integers(0, 2000), st.integers(1, 7))
def test_l2_is_obeyed_exactly(image: np.ndarray, move: np.ndarray, top: int, parts: int) -> None:
    eps = Fraction(top, 255 * parts)
    perturbed = image + move
    moved = change(Budget(float(eps), 0, "l2").quantise(perturbed, image), image)
    # In whole numbers: the sum of squares of grey levels against (255 eps)^2, with room for eps as a float only.
    assert int(np.square(moved).sum()) <= (eps * 255) ** 2 * (1 + Fraction(1, 10**8))
    # Nothing moves the wrong way or too far.
    exact = np.clip(perturbed, 0, 255) - image
    assert (moved * exact >= 0).all() and (np.abs(moved) <= np.ceil(np.abs(exact))).all()


@settings(max_examples=50, deadline=None)
@given(BYTES, MOVES, st.sampled_from(["linf", "l2"]))
def test_no_budget_no_change(image: np.ndarray, move: np.ndarray, norm: str) -> None:
    assert (Budget(0.0, 0.1, norm).quantise(image + move, image) == image).all()  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None)
@given(BYTES, st.sampled_from(["linf", "l2"]))
def test_an_image_within_the_budget_is_only_rounded(image: np.ndarray, norm: str) -> None:
    near = np.clip(image.astype(np.float64) + 3.3, 0, 255)
    moved = Budget(1.0, 0.1, norm).quantise(near, image)  # type: ignore[arg-type]
    assert (moved == np.rint(near)).all()


@pytest.mark.parametrize("eps", [0.5, 1.0, 2.0])
def test_l2_spends_its_budget(eps: float) -> None:
    # 64 x 64 pixels with one to five grey levels each: cutting towards zero would throw away half of it.
    rng = np.random.default_rng(0)
    image = rng.integers(60, 200, (64, 64, 3)).astype(np.uint8)
    direction = rng.normal(size=image.shape)
    direction *= eps * 255 / np.linalg.norm(direction)
    moved = change(Budget(eps, 0, "l2").quantise(image + direction, image), image)
    assert 0.97 * eps <= np.linalg.norm(moved) / 255 <= eps
    assert (moved * direction).sum() > 0.8 * np.linalg.norm(moved) * np.linalg.norm(direction)
