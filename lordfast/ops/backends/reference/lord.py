"""LoRD's forward and backward (Eq. 4-5) in plain PyTorch, with the gate's first layer folded onto the rank-r product.

W1 (s B u) = (s W1 B) u, so the gate costs O(r H) a token and the branch outputs O1 and O2 are never formed. The two
large products (x W^T and dY W) and the rank-r updates of their results run in x's dtype; u, the gate and the sums
behind the small gradients run in fp32 (fp64 for fp64 x).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .activation import activate, activate_backward
from .precision import compute_dtype, widest

INPUTS = ("x", "weight", "bias", "lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")


def lord_forward(
    x: Tensor,  # (..., K)
    weight: Tensor | None,  # (N, K)
    bias: Tensor | None,  # (N,)
    lord_A: Tensor,  # (r, K)
    lord_B: Tensor,  # (N, r)
    lord_B_adv: Tensor,  # (N, r)
    w1: Tensor,  # (H, N)
    b1: Tensor,  # (H,)
    w2: Tensor,  # (H,)
    b2: Tensor,  # ()
    scaling: float,
    per_sample: bool,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (..., N), gate_logit (...) or (batch,), u (..., r)."""
    lead, dt = x.shape[:-1], compute_dtype(x)
    x2 = x.reshape(lead.numel(), x.shape[-1])
    m, b = x2.shape[0], lord_B.to(dt)
    u = x2.to(dt) @ lord_A.to(dt).T
    z = torch.addmm(b1.to(dt), u, _fold(w1, b).T, alpha=scaling)
    logit = activate(z, activation) @ w2.to(dt) + b2.to(dt)
    if per_sample:
        # A sample without tokens gets the logit 0 (lambda 1/2), where a mean would be NaN.
        logit = _sum_samples(logit, x.shape[0]) / max(_tokens(m, x.shape[0]), 1)
    lam = torch.sigmoid(logit)
    if per_sample:
        lam = _spread(lam, m)
    # One rank-2r product adds both branches in place: neither O1 nor O2 ever exists at (M, N).
    e = torch.cat([u, lam[:, None] * u], dim=1).to(x.dtype)
    c = torch.cat([b, lord_B_adv.to(dt)], dim=1).mul_(scaling).to(x.dtype)
    y = e @ c.T if weight is None else F.linear(x2, weight, bias).addmm_(e, c.T)
    return y.reshape(*lead, y.shape[1]), logit if per_sample else logit.reshape(lead), u.reshape(*lead, u.shape[1])


