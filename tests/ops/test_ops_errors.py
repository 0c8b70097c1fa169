"""Wrong arguments: the message names the argument, what came, and what was expected."""

from __future__ import annotations

import re

import pytest
import torch

import lordfast.ops as ops

SHAPES = [
    ("weight", (5, 8), r"weight has shape (5, 8); expected (N, K) with K the last dimension of x, (2, 3, 7)"),
    ("weight", (6, 7), r"and N the first of lord_B, (5, 3)"),
    ("weight", (5,), r"weight has shape (5,); expected (N, K)"),
    ("bias", (4,), r"bias has shape (4,); expected (5,), (N,)"),
    ("x", (), r"weight has shape (5, 7); expected (N, K) with K the last dimension of x, ()"),
    ("lord_A", (3, 8), r"lord_A has shape (3, 8); expected (r, K) with r at least 1"),
    ("lord_A", (0, 7), r"lord_A has shape (0, 7); expected (r, K) with r at least 1"),
    ("lord_B", (5, 2), r"lord_B has shape (5, 2); expected (N, r)"),
    ("lord_B_adv", (5, 2), r"lord_B_adv has shape (5, 2); expected (5, 3), (N, r)"),
    ("w1", (4, 6), r"gate.w1 has shape (4, 6); expected (H, N) with H at least 1"),
    ("w1", (0, 5), r"gate.w1 has shape (0, 5); expected (H, N) with H at least 1"),
    ("b1", (5,), r"gate.b1 has shape (5,); expected (4,), (H,)"),
    ("w2", (1, 4), r"gate.w2 has shape (1, 4); expected (4,), (H,)"),
    ("b2", (1,), r"gate.b2 has shape (1,); expected (), a scalar"),
]


def replaced(case_of, case, name, value):
    names = ("x", "weight", "bias", "lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")
    return case_of([value if n == name else t for n, t in zip(names, case.tensors, strict=True)], case)


@pytest.mark.parametrize(("name", "shape", "message"), SHAPES, ids=[f"{n}{s}" for n, s, _ in SHAPES])
def test_shapes(make_case, case_of, name, shape, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        replaced(case_of, make_case(), name, torch.zeros(shape, dtype=torch.float64)).fused()


@pytest.mark.parametrize("name", ["x", "weight", "bias", "lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2"])
def test_types_dtypes_and_devices(make_case, case_of, name):
    case = make_case()
    called = f"gate.{name}" if name in ("w1", "b1", "w2", "b2") else name
    with pytest.raises(TypeError, match=f"^{called} is list; expected a torch.Tensor"):
        replaced(case_of, case, name, [1.0]).fused()
    with pytest.raises(TypeError, match=f"^{called} has dtype torch.int64; expected float16, bfloat16"):
        replaced(case_of, case, name, case[name].long()).fused()
    if name != "x":
        with pytest.raises(ValueError, match=f"^{called} is on meta; expected x's device, cpu"):
            replaced(case_of, case, name, case[name].to("meta")).fused()
    if name in ("weight", "bias"):
        with pytest.raises(TypeError, match=f"^{name} has dtype torch.float32; expected x's dtype, torch.float64"):
            replaced(case_of, case, name, case[name].float()).fused()


def test_options(make_case, case_of):
    case = make_case()
    with pytest.raises(ValueError, match="granularity is 'image'; expected one of 'token', 'sample'"):
        case.fused(granularity="image")
    with pytest.raises(ValueError, match="activation is 'tanh'; expected one of 'relu', 'silu', 'gelu'"):
        case.fused(activation="tanh")
    with pytest.raises(ValueError, match="backend is 'cuda'; expected None or one of 'triton', 'native', 'reference'"):
        case.fused(backend="cuda")
    with pytest.raises(
        ValueError, match=r"x has shape \(7,\); expected at least 2 dimensions for granularity 'sample'"
    ):
        make_case(()).fused(granularity="sample")
    x, *_, a, b, b_adv = case.tensors[:6]
    gate = case.tensors[6:]
    with pytest.raises(TypeError, match=r"gate is list; expected a lordfast.ops.Gate"):
        ops.lord_delta(x, a, b, b_adv, list(gate), 2.0)
    with pytest.raises(TypeError, match="scaling is Tensor; expected a float"):
        ops.lord_delta(x, a, b, b_adv, ops.Gate(*gate), torch.tensor(2.0))
    with pytest.raises(ValueError, match=r"x has shape \(\); expected at least 1 dimension for"):
        ops.lord_delta(torch.tensor(1.0), a, b, b_adv, ops.Gate(*gate), 2.0)


def step(x=None, x_orig=None, grad=None, **options):
    x, x_orig, grad = (torch.zeros(2, 3) if t is None else t for t in (x, x_orig, grad))
    return ops.pgd_step(x, x_orig, grad, **{"step_size": 0.1, "eps": 0.1, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step_size": -0.1}, "step_size is -0.1; expected a finite number of at least 0"),
        ({"step_size": float("nan")}, "step_size is nan; expected"),
        ({"eps": -1}, "eps is -1; expected a finite number of at least 0"),
        ({"eps": float("inf")}, "eps is inf; expected"),
        ({"low": 1.0, "high": 1.0}, "low is 1.0 and high is 1.0; expected low < high"),
        ({"low": float("nan")}, "low is nan and high is 1.0; expected low < high"),
        ({"norm": "l1"}, "norm is 'l1'; expected one of 'linf', 'l2'"),
        ({"direction": 0}, "direction is 0; expected one of 1, -1"),
        ({"x": torch.tensor(0.0)}, "x_adv has shape (); expected (batch, ...)"),
        ({"x_orig": torch.zeros(3)}, "x_orig has shape (3,); expected (2, 3), the shape of x_adv"),
        ({"grad": torch.zeros(2, 1)}, "grad has shape (2, 1); expected (2, 3)"),
        ({"out": torch.zeros(6)}, "out has shape (6,); expected (2, 3)"),
        ({"x_orig": torch.zeros(2, 3, device="meta")}, "x_orig is on meta; expected x_adv's device, cpu"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else None,
)
def test_pgd_step_values(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        step(**options)


def test_pgd_step_types():
    with pytest.raises(TypeError, match=r"x_adv has dtype torch.uint8; expected float16"):
        step(x=torch.zeros(2, 3, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"grad is ndarray; expected a torch.Tensor"):
        step(grad=torch.zeros(2, 3).numpy())
    with pytest.raises(
        TypeError, match=re.escape("out has dtype torch.float64; expected x_adv's dtype, torch.float32")
    ):
        step(out=torch.zeros(2, 3, dtype=torch.float64))
