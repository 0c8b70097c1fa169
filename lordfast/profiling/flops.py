"""FLOPs of single operations: torch's own formulas, and those of the operations that torch does not know.

Importing this registers the latter with `torch.utils.flop_counter`, so that torch's `FlopCounterMode` counts them too.
A multiply-add is two FLOPs. Matrix products, convolutions and attention count, elementwise operations don't, but for
`pgd_step`, which is an operation of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_backward_flop_count, sdpa_flop_count

import lordfast.ops  # noqa: F401  It registers the operations whose formulas follow.

from . import costs

Shape = Sequence[int]


def operation_flops(op: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """FLOPs of one call of the overload `op`, 0 where there is no formula for it."""
    formula = flop_registry.get(op.overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=out))


def _sizes(x: Shape, lord_A: Shape, lord_B: Shape, w1: Shape) -> tuple[int, ...]:
    """M, K, N, r, H of a layer; `x` has M rows, its last dimension is not read."""
    return math.prod(x[:-1]), lord_A[1], lord_B[0], lord_A[0], w1[0]


def _forward(x: Shape, weight: Shape | None, lord_A: Shape, lord_B: Shape, w1: Shape) -> int:
    m, k, n, r, h = _sizes(x, lord_A, lord_B, w1)
    whole = costs.lord_forward(m, k, n, r, h, 4)
    # `lord_delta` leaves the product with the weight to someone else.
    return int(whole.flops - (costs.bare_forward(m, k, n, 4).flops if weight is None else 0))


def lord_forward(
    x: Shape,
    weight: Shape | None,
    bias: Shape | None,
    lord_A: Shape,
    lord_B: Shape,
    lord_B_adv: Shape,
    w1: Shape,
    *rest: Any,
    out_shape: Any = None,
) -> int:
    """``lordfast::lord_forward``, as `costs.lord_forward`."""
    return _forward(x, weight, lord_A, lord_B, w1)


def lord_qkv_forward(
    x: Shape,
    weight: Sequence[Shape],
    bias: Sequence[Shape],
    lord_A: Sequence[Shape],
    lord_B: Sequence[Shape],
    lord_B_adv: Sequence[Shape],
    w1: Sequence[Shape],
    *rest: Any,
    out_shape: Any = None,
) -> int:
    """``lordfast::lord_qkv_forward``: three layers."""
    return sum(_forward(x, w, a, b, gate) for w, a, b, gate in zip(weight, lord_A, lord_B, w1, strict=True))


def lord_backward(
    grad_y: Shape | None,
    grad_logit: Shape | None,
    x: Shape | None,
    gate_logit: Shape,
    u: Shape,
    weight: Shape | None,
    bias: Shape | None,
    lord_A: Shape,
    lord_B: Shape,
    lord_B_adv: Shape,
    w1: Shape,
    b1: Shape,
    w2: Shape,
    b2: Shape,
    scaling: float,
    per_sample: bool,
    activation: str,
    dtype: torch.dtype,
    needs: Sequence[bool],
    *rest: Any,
    out_shape: Any = None,
) -> int:
    """``lordfast::lord_backward``: of `costs.lord_backward` what the gradients that are wanted take.

    ``needs`` says so of x, weight, bias, A, B, B', w1, b1, w2 and b2.
    """
    return _backward(u, weight, lord_A, lord_B, w1, needs)


def _backward(u: Shape, weight: Shape | None, lord_A: Shape, lord_B: Shape, w1: Shape, needs: Sequence[bool]) -> int:
    m, k, n, r, h = _sizes(u, lord_A, lord_B, w1)
    needs_x, needs_weight, needs_A = needs[0], needs[1], needs[3]
    needs_branches, needs_gate = any(needs[4:6]), any(needs[6:])
    through_gate = needs_x or needs_A or needs_branches or needs_gate
    flops = 0
    if through_gate:
        # v = dY C; P u again and da; du takes da P.
        flops += 2 * m * n * 2 * r + 2 * m * h * r + 2 * m * h
    if needs_x or needs_A:
        flops += 2 * m * h * r
    if needs_branches:
        flops += 2 * m * n * 2 * r
    # dP goes into dB as well as dW1.
    if needs_branches or needs_gate:
        flops += 2 * m * h * r
    if needs_gate:
        flops += 3 * m * h
    if needs_A:
        flops += 2 * m * r * k
    if needs_x:
        flops += 2 * m * r * k + (2 * m * k * n if weight is not None else 0)
    if needs_weight:
        flops += 2 * m * k * n
    return flops


def lord_stack_forward(
    x: Shape,
    weight: Shape,
    bias: Shape | None,
    lord_A: Shape,
    lord_B: Sequence[Shape],
    lord_B_adv: Sequence[Shape],
    w1: Sequence[Shape],
    *rest: Any,
    out_shape: Any = None,
) -> int:
    """``lordfast::lord_stack_forward``: as many layers as are stacked, a width each in the lists."""
    return sum(b[0] * _forward(x, weight, lord_A[1:], b[1:], gate[1:]) for b, gate in zip(lord_B, w1, strict=True))


def lord_stack_backward(
    grad_y: Sequence[Shape],
    grad_logit: Shape,
    x: Shape | None,
    gate_logit: Shape,
    u: Shape,
    weight: Shape,
    lord_A: Shape,
    lord_B: Sequence[Shape],
    lord_B_adv: Sequence[Shape],
    w1: Sequence[Shape],
    b1: Shape,
    w2: Shape,
    b2: Shape,
    scaling: float,
    per_sample: bool,
    activation: str,
    dtype: torch.dtype,
    needs: Sequence[bool],
    *rest: Any,
    out_shape: Any = None,
) -> int:
    """``lordfast::lord_stack_backward``: its ``needs`` leave out weight and bias, which are frozen."""
    wanted = [needs[0], False, False, *needs[1:]]
    return sum(
        b[0] * _backward(u[1:], weight, lord_A[1:], b[1:], gate[1:], wanted) for b, gate in zip(lord_B, w1, strict=True)
    )


def pgd_step(x_adv: Shape, x_orig: Shape, grad: Shape, out: Shape, *rest: Any, out_shape: Any = None) -> int:
    """``lordfast::pgd_step``, as `costs.pgd_step`."""
    norm = rest[4]
    return int(costs.pgd_step(math.prod(x_adv), 4, norm).flops)


def _cpu_attention(q: Shape, k: Shape, v: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _cpu_attention_backward(
    grad_out: Shape, q: Shape, k: Shape, v: Shape, *args: Any, out_shape: Any = None, **kwargs: Any
) -> int:
    return sdpa_backward_flop_count(grad_out, q, k, v)


def _register() -> None:
    known: dict[Any, Callable[..., int]] = {
        torch.ops.lordfast.lord_forward: lord_forward,
        torch.ops.lordfast.lord_qkv_forward: lord_qkv_forward,
        torch.ops.lordfast.lord_backward: lord_backward,
        torch.ops.lordfast.lord_stack_forward: lord_stack_forward,
        torch.ops.lordfast.lord_stack_backward: lord_stack_backward,
        torch.ops.lordfast.pgd_step: pgd_step,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
    }
    for op, formula in known.items():
        # A later torch may know more.
        if op not in flop_registry:
            register_flop_formula(op)(formula)


_register()
