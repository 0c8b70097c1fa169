"""One projected-gradient step by the compiled extension, on contiguous CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from lordfast.ops import _native

from .._base import Kernel
from .dtypes import DTYPES


def refuses(x_adv: Tensor, x_orig: Tensor, grad: Tensor, out: Tensor, *numbers: object) -> str | None:
    """Why the step can't be taken, on whatever device; None if it can."""
    if x_adv.dtype not in DTYPES:
        return f"it steps float32, bfloat16 and float16 only, these are {x_adv.dtype}"
    if not out.is_contiguous():
        return "it writes contiguous tensors only, out is not"
    if _overlap(x_adv, out) and x_adv.data_ptr() != out.data_ptr():
        return "out overlaps x_adv without being x_adv"
    if _overlap(x_orig, out) or _overlap(grad, out):
        return "out overlaps x_orig or grad"
    return None


def _step(
    x_adv: Tensor,
    x_orig: Tensor,
    grad: Tensor,
    out: Tensor,
    step_size: float,
    eps: float,
    low: float,
    high: float,
    norm: str,
    direction: int,
) -> None:
    if not x_adv.numel():
        return
    # Named, so that copies made here outlive the call that reads their pointers.
    x, x0, g = x_adv.contiguous(), x_orig.contiguous(), grad.contiguous()
    batch = x.shape[0]
    _native.C.pgd_step(
        x.data_ptr(),
        x0.data_ptr(),
        g.data_ptr(),
        out.data_ptr(),
        batch,
        x.numel() // batch,
        DTYPES[x.dtype],
        norm,
        step_size,
        eps,
        low,
        high,
        direction,
        torch.get_num_threads(),
    )


def _overlap(t: Tensor, out: Tensor) -> bool:
    """Whether the kernel would read `t` from memory that it writes; a `t` that isn't contiguous is copied first."""
    return t.is_contiguous() and abs(t.data_ptr() - out.data_ptr()) < out.numel() * out.element_size()


KERNEL = Kernel(_step, refuses)
