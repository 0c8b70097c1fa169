"""LoRD's forward and backward on contiguous CPU tensors: the base product by torch, the rest by one native call."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lordfast.ops import _native

from .._base import Kernel
from .dtypes import DTYPES


def _refuses_dtype(dtype: torch.dtype) -> str | None:
    return None if dtype in DTYPES else f"it takes x in float32, bfloat16 and float16 only, this is {dtype}"


def _forward_refuses(x: Tensor, *rest: object) -> str | None:
    return _refuses_dtype(x.dtype)


def _backward_refuses(*args: object) -> str | None:
    dtype = args[-2]
    assert isinstance(dtype, torch.dtype)
    return _refuses_dtype(dtype)


def _fp32(t: Tensor) -> Tensor:
    return t if t.dtype is torch.float32 and t.is_contiguous() else t.to(torch.float32).contiguous()


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
    *lead, k = x.shape
    n, r = lord_B.shape
    # Named, here and below, so that copies outlive the call that reads their pointers.
    x = x.contiguous()
    y = x.new_empty((*lead, n)) if weight is None else F.linear(x, weight, bias).contiguous()
    u = torch.empty((*lead, r), dtype=torch.float32)
    gate_logit = torch.empty(lead[:1] if per_sample else lead, dtype=torch.float32)
    parameters = [_fp32(t) for t in (lord_A, lord_B, lord_B_adv, w1, b1, w2, b2)]
    _native.C.cpu_lord_forward(
        x.data_ptr(),
        y.data_ptr(),
        gate_logit.data_ptr(),
        u.data_ptr(),
        (*_batch_and_tokens(u, per_sample), k, n, r, w1.shape[0]),
        tuple([t.data_ptr() for t in parameters]),
        DTYPES[x.dtype],
        activation,
        scaling,
        per_sample,
        weight is not None,
        torch.get_num_threads(),
    )
    return y, gate_logit, u


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
    lead, n, (r, k) = u.shape[:-1], lord_B.shape[0], lord_A.shape
    batch, tokens = _batch_and_tokens(u, per_sample)
    if grad_y is not None:
        grad_y = grad_y.contiguous()
    if grad_logit is not None:
        grad_logit = grad_logit.contiguous()
    if x is not None:
        x = x.contiguous()
    gate_logit, u = gate_logit.contiguous(), u.contiguous()

    dx, has_base = None, False
    if needs[0]:
        if grad_y is not None and weight is not None:
            dx, has_base = torch.mm(grad_y.view(batch * tokens, n), weight).view(*lead, k), True
        else:
            dx = u.new_empty((*lead, k), dtype=dtype)
    base = _base_gradients(grad_y, x, weight, bias, batch * tokens, needs)
    originals = (lord_A, lord_B, lord_B_adv, w1, b1, w2, b2)
    parameters = [_fp32(t) for t in originals]
    small = [torch.empty_like(p) if wanted else None for p, wanted in zip(parameters, needs[3:], strict=True)]
    _native.C.cpu_lord_backward(
        _address(grad_y),
        _address(grad_logit),
        _address(x),
        gate_logit.data_ptr(),
        u.data_ptr(),
        tuple([_address(t) for t in (dx, *small)]),
        (batch, tokens, k, n, r, w1.shape[0]),
        tuple([t.data_ptr() for t in parameters]),
        DTYPES[dtype],
        activation,
        scaling,
        per_sample,
        has_base,
        torch.get_num_threads(),
    )
    small = [None if g is None else g.to(t.dtype) for g, t in zip(small, originals, strict=True)]
    return [g for g in (dx, *base, *small) if g is not None]


def _base_gradients(
    grad_y: Tensor | None, x: Tensor | None, weight: Tensor | None, bias: Tensor | None, m: int, needs: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of weight and bias, None where not wanted."""
    dw = db = None
    if needs[1] and weight is not None and x is not None:
        n, k = weight.shape
        dw = torch.zeros_like(weight) if grad_y is None else torch.mm(grad_y.view(m, n).T, x.view(m, k))
    if needs[2] and bias is not None:
        n = bias.shape[0]
        db = torch.zeros_like(bias) if grad_y is None else grad_y.view(m, n).float().sum(0).to(bias.dtype)
    return dw, db


def _batch_and_tokens(u: Tensor, per_sample: bool) -> tuple[int, int]:
    rows = u.numel() // u.shape[-1]
    if not per_sample:
        return 1, rows
    batch = u.shape[0]
    return batch, rows // batch if batch else 0


def _address(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


FORWARD = Kernel(_forward, _forward_refuses)
BACKWARD = Kernel(_backward, _backward_refuses)