def lord_backward(
    grad_y: Tensor | None,  # (..., N)
    grad_logit: Tensor | None,  # (...) or (batch,)
    x: Tensor | None,  # None where no wanted gradient reads it
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
    """The gradients of those INPUTS that `needs` marks, in that order; `dtype` is x's."""
    want = dict(zip(INPUTS, needs, strict=True))
    dt, n, r = u.dtype, lord_B.shape[0], lord_A.shape[0]
    m = u.numel() // r
    u2, a, b = u.reshape(m, r), lord_A.to(dt), lord_B.to(dt)
    lam = torch.sigmoid(gate_logit)
    lam_m = _spread(lam, m) if per_sample else lam.reshape(m)
    dy = u.new_zeros(m, n, dtype=dtype) if grad_y is None else grad_y.reshape(m, n)
    dy_up = dy.to(dt)

    c = torch.cat([b, lord_B_adv.to(dt)], dim=1).mul_(scaling)
    v1, v2 = _blocked_product(dy_up, c).split(r, dim=1)  # one pass over dY
    dlogit = _logit_gradient((v2 * u2).sum(1), lam, grad_logit, per_sample)
    p = _fold(w1, b)
    z = torch.addmm(b1.to(dt), u2, p.T, alpha=scaling)  # recomputed: storing it would cost M x H
    da = activate_backward(torch.outer(dlogit, w2.to(dt)), z, activation)

    grads: dict[str, Tensor] = {}
    if want["x"] or want["lord_A"]:
        du = torch.addcmul(v1, lam_m[:, None], v2).addmm_(da, p, alpha=scaling)
        if want["x"]:
            du_x, a_x = du.to(dtype), a.to(dtype)
            dx = du_x @ a_x if weight is None else (dy @ weight).addmm_(du_x, a_x)
            grads["x"] = dx.reshape(*u.shape[:-1], dx.shape[1])
        if want["lord_A"] and x is not None:
            grads["lord_A"] = du.T @ x.reshape(m, x.shape[-1]).to(dt)
    if want["weight"] and x is not None:
        grads["weight"] = dy.T @ x.reshape(m, x.shape[-1])
    if want["bias"]:
        grads["bias"] = dy_up.sum(0)
    if want["lord_B_adv"]:
        grads["lord_B_adv"] = (dy_up.T @ (lam_m[:, None] * u2)).mul_(scaling)
    if want["lord_B"] or want["w1"]:
        dp = (widest(da).T @ widest(u2)).to(dt)
        if want["lord_B"]:
            grads["lord_B"] = torch.addmm(dy_up.T @ u2, w1.to(dt).T, dp).mul_(scaling)  # B also feeds the gate
        if want["w1"]:
            grads["w1"] = (dp @ b.T).mul_(scaling)
    if want["b1"]:
        grads["b1"] = da.sum(0)
    if want["w2"]:
        grads["w2"] = activate(z, activation).T @ dlogit
    if want["b2"]:
        grads["b2"] = dlogit.sum()
    like = dict(zip(INPUTS[1:], (weight, bias, lord_A, lord_B, lord_B_adv, w1, b1, w2, b2), strict=True))
    return [_in_dtype_of(like.get(name), grads[name]) for name in INPUTS if want[name]]


def _in_dtype_of(parameter: Tensor | None, grad: Tensor) -> Tensor:
    return (grad if parameter is None else grad.to(parameter.dtype)).contiguous()


def _logit_gradient(dlam: Tensor, lam: Tensor, grad_logit: Tensor | None, per_sample: bool) -> Tensor:
    """The gradient of each token's own logit, (M,): through lambda in y, and what reaches gate_logit from outside."""
    m = dlam.shape[0]
    lam = lam if per_sample else lam.reshape(m)
    dlogit = torch.ops.aten.sigmoid_backward(_sum_samples(dlam, lam.shape[0]) if per_sample else dlam, lam)
    if grad_logit is not None:
        dlogit = dlogit + grad_logit.reshape(lam.shape)
    if per_sample:
        dlogit = _spread(dlogit / max(_tokens(m, lam.shape[0]), 1), m)
    return dlogit


def _fold(w1: Tensor, b: Tensor) -> Tensor:
    """W1 B, (H, r), in b's dtype; P is s times that.

    The fold carries its rounding errors to every token, and those of its gradient to whole rows of W1's, where they
    don't average out. Summed in fp32, over N and over M, they leave gate_logit and W1's gradient several times less
    exact than the unfolded formula does: hence `widest` for both.
    """
    return (widest(w1) @ widest(b)).to(b.dtype)


def _blocked_product(wide: Tensor, thin: Tensor, block: int = 64) -> Tensor:
    """wide @ thin, (M, N) @ (N, c), summed in blocks of N.

    BLAS adds the N products of a thin result one after the other. That costs more digits than the tree in which the
    unfolded formula's elementwise sum adds them, and dlam = rowsum(v2 * u) passes them on to the whole gate.
    """
    n = wide.shape[1]
    blocks = n // block
    if blocks < 2:
        return wide @ thin
    split = blocks * block
    left = wide[:, :split].unflatten(1, (blocks, block)).transpose(0, 1)
    product = torch.bmm(left, thin[:split].unflatten(0, (blocks, block))).sum(0)
    return product if split == n else product.addmm_(wide[:, split:], thin[split:])


def _tokens(m: int, batch: int) -> int:
    return m // batch if batch else 0


def _sum_samples(per_token: Tensor, batch: int) -> Tensor:
    """(M,) -> (batch,)."""
    return per_token.reshape(batch, _tokens(per_token.shape[0], batch)).sum(1)


def _spread(per_sample: Tensor, m: int) -> Tensor:
    """(batch,) -> (M,): every token gets its sample's value."""
    batch = per_sample.shape[0]
    return per_sample[:, None].expand(batch, _tokens(m, batch)).reshape(m)
