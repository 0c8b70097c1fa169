"""LoRD's forward and backward on CUDA tensors: torch's own products for the base layer, the extension for the rest.

The base layer's x W^T and dY W go to the vendor's library, through torch; the extension adds the rank-r updates to
their results in place, and does everything else: u, the gate, and the gradients of LoRD's own parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lordfast.ops import _native

from .._base import Kernel
from . import cuda_build
from .dtypes import DTYPES

MAX_RANK = 64
_NAMES = ("lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")


def _why_not(dtype: torch.dtype, parameters: tuple[Tensor, ...]) -> str | None:
    if dtype not in DTYPES:
        return f"it takes x in float32, bfloat16 and float16 only, this is {dtype}"
    for name, t in zip(_NAMES, parameters, strict=True):
        if t.dtype != torch.float32:
            return f"it takes LoRD's parameters in float32 only, {name} is {t.dtype}"
    if parameters[0].shape[0] > MAX_RANK:
        return f"it takes ranks up to {MAX_RANK}, this is {parameters[0].shape[0]}"
    return cuda_build.why_not_on(parameters[0].device)


def _forward_refuses(x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: object) -> str | None:
    return _why_not(x.dtype, rest[:7])  # type: ignore[arg-type]


def _backward_refuses(*args: object) -> str | None:
    return _why_not(args[17], args[7:14])  # type: ignore[arg-type]


def _forward(
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
) -> tuple[Tensor, Tensor, Tensor]:
    lead, (r, k), n = x.shape[:-1], lord_A.shape, lord_B.shape[0]
    m = lead.numel()
    x2 = x.reshape(m, k).contiguous()
    y = x.new_empty(m, n) if weight is None else F.linear(x2, weight, bias)
    u = x.new_empty(m, r, dtype=torch.float32)
    gate_logit = x.new_empty(lead[:1] if per_sample else lead, dtype=torch.float32)
    parameters = _contiguous(lord_A, lord_B, lord_B_adv, w1, b1, w2, b2)
    sizes = (m, k, n, r, w1.shape[0], lead[0] if per_sample else 0)
    size = _native.C.cuda_lord_forward_workspace(sizes)
    workspace = x.new_empty(size, dtype=torch.uint8)
    _native.C.cuda_lord_forward(
        x2.data_ptr(),
        y.data_ptr(),
        u.data_ptr(),
        gate_logit.data_ptr(),
        [t.data_ptr() for t in parameters],
        sizes,
        DTYPES[x.dtype],
        activation,
        scaling,
        weight is not None,
        workspace.data_ptr(),
        size,
        *cuda_build.queue_of(x.device),
    )
    return y.view(*lead, n), gate_logit, u.view(*lead, r)


def _backward(
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
) -> list[Tensor]:
    lead, (r, k), n = u.shape[:-1], lord_A.shape, lord_B.shape[0]
    m = lead.numel()
    wants_x, wants_weight, wants_bias, *wanted = needs
    dy = None if grad_y is None else grad_y.reshape(m, n).contiguous()
    x2 = None if x is None else x.reshape(m, k).contiguous()
    dg = None if grad_logit is None else grad_logit.contiguous()
    logit, u2 = gate_logit.contiguous(), u.contiguous()
    parameters = _contiguous(lord_A, lord_B, lord_B_adv, w1, b1, w2, b2)

    dx, accumulate = None, False
    if wants_x and dy is not None and weight is not None:
        dx, accumulate = dy @ weight, True
    elif wants_x:
        dx = u.new_empty(m, k, dtype=dtype)
    grads = [torch.empty_like(t) if want else None for t, want in zip(parameters, wanted, strict=True)]
    if wants_x or any(wanted):
        sizes = (m, k, n, r, w1.shape[0], lead[0] if per_sample else 0)
        size = _native.C.cuda_lord_backward_workspace(sizes, DTYPES[dtype], dy is not None, [wants_x, *wanted])
        workspace = u.new_empty(size, dtype=torch.uint8)
        _native.C.cuda_lord_backward(
            _address(dy),
            _address(dg),
            _address(x2),
            logit.data_ptr(),
            u2.data_ptr(),
            [t.data_ptr() for t in parameters],
            [_address(dx), *map(_address, grads)],
            sizes,
            DTYPES[dtype],
            activation,
            scaling,
            accumulate,
            workspace.data_ptr(),
            size,
            *cuda_build.queue_of(u.device),
        )
    found = [None if dx is None else dx.view(*lead, k)]
    # The frozen layer's own gradients, which nobody asks for in training, are torch's.
    if wants_weight and weight is not None:
        found.append(torch.zeros_like(weight) if dy is None or x2 is None else dy.T @ x2)
    if wants_bias and bias is not None:
        found.append(torch.zeros_like(bias) if dy is None else dy.float().sum(0).to(dtype))
    return [t for t in (*found, *grads) if t is not None]


def _contiguous(*parameters: Tensor) -> list[Tensor]:
    return [t.contiguous() for t in parameters]


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


FORWARD = Kernel(_forward, _forward_refuses)
BACKWARD = Kernel(_backward, _backward_refuses)
