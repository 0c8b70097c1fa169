"""Gradients: an autograd.Function around the opaque forward and backward operations."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from . import schema


def is_differentiated(tensors: Iterable[Tensor | None]) -> bool:
    """Whether gradients of `tensors` are recorded, or tangents pass.

    The opaque operations know nothing of tangents and would drop them; the Functions raise NotImplementedError.
    """
    if forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply(*args)`, quicker outside torch.compile and functorch.

    A Function with a `setup_context`, which both of them want, has its forward's signature inspected at every call: a
    third of a small layer's time.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return _without_setup(function).apply(*args)


@cache
def _without_setup(function: Any) -> type[torch.autograd.Function]:
    def forward(ctx: Any, *args: Any) -> Any:
        output = function.forward(*args)
        function.setup_context(ctx, args, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(function.backward)}
    return type(function.__name__, (torch.autograd.Function,), members)


class LordFunction(torch.autograd.Function):
    """(x, weight, bias, A, B, B', w1, b1, w2, b2, scaling, per_sample, activation, backend) -> (y, gate_logit, u).

    For the backward pass it keeps x (where it is read), u, gate_logit and the parameters: nothing of size M x N or
    M x H.
    """

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Run the opaque forward operation."""
        return schema.call(schema.lord_forward, args[0], *args)

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
        saved = ctx.saved_tensors
        args = (grad_y, grad_logit, *saved, *ctx.options, needs, ctx.backend)
        grads = iter(schema.call(schema.lord_backward, saved[1], *args))
        return (*(next(grads) if wanted else None for wanted in needs), None, None, None, None)


class LordQkvFunction(torch.autograd.Function):
    """(x, nine tensors for each of q, k, v, the options) -> (three y, three gate_logit, three u).

    The gradients are three lord_backward operations: each reads its own dY, and only dx has something to share.
    """

    @staticmethod
    def forward(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        """Run the opaque forward operation."""
        args = (x, *schema.by_role(rest[:27]), *rest[27:])
        y, gate_logit, u = schema.call(schema.lord_qkv_forward, x, *args)
        return (*y, *gate_logit, *u)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Keep what the backward pass needs."""
        ctx.mark_non_differentiable(*output[6:])
        ctx.set_materialize_grads(False)
        # weight and A of each projection: only their gradients read x.
        x_is_read = any(ctx.needs_input_grad[1 + 9 * p + i] for p in range(3) for i in (0, 2))
        ctx.save_for_backward(inputs[0] if x_is_read else None, *output[3:], *inputs[1:28])
        ctx.options = (*inputs[28:31], inputs[0].dtype)
        ctx.backend = inputs[31]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """Run the opaque backward operation of each projection that got a gradient; dx is their sum."""
        x, *saved = ctx.saved_tensors
        dx: Tensor | None = None
        parameters: list[Tensor | None] = []
        for p in range(3):
            wanted = list(ctx.needs_input_grad[1 + 9 * p : 10 + 9 * p])
            needs = [ctx.needs_input_grad[0], *wanted]
            grad_y, grad_logit = grads[p], grads[3 + p]
            if (grad_y is None and grad_logit is None) or not any(needs):
                parameters += [None] * 9
                continue
            gate_logit, u, own = saved[p], saved[3 + p], saved[6 + 9 * p : 15 + 9 * p]
            args = (grad_y, grad_logit, x, gate_logit, u, *own, *ctx.options, needs, ctx.backend)
            out = iter(schema.call(schema.lord_backward, gate_logit, *args))
            if needs[0]:
                one = next(out)
                dx = one if dx is None else dx + one
            parameters += [next(out) if needed else None for needed in wanted]
        return (dx, *parameters, None, None, None, None)
