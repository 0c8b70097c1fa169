"""Gradients: an autograd.Function around the opaque forward and backward operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import schema


class LordFunction(torch.autograd.Function):
    """(x, weight, bias, A, B, B', w1, b1, w2, b2, scaling, per_sample, activation, backend) -> (y, gate_logit, u).

    For the backward pass it keeps x (where it is read), u, gate_logit and the parameters: nothing of size M x N or
    M x H.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Run the opaque forward operation."""
        return schema.lord_forward(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        """Keep what the backward pass needs."""
        _, gate_logit, u = output
        ctx.mark_non_differentiable(u)
        ctx.set_materialize_grads(False)
        x, weight, *parameters = inputs[:10]
        # Only weight's and A's gradients read x: with both frozen, as in an attack, keeping it is M x K for nothing.
        x_is_read = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]
        ctx.save_for_backward(x if x_is_read else None, gate_logit, u, weight, *parameters)
        ctx.options = (*inputs[10:13], x.dtype)
        ctx.backend = inputs[13]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_logit: Tensor | None, grad_u: None) -> tuple[Any, ...]:
        """Run the opaque backward operation for the inputs that want a gradient."""
        if grad_y is None and grad_logit is None:
            return (None,) * 14
        needs = list(ctx.needs_input_grad[:10])
        grads = iter(schema.lord_backward(grad_y, grad_logit, *ctx.saved_tensors, *ctx.options, needs, ctx.backend))
        return (*(next(grads) if wanted else None for wanted in needs), None, None, None, None)
