"""The operations' schemas and fakes, registered with torch once; what runs them is `dispatch`'s business.

`define` + `impl` and not `custom_op`: a call costs a fraction, and the adapter makes hundreds a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .backends._stack import lord_stack_backward as lord_stack_backward_kernel
from .backends._stack import lord_stack_forward as lord_stack_forward_kernel
from .dispatch import run

_PARAMETERS = (
    "Tensor? weight, Tensor? bias, Tensor lord_A, Tensor lord_B, Tensor lord_B_adv, "
    "Tensor w1, Tensor b1, Tensor w2, Tensor b2, float scaling, bool per_sample, str activation"
)

_library = torch.library.Library("lordfast", "DEF")
_library.define(f"lord_forward(Tensor x, {_PARAMETERS}, str backend) -> (Tensor y, Tensor gate_logit, Tensor u)")
_library.define(
    f"lord_backward(Tensor? grad_y, Tensor? grad_logit, Tensor? x, Tensor gate_logit, Tensor u, {_PARAMETERS}, "
    "ScalarType dtype, bool[] needs, str backend) -> Tensor[]"
)
_library.define(
    "lord_qkv_forward(Tensor x, Tensor[] weight, Tensor[] bias, Tensor[] lord_A, Tensor[] lord_B, Tensor[] lord_B_adv, "
    "Tensor[] w1, Tensor[] b1, Tensor[] w2, Tensor[] b2, float scaling, bool per_sample, str activation, str backend) "
    "-> (Tensor[] y, Tensor[] gate_logit, Tensor[] u)"
)
_STACK = (
    "Tensor weight, {bias}Tensor lord_A, Tensor[] lord_B, Tensor[] lord_B_adv, Tensor[] w1, Tensor b1, Tensor w2, "
    "Tensor b2, float scaling, bool per_sample, str activation"
)
_library.define(
    f"lord_stack_forward(Tensor x, {_STACK.format(bias='Tensor? bias, ')}) -> (Tensor[] y, Tensor gate_logit, Tensor u)"
)
_library.define(
    "lord_stack_backward(Tensor[] grad_y, Tensor grad_logit, Tensor? x, Tensor gate_logit, Tensor u, "
    f"{_STACK.format(bias='')}, ScalarType dtype, bool[] needs) -> Tensor[]"
)
_library.define(
    "pgd_step(Tensor x_adv, Tensor x_orig, Tensor grad, Tensor(a!) out, float step_size, float eps, float low, "
    "float high, str norm, int direction, str backend) -> ()"
)


def _outside_autocast(op: str, device: str, args: tuple[Any, ...]) -> Any:
    # Autocast reaches into an opaque op's torch calls and would round the gate's fp32 products to half precision.
    *arguments, backend = args
    if torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return run(op, backend, *arguments)
    return run(op, backend, *arguments)


def _lord_forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _outside_autocast("lord_forward", x.device.type, (x, *rest))


def _lord_qkv_forward(x: Tensor, *rest: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    return _outside_autocast("lord_qkv_forward", x.device.type, (x, *rest))


def _lord_backward(
    grad_y: Tensor | None, grad_logit: Tensor | None, x: Tensor | None, gate_logit: Tensor, *rest: Any
) -> list[Tensor]:
    return _outside_autocast("lord_backward", gate_logit.device.type, (grad_y, grad_logit, x, gate_logit, *rest))


def _lord_stack_forward(x: Tensor, *rest: Any) -> tuple[list[Tensor], Tensor, Tensor]:
    with torch.autocast(x.device.type, enabled=False):
        return lord_stack_forward_kernel(x, *rest)


def _lord_stack_backward(grad_y: list[Tensor], *rest: Any) -> list[Tensor]:
    with torch.autocast(grad_y[0].device.type, enabled=False):
        return lord_stack_backward_kernel(grad_y, *rest)


def _pgd_step(x_adv: Tensor, x_orig: Tensor, grad: Tensor, out: Tensor, *rest: Any) -> None:
    _outside_autocast("pgd_step", x_adv.device.type, (x_adv, x_orig, grad, out, *rest))
    if not out.is_inference():
        # A kernel that writes through a pointer leaves no trace: without this, autograd would go on with a saved `out`
        # that has changed.
        torch.autograd.graph.increment_version(out)


_library.impl("lord_forward", _lord_forward, "CompositeExplicitAutograd")
_library.impl("lord_qkv_forward", _lord_qkv_forward, "CompositeExplicitAutograd")
_library.impl("lord_backward", _lord_backward, "CompositeExplicitAutograd")
_library.impl("lord_stack_forward", _lord_stack_forward, "CompositeExplicitAutograd")
_library.impl("lord_stack_backward", _lord_stack_backward, "CompositeExplicitAutograd")
_library.impl("pgd_step", _pgd_step, "CompositeExplicitAutograd")


@torch.library.register_fake("lordfast::lord_forward", lib=_library)
def _lord_forward_fake(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lord_A: Tensor,
    lord_B: Tensor,
    lord_B_adv: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    scaling: float,
    per_sample: bool,
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    lead = x.shape[:-1]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.new_empty((*lead, lord_B.shape[0]))
    gate_logit = x.new_empty(lead[:1] if per_sample else lead, dtype=dtype)
    return y, gate_logit, x.new_empty((*lead, lord_A.shape[0]), dtype=dtype)


@torch.library.register_fake("lordfast::lord_qkv_forward", lib=_library)
def _lord_qkv_forward_fake(
    x: Tensor, weight: list[Tensor], bias: list[Tensor], *rest: Any
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    *lists, scaling, per_sample, activation, backend = rest
    calls = [
        _lord_forward_fake(x, None, None, *(t[p] for t in lists), scaling, per_sample, activation, backend)
        for p in range(3)
    ]
    y, gate_logit, u = map(list, zip(*calls, strict=True))
    return y, gate_logit, u


@torch.library.register_fake("lordfast::lord_backward", lib=_library)
def _lord_backward_fake(
    grad_y: Tensor | None,
    grad_logit: Tensor | None,
    x: Tensor | None,
    gate_logit: Tensor,
    u: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lord_A: Tensor,
    lord_B: Tensor,
    lord_B_adv: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    scaling: float,
    per_sample: bool,
    activation: str,
    dtype: torch.dtype,
    needs: list[bool],
    backend: str,
) -> list[Tensor]:
    dx = [u.new_empty((*u.shape[:-1], lord_A.shape[1]), dtype=dtype)] if needs[0] else []
    parameters = (weight, bias, lord_A, lord_B, lord_B_adv, w1, b1, w2, b2)
    return dx + [
        t.new_empty(t.shape) for t, wanted in zip(parameters, needs[1:], strict=True) if wanted and t is not None
    ]


@torch.library.register_fake("lordfast::lord_stack_forward", lib=_library)
def _lord_stack_forward_fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lord_A: Tensor,
    lord_B: list[Tensor],
    lord_B_adv: list[Tensor],
    w1: list[Tensor],
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    scaling: float,
    per_sample: bool,
    activation: str,
) -> tuple[list[Tensor], Tensor, Tensor]:
    lead, (layers, r, _) = x.shape[:-1], lord_A.shape
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = [x.new_empty((b.shape[0], *lead, b.shape[1])) for b in lord_B]
    gate_logit = x.new_empty((layers, *(lead[:1] if per_sample else lead)), dtype=dtype)
    return y, gate_logit, x.new_empty((layers, lead.numel(), r), dtype=dtype)


@torch.library.register_fake("lordfast::lord_stack_backward", lib=_library)
def _lord_stack_backward_fake(
    grad_y: list[Tensor],
    grad_logit: Tensor,
    x: Tensor | None,
    gate_logit: Tensor,
    u: Tensor,
    weight: Tensor,
    lord_A: Tensor,
    lord_B: list[Tensor],
    lord_B_adv: list[Tensor],
    w1: list[Tensor],
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    scaling: float,
    per_sample: bool,
    activation: str,
    dtype: torch.dtype,
    needs: list[bool],
) -> list[Tensor]:
    dx = [u.new_empty((*grad_y[0].shape[1:-1], lord_A.shape[2]), dtype=dtype)] if needs[0] else []
    parameters = ([lord_A], lord_B, lord_B_adv, w1, [b1], [w2], [b2])
    return dx + [
        t.new_empty(t.shape) for role, wanted in zip(parameters, needs[1:], strict=True) if wanted for t in role
    ]


@torch.library.register_fake("lordfast::pgd_step", lib=_library)
def _pgd_step_fake(x_adv: Tensor, *rest: Any) -> None:
    return None


lord_forward = torch.ops.lordfast.lord_forward.default
lord_qkv_forward = torch.ops.lordfast.lord_qkv_forward.default
lord_backward = torch.ops.lordfast.lord_backward.default
lord_stack_forward = torch.ops.lordfast.lord_stack_forward.default
lord_stack_backward = torch.ops.lordfast.lord_stack_backward.default
pgd_step = torch.ops.lordfast.pgd_step.default


_KERNELS: dict[Any, Callable[..., Any]] = {
    lord_forward: _lord_forward,
    lord_qkv_forward: _lord_qkv_forward,
    lord_backward: _lord_backward,
    lord_stack_forward: _lord_stack_forward,
    lord_stack_backward: _lord_stack_backward,
}


def call(op: Any, like: Tensor, *args: Any) -> Any:
    """`op(*args)`, past torch's dispatcher where nothing is there that would want to see the operation pass.

    The dispatcher takes a fifth of a small layer's time. It is left out in plain eager mode only: not under
    torch.compile, not for a profiler, a dispatch mode or functorch, nor for tensors (judged by `like`, one of `args`)
    of another kind. Gradients are the callers' business: they call it where no graph is recorded.
    """
    seen = (
        torch.compiler.is_compiling()
        or (type(like) is not Tensor and type(like) is not torch.nn.Parameter)
        or like.is_meta
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch.autograd._profiler_enabled()
    )
    return op(*args) if seen else _KERNELS[op](*args)


def by_role(tensors: tuple[Tensor | None, ...]) -> list[list[Tensor | None]]:
    """Projection after projection, nine tensors each, as lists by role; a role that is None everywhere is empty."""
    roles = [list(tensors[i::9]) for i in range(9)]
    return [[] if role[0] is None else role for role in roles]
