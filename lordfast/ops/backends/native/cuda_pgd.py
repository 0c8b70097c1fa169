"""One projected-gradient step by the compiled extension, on contiguous CUDA tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lordfast.ops import _native

from .._base import Kernel
from . import cuda_build
from .cpu_pgd import refuses
from .dtypes import DTYPES


def _refuses(x_adv: Tensor, *rest: Any) -> str | None:
    return refuses(x_adv, *rest) or cuda_build.why_not_on(x_adv.device)


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
    # Named, so that copies made here outlive the call that reads their pointers. Freed afterwards, their memory goes to
    # later work on the same stream only.
    x, x0, g = x_adv.contiguous(), x_orig.contiguous(), grad.contiguous()
    batch = x.shape[0]
    numel = x.numel() // batch
    size = _native.C.cuda_pgd_step_workspace(norm, batch, numel)
    workspace = torch.empty(size, dtype=torch.uint8, device=x.device)
    _native.C.cuda_pgd_step(
        x.data_ptr(),
        x0.data_ptr(),
        g.data_ptr(),
        out.data_ptr(),
        batch,
        numel,
        DTYPES[x.dtype],
        norm,
        step_size,
        eps,
        low,
        high,
        direction,
        workspace.data_ptr(),
        size,
        *cuda_build.queue_of(x.device),
    )


KERNEL = Kernel(_step, _refuses)
