"""`lord_stack`: many linear layers with LoRD that read the same input, as a UNet's text projections do."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import schema
from .autograd import apply, is_differentiated
from .checks import check_lord, check_shape, check_tensor
from .gate import Gate
from .linear import Activation, Granularity


class Branches(NamedTuple):
    """One layer's LoRD: what `lord_linear` takes, but for the frozen layer."""

    lord_A: Tensor  # (r, K)
    lord_B: Tensor  # (N, r)
    lord_B_adv: Tensor  # (N, r)
    gate: Gate


def lord_stack(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layers: Sequence[Branches],
    scaling: float,
    *,
    granularity: Granularity = "token",
    activation: Activation = "silu",
) -> tuple[tuple[Tensor, ...], Tensor]:
    """`lord_linear(x, ...)` for L frozen layers at once: one base product for all, and batched products for LoRD.

    Args:
        x: (..., K).
        weight: (sum of the layers' N, K) in x's dtype, the layers' weights under each other. It gets no gradient.
        bias: (sum of N,) in x's dtype, or None. It gets no gradient.
        layers: each layer's LoRD, in the order of weight. r and H are the same for all. Layers of the same N that
            follow each other are computed together: sort by N.
        scaling: s = alpha / r, the same for all.
        granularity: as in `lord_linear`.
        activation: as in `lord_linear`.

    Returns:
        y: for each run of layers with the same N one tensor (layers in it, ..., N), in x's dtype.
        gate_logit: (L, ...) for "token", (L, batch) for "sample", as in `lord_linear`.

    Runs on PyTorch's batched products, whatever backend is forced. Precisions, gradients and determinism are those of
    `lord_linear`.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype.
        ValueError: a shape, device or option is wrong, or weight or bias wants a gradient.
    """
    _check(x, weight, bias, layers, scaling, granularity, activation)
    runs = [list(run) for _, run in groupby(layers, key=lambda layer: layer.lord_B.shape[0])]
    tensors = (
        x,
        torch.stack([layer.lord_A for layer in layers]),
        *(torch.stack([layer.lord_B for layer in run]) for run in runs),
        *(torch.stack([layer.lord_B_adv for layer in run]) for run in runs),
        *(torch.stack([layer.gate.w1 for layer in run]) for run in runs),
        *(torch.stack(role) for role in list(zip(*(layer.gate for layer in layers), strict=True))[1:]),
    )
    options = (float(scaling), granularity == "sample", activation)
    if is_differentiated(tensors):
        *y, gate_logit, _ = apply(LordStackFunction, weight, bias, *options, *tensors)
        return tuple(y), gate_logit
    args = (x, weight, bias, *_by_role(tensors[1:]), *options)
    found, gate_logit, _ = schema.call(schema.lord_stack_forward, x, *args)
    return tuple(found), gate_logit


class LordStackFunction(torch.autograd.Function):
    """(weight, bias, s, per_sample, activation, x, A, B..., B'..., w1..., b1, w2, b2) -> (y..., gate_logit, u)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, ...]:
        """Run the opaque forward operation."""
        weight, bias, *rest = args
        x = rest[3]
        args = (x, weight, bias, *_by_role(rest[4:]), *rest[:3])
        y, gate_logit, u = schema.call(schema.lord_stack_forward, x, *args)
        return (*y, gate_logit, u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the backward pass needs: x (where it is read), u, gate_logit and the parameters."""
        ctx.mark_non_differentiable(output[-1])
        x, *parameters = inputs[5:]
        ctx.save_for_backward(x if ctx.needs_input_grad[6] else None, *output[-2:], inputs[0], *parameters)
        ctx.options = (*inputs[2:5], x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """Run the opaque backward operation for the roles that want a gradient."""
        x, gate_logit, u, weight, *parameters = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[5:])
        roles = _by_role(wanted[1:])
        needs = [wanted[0], *(any(role) if isinstance(role, list) else role for role in roles)]
        given = (list(grads[:-2]), grads[-2], x, gate_logit, u, weight, *_by_role(parameters), *ctx.options, needs)
        out = iter(schema.call(schema.lord_stack_backward, gate_logit, *given))
        found: list[Tensor | None] = [next(out) if wanted[0] else None]
        for role, needed in zip(roles, needs[1:], strict=True):
            count = len(role) if isinstance(role, list) else 1
            found += [next(out) if needed else None for _ in range(count)]
        return (None, None, None, None, None, *found)


def _by_role(flat: Sequence[Any]) -> list[Any]:
    """[A, B..., B'..., w1..., b1, w2, b2] with a list for each role that has a tensor a width."""
    runs = (len(flat) - 4) // 3
    lists = [list(flat[1 + i * runs : 1 + (i + 1) * runs]) for i in range(3)]
    return [flat[0], *lists, *flat[-3:]]


def _check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layers: Sequence[Branches],
    scaling: float,
    granularity: str,
    activation: str,
) -> None:
    if not layers:
        raise ValueError("layers is empty; expected the LoRD of at least one layer")
    first = layers[0]
    check_lord(x, *first, scaling, granularity, activation)
    (r, k), hidden = first.lord_A.shape, first.gate.w1.shape[0]
    for i, layer in enumerate(layers):
        n = layer.lord_B.shape[0]
        expected = ((r, k), (n, r), (n, r), (hidden, n), (hidden,), (hidden,), ())
        tensors = (*layer[:3], *layer.gate)
        if any(t.shape != shape for t, shape in zip(tensors, expected, strict=True)):
            raise ValueError(
                f"layers[{i}] has shapes {[tuple(t.shape) for t in tensors]} of A, B, B', w1, b1, w2, b2; "
                f"expected {list(expected)}, with r, K and H of layers[0]"
            )
    total = sum(layer.lord_B.shape[0] for layer in layers)
    check_tensor("weight", weight)
    check_shape("weight", weight, (total, k), "(sum of the layers' N, K)")
    _check_frozen("weight", weight, x)
    if bias is not None:
        check_tensor("bias", bias)
        check_shape("bias", bias, (total,), "(sum of the layers' N,)")
        _check_frozen("bias", bias, x)


def _check_frozen(name: str, t: Tensor, x: Tensor) -> None:
    if t.dtype != x.dtype:
        raise TypeError(f"{name} has dtype {t.dtype}; expected x's dtype, {x.dtype}")
    if t.device != x.device:
        raise ValueError(f"{name} is on {t.device}; expected x's device, {x.device}")
    if t.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name} requires a gradient; lord_stack is for frozen layers, use lord_linear for each")
