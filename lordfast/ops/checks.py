"""Argument checks: each names the argument, what came and what was expected."""

from __future__ import annotations

import torch
from torch import Tensor

from .gate import Gate

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
GRANULARITIES = ("token", "sample")
ACTIVATIONS = ("relu", "silu", "gelu")


def check_tensor(name: str, t: object) -> None:
    """Raise a TypeError unless `t` is a tensor of a floating dtype that the operations know."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} is {type(t).__name__}; expected a torch.Tensor")
    if t.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {t.dtype}; expected float16, bfloat16, float32 or float64")


def check_shape(name: str, t: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    """Raise a ValueError unless `t` has exactly the shape `expected`; `meaning` is that shape in letters."""
    if t.shape != expected:
        raise ValueError(f"{name} has shape {tuple(t.shape)}; expected {tuple(expected)}, {meaning}")


def check_option(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise a ValueError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")


def check_base(x: Tensor, weight: Tensor, bias: Tensor | None, lord_B: Tensor) -> None:
    """Check the frozen linear layer of `lord_linear` against x and lord_B."""
    check_tensor("x", x)
    check_tensor("weight", weight)
    check_tensor("lord_B", lord_B)
    if x.ndim == 0 or weight.ndim != 2 or weight.shape[1] != x.shape[-1] or weight.shape[0] != lord_B.shape[:1].numel():
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}; expected (N, K) with K the last dimension of x, "
            f"{tuple(x.shape)}, and N the first of lord_B, {tuple(lord_B.shape)}"
        )
    _same("weight", weight, x)
    if bias is not None:
        check_tensor("bias", bias)
        check_shape("bias", bias, (weight.shape[0],), "(N,) with N the first dimension of weight")
        _same("bias", bias, x)


def check_tokens(x: Tensor, granularity: str) -> None:
    """Raise a ValueError for an x (..., K) in which a gate of that granularity finds no tokens, or no samples."""
    least = 2 if granularity == "sample" else 1
    if x.ndim < least:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; expected at least {least} dimension{'s' * (least > 1)} "
            f"for granularity {granularity!r}, the last of them K"
        )


def check_lord(
    x: Tensor,
    lord_A: Tensor,
    lord_B: Tensor,
    lord_B_adv: Tensor,
    gate: Gate,
    scaling: float,
    granularity: str,
    activation: str,
) -> None:
    """Check LoRD's own arguments against x and each other."""
    check_option("granularity", granularity, GRANULARITIES)
    check_option("activation", activation, ACTIVATIONS)
    if not isinstance(scaling, (int, float)):
        raise TypeError(f"scaling is {type(scaling).__name__}; expected a float")
    if not isinstance(gate, tuple) or len(gate) != 4:
        raise TypeError(f"gate is {type(gate).__name__}; expected a lordfast.ops.Gate of w1, b1, w2, b2")
    w1, b1, w2, b2 = gate
    check_tensor("x", x)
    check_tokens(x, granularity)
    for name, t in (
        ("lord_A", lord_A),
        ("lord_B", lord_B),
        ("lord_B_adv", lord_B_adv),
        ("gate.w1", w1),
        ("gate.b1", b1),
        ("gate.w2", w2),
        ("gate.b2", b2),
    ):
        check_tensor(name, t)
        if t.device != x.device:
            raise ValueError(f"{name} is on {t.device}; expected x's device, {x.device}")
    if lord_A.ndim != 2 or lord_A.shape[0] < 1 or lord_A.shape[1] != x.shape[-1]:
        raise ValueError(
            f"lord_A has shape {tuple(lord_A.shape)}; expected (r, K) with r at least 1 "
            f"and K the last dimension of x, {tuple(x.shape)}"
        )
    r = lord_A.shape[0]
    if lord_B.ndim != 2 or lord_B.shape[0] < 1 or lord_B.shape[1] != r:
        raise ValueError(
            f"lord_B has shape {tuple(lord_B.shape)}; expected (N, r) with N at least 1 "
            f"and r the first dimension of lord_A, {tuple(lord_A.shape)}"
        )
    n = lord_B.shape[0]
    check_shape("lord_B_adv", lord_B_adv, (n, r), "(N, r), the shape of lord_B")
    if w1.ndim != 2 or w1.shape[0] < 1 or w1.shape[1] != n:
        raise ValueError(
            f"gate.w1 has shape {tuple(w1.shape)}; expected (H, N) with H at least 1 "
            f"and N the first dimension of lord_B, {tuple(lord_B.shape)}"
        )
    check_shape("gate.b1", b1, (w1.shape[0],), "(H,) with H the first dimension of gate.w1")
    check_shape("gate.w2", w2, (w1.shape[0],), "(H,) with H the first dimension of gate.w1")
    check_shape("gate.b2", b2, (), "a scalar tensor")


def _same(name: str, t: Tensor, x: Tensor) -> None:
    if t.dtype != x.dtype:
        raise TypeError(f"{name} has dtype {t.dtype}; expected x's dtype, {x.dtype}")
    if t.device != x.device:
        raise ValueError(f"{name} is on {t.device}; expected x's device, {x.device}")
