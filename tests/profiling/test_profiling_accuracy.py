"""The gate: what is right, what is not, and what it says."""

from __future__ import annotations

import math

import pytest
import torch

from lordfast.profiling.accuracy import judge, relative_errors


def test_errors_are_pooled_over_draws_and_kinds():
    exact = [{"a/1": torch.tensor([3.0, 4.0]).double(), "a/2": torch.tensor([0.0]).double()}] * 2
    got = [
        {"a/1": torch.tensor([3.0, 4.0]), "a/2": torch.tensor([2.0])},
        {"a/1": torch.tensor([3.0, 4.0]), "a/2": torch.tensor([0.0])},
    ]
    # One error of 2 in two draws of norm 5 each.
    assert relative_errors(got, exact) == {"a": pytest.approx(2 / math.sqrt(50))}


@pytest.mark.parametrize("wrong", [{}, {"a": torch.zeros(3)}, {"a": torch.tensor([1.0, math.nan])}], ids=str)
def test_what_is_missing_misshapen_or_nan_is_red(wrong):
    exact = [{"a": torch.tensor([1.0, 2.0]).double()}]
    verdict = judge(relative_errors([wrong], exact), {"a": 1e-3})
    assert verdict.gate.startswith("red: a ") and not verdict.ok


def test_twice_eager_is_the_limit():
    eager = {"y": 1e-3, "x": 1e-4}
    good = judge({"y": 1.9e-3, "x": 1e-5}, eager)
    assert good.ok and good.error == 1.9e-3
    bad = judge({"y": 1e-4, "x": 2.1e-4}, eager)
    assert bad.gate == "red: x 2.10e-04 > 2.00e-04" and bad.error == 2.1e-4


def test_an_eager_formula_that_overflows_lets_nothing_pass():
    assert not judge({"y": 1e-3}, {"y": math.nan}).ok
    assert not judge({"y": math.nan}, {"y": math.nan}).ok


def test_the_gates_gradients_are_judged_as_one_and_others_are_not():
    eager = {"w1": 1e-4, "b1": 1e-6, "w2": 1e-6, "b2": 1e-9, "lord_A": 1e-7}
    close = {"w1": 1e-6, "b1": 1e-6, "w2": 1e-6, "b2": 3e-4, "lord_A": 1e-7}
    assert judge(close, eager).ok
    assert judge({**close, "b2": 5e-4}, eager).gate == "red: gate 2.50e-04 > 2.00e-04"
    for name in ("w1", "b1", "w2", "b2"):
        assert not judge({**close, name: math.nan}, eager).ok
        assert not judge(close, {**eager, name: math.nan}).ok
    assert judge({**close, "lord_A": 1e-6}, eager).gate.startswith("red: lord_A")


def test_nobody_has_to_be_more_exact_than_fp32():
    assert judge({"y": 1e-7}, {"y": 0.0}).ok
    assert judge({"y": 1.3e-7}, {"y": 1e-9}).gate == "red: y 1.30e-07 > 1.19e-07"


def test_exactly_zero_is_right_where_zero_is_exact():
    exact = [{"a": torch.zeros(3).double()}]
    assert relative_errors([{"a": torch.zeros(3)}], exact) == {"a": 0.0}
    assert relative_errors([{"a": torch.ones(3)}], exact) == {"a": math.inf}
