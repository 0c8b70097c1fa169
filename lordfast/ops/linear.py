"""`lord_linear`, a linear layer with LoRD's two branches and its gate, and `lord_delta`, the same without the layer."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from . import schema
from .autograd import LordFunction, apply, is_differentiated
from .checks import check_base, check_lord
from .dispatch import forced_backend
from .gate import Gate

Granularity = Literal["token", "sample"]
Activation = Literal["relu", "silu", "gelu"]


def lord_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lord_A: Tensor,
    lord_B: Tensor,
    lord_B_adv: Tensor,
    gate: Gate,
    scaling: float,
    *,
    granularity: Granularity = "token",
    activation: Activation = "silu",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """A linear layer with LoRD: both low-rank branches and the gate that mixes the second one in (LoRD, Eq. 4-5).

        u          = x A^T
        gate_logit = w2 . act(w1 (s B u) + b1) + b2
        y          = x W^T + bias + s B u + sigmoid(gate_logit) * s B' u

    The gate's first layer is folded onto u, so the branches' outputs are never formed.

    Args:
        x: (..., K), one dimension or more, any strides; float16, bfloat16, float32 or float64.
        weight: (N, K), in x's dtype.
        bias: (N,) in x's dtype, or None.
        lord_A: (r, K). This and the following tensors may have any floating dtype, whatever x has; keep them in float32
            to train them. They are used as float32 (float64 where x is float64).
        lord_B: (N, r), the benign branch.
        lord_B_adv: (N, r), the adversarial branch B'.
        gate: the gate's parameters, w1 (H, N), b1 (H,), w2 (H,), b2 ().
        scaling: s = alpha / r.
        granularity: "token", one lambda a token (the literal Eq. 4), or "sample": the logits are averaged over a
            sample's tokens, and all its tokens share one lambda. The first dimension of x is the batch; x needs two.
        activation: "relu", "silu" or "gelu" (the exact one).
        backend: the backend to use and no other, see `available_backends`; None lets the dispatcher choose.

    Returns:
        y: (..., N) in x's dtype.
        gate_logit: the gate before its sigmoid, float32 (float64 where x is float64), (...) for "token", (batch,) for
            "sample" (0 for a sample without tokens). Differentiable, like y; there are no second derivatives.

    The two large products run in x's dtype, everything else (u, gate, the small gradients) in float32 or float64, also
    under autocast, which is not applied here: bring x and weight to one dtype first. Each gradient has its own input's
    dtype, and is computed only if wanted. The same inputs on the same device give the same bits.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype.
        ValueError: a shape, device or option is wrong, or a forced backend can't take the case.
    """
    check_base(x, weight, bias, lord_B)
    return _lord(x, weight, bias, lord_A, lord_B, lord_B_adv, gate, scaling, granularity, activation, backend)


def lord_delta(
    x: Tensor,
    lord_A: Tensor,
    lord_B: Tensor,
    lord_B_adv: Tensor,
    gate: Gate,
    scaling: float,
    *,
    granularity: Granularity = "token",
    activation: Activation = "silu",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """What LoRD adds to a linear layer, without the layer: for bases that are quantised or hooked (LoRD, Eq. 4-5).

        delta = s B u + sigmoid(gate_logit) * s B' u

    Arguments, numerics and errors are those of `lord_linear`.

    Returns:
        delta: (..., N) in x's dtype.
        gate_logit: as in `lord_linear`.
    """
    return _lord(x, None, None, lord_A, lord_B, lord_B_adv, gate, scaling, granularity, activation, backend)


def _lord(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lord_A: Tensor,
    lord_B: Tensor,
    lord_B_adv: Tensor,
    gate: Gate,
    scaling: float,
    granularity: str,
    activation: str,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    check_lord(x, lord_A, lord_B, lord_B_adv, gate, scaling, granularity, activation)
    tensors = (x, weight, bias, lord_A, lord_B, lord_B_adv, *gate)
    options = (float(scaling), granularity == "sample", activation, forced_backend(backend))
    # Leave the Function out where nobody can ask for gradients: its overhead is more than the operation's own.
    if is_differentiated(tensors):
        y, gate_logit, _ = apply(LordFunction, *tensors, *options)
    else:
        y, gate_logit, _ = schema.call(schema.lord_forward, x, *tensors, *options)
    return y, gate_logit
