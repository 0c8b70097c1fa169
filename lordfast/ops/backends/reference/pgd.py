"""One projected-gradient step (Eq. 6) in plain PyTorch: linf in fp32 (fp64 for fp64 images), l2 in fp64."""

from __future__ import annotations

import torch
from torch import Tensor

from .precision import compute_dtype, widest


def pgd_step(
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
    """Write the next iterate into `out`, which may be any of the inputs."""
    step = _linf if norm == "linf" else _l2
    out.copy_(step(x_adv, x_orig, grad, direction * step_size, eps).clamp_(low, high))


def _linf(x_adv: Tensor, x_orig: Tensor, grad: Tensor, step: float, eps: float) -> Tensor:
    x, x0 = x_adv.to(compute_dtype(x_adv)), x_orig.to(compute_dtype(x_adv))
    # Not torch.sign, which promises nothing for NaN: a NaN gradient must leave its pixel where it is.
    sign = (grad > 0).to(x.dtype) - (grad < 0).to(x.dtype)
    return x.add(sign, alpha=step).clamp_(x0 - eps, x0 + eps)


def _l2(x_adv: Tensor, x_orig: Tensor, grad: Tensor, step: float, eps: float) -> Tensor:
    # Wide throughout: in fp32 the squares of a small gradient vanish, and its sample would not move.
    x, x0, g = widest(x_adv), widest(x_orig), widest(grad)
    length = _sample_norm(g)
    usable = (length > 0) & length.isfinite()
    unit = torch.where(usable, g / torch.where(usable, length, 1), 0)
    d = x + step * unit - x0
    far = _sample_norm(d)
    return x0 + d * torch.where(far > eps, eps / far, 1)


def _sample_norm(t: Tensor) -> Tensor:
    """||t||_2 of each sample, shaped to broadcast against t."""
    dims = list(range(1, t.ndim))
    return torch.linalg.vector_norm(t, dim=dims, keepdim=True) if dims else t.abs()
