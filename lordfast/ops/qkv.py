"""`lord_qkv`: three linear layers with LoRD that read the same input, as an attention's q, k and v do."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from . import schema
from .autograd import LordQkvFunction, apply, is_differentiated
from .checks import check_base, check_lord
from .dispatch import forced_backend
from .gate import Gate
from .linear import Activation, Granularity


class Projection(NamedTuple):
    """One linear layer with its LoRD: what `lord_linear` takes, bundled."""

    weight: Tensor  # (N, K)
    bias: Tensor | None  # (N,)
    lord_A: Tensor  # (r, K)
    lord_B: Tensor  # (N, r)
    lord_B_adv: Tensor  # (N, r)
    gate: Gate


def lord_qkv(
    x: Tensor,
    q: Projection,
    k: Projection,
    v: Projection,
    scaling: float,
    *,
    granularity: Granularity = "token",
    activation: Activation = "silu",
    backend: str | None = None,
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """`lord_linear(x, ...)` for three projections of the same shapes, in one operation that can read x once.

    Args:
        x: (..., K).
        q: the first projection; k and v have its shapes (N, r and H too), and a bias each or none of them.
        k: the second.
        v: the third.
        scaling: s = alpha / r, the same for all three.
        granularity: as in `lord_linear`.
        activation: as in `lord_linear`.
        backend: as in `lord_linear`.

    Returns:
        The three outputs, each (..., N) and contiguous, and the three gate logits, as `lord_linear` returns them. Each
        projection has a gate of its own. The gradients are those of three calls of `lord_linear`.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype.
        ValueError: a shape, device or option is wrong, or a forced backend can't take the case.
    """
    projections = (q, k, v)
    for projection in projections:
        check_base(x, projection.weight, projection.bias, projection.lord_B)
        check_lord(x, *projection[2:5], projection.gate, scaling, granularity, activation)
    _check_alike(projections)
    tensors = (x, *(t for p in projections for t in (*p[:5], *p.gate)))
    options = (float(scaling), granularity == "sample", activation, forced_backend(backend))
    if is_differentiated(tensors):
        outputs = apply(LordQkvFunction, *tensors, *options)
        return outputs[:3], outputs[3:6]
    args = (x, *schema.by_role(tensors[1:]), *options)
    y, gate_logit, _ = schema.call(schema.lord_qkv_forward, x, *args)
    return (y[0], y[1], y[2]), (gate_logit[0], gate_logit[1], gate_logit[2])


def _check_alike(projections: tuple[Projection, ...]) -> None:
    first = projections[0]
    for name, other in zip(("k", "v"), projections[1:], strict=True):
        if (other.bias is None) != (first.bias is None):
            here, there = ("no", "one") if other.bias is None else ("a", "none")
            raise ValueError(f"{name} has {here} bias; expected the same of all three, and q has {there}")
        for field, shape, expected in (
            ("lord_B", other.lord_B.shape, first.lord_B.shape),
            ("gate.w1", other.gate.w1.shape, first.gate.w1.shape),
        ):
            if shape != expected:
                raise ValueError(f"{name}.{field} has shape {tuple(shape)}; expected q's, {tuple(expected)}")
