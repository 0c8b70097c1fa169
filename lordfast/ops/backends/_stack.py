"""LoRD's forward and backward for a stack of layers that read the same input, in batched products (Eq. 4-5).

The layers differ in nothing but their width N, and those of one width stand side by side: everything that has N in it
is done a width at a time, the rest for all of them at once. Precisions are those of `lord_forward`. The products are
PyTorch's on every device, whatever backend is forced.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .reference.activation import activate, activate_backward
from .reference.precision import compute_dtype, widest

INPUTS = ("x", "lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")


def lord_stack_forward(
    x: Tensor,  # (..., K)
    weight: Tensor,  # (sum of N, K)
    bias: Tensor | None,  # (sum of N,)
    lord_A: Tensor,  # (L, r, K)
    lord_B: Sequence[Tensor],  # a width each: (l, N, r)
    lord_B_adv: Sequence[Tensor],  # (l, N, r)
    w1: Sequence[Tensor],  # (l, H, N)
    b1: Tensor,  # (L, H)
    w2: Tensor,  # (L, H)
    b2: Tensor,  # (L,)
    scaling: float,
    per_sample: bool,
    activation: str,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """y, a width each (l, ..., N); gate_logit (L, ...) or (L, batch); u (L, M, r)."""
    lead, dt = x.shape[:-1], compute_dtype(x)
    layers, r, k = lord_A.shape
    x2 = x.reshape(lead.numel(), k)
    m = x2.shape[0]
    u = (x2.to(dt) @ lord_A.reshape(layers * r, k).to(dt).T).view(m, layers, r).transpose(0, 1).contiguous()
    z = torch.baddbmm(b1.to(dt)[:, None], u, _folds(w1, lord_B, dt).mT, alpha=scaling)
    logit = torch.baddbmm(b2.to(dt)[:, None, None], activate(z, activation), w2.to(dt)[:, :, None]).squeeze(2)
    if per_sample:
        logit = logit.unflatten(1, (lead[0], -1)).mean(2) if m else logit.new_zeros(layers, lead[0])
    lam = _of_tokens(torch.sigmoid(logit), m)
    e = torch.cat([u, lam[:, :, None] * u], dim=2).to(x.dtype)
    base, y, column, first = F.linear(x2, weight, bias), [], 0, 0
    for b, b_adv in zip(lord_B, lord_B_adv, strict=True):
        count, n = b.shape[:2]
        mine = base[:, column : column + count * n].unflatten(1, (count, n)).transpose(0, 1)
        both = torch.baddbmm(mine, e[first : first + count], _branches(b, b_adv, scaling, dt).to(x.dtype).mT)
        y.append(both.reshape(count, *lead, n))
        column, first = column + count * n, first + count
    return y, logit if per_sample else logit.reshape(layers, *lead), u


def lord_stack_backward(
    grad_y: Sequence[Tensor],  # a width each: (l, ..., N)
    grad_logit: Tensor,  # (L, ...) or (L, batch)
    x: Tensor | None,  # None where lord_A wants no gradient
    gate_logit: Tensor,
    u: Tensor,
    weight: Tensor,
    lord_A: Tensor,
    lord_B: Sequence[Tensor],
    lord_B_adv: Sequence[Tensor],
    w1: Sequence[Tensor],
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    scaling: float,
    per_sample: bool,
    activation: str,
    dtype: torch.dtype,
    needs: list[bool],
) -> list[Tensor]:
    """The gradients of those INPUTS that `needs` marks, in that order; for B, B' and w1 one a width."""
    want = dict(zip(INPUTS, needs, strict=True))
    dt, (layers, m, r), k = u.dtype, u.shape, lord_A.shape[2]
    counts = [b.shape[0] for b in lord_B]
    dy = [g.reshape(b.shape[0], m, b.shape[1]) for g, b in zip(grad_y, lord_B, strict=True)]
    dy_up = [g.to(dt) for g in dy]
    branches = [_branches(b, b_adv, scaling, dt) for b, b_adv in zip(lord_B, lord_B_adv, strict=True)]
    v1, v2 = torch.cat([_blocked(g, c) for g, c in zip(dy_up, branches, strict=True)]).split(r, dim=2)
    lam = torch.sigmoid(gate_logit).reshape(layers, gate_logit[0].numel())
    dlam = (v2 * u).sum(2)
    if per_sample and m:
        dlam = dlam.unflatten(1, (lam.shape[1], -1)).sum(2)
    dlogit = torch.ops.aten.sigmoid_backward(dlam, lam) + grad_logit.reshape(lam.shape) if m else dlam
    if per_sample and m:
        dlogit = _of_tokens(dlogit / (m // lam.shape[1]), m)
    lam = _of_tokens(lam, m)
    p = _folds(w1, lord_B, dt)
    z = torch.baddbmm(b1.to(dt)[:, None], u, p.mT, alpha=scaling)
    da = activate_backward(dlogit[:, :, None] * w2.to(dt)[:, None], z, activation)

    grads: dict[str, list[Tensor]] = {}
    if want["x"] or want["lord_A"]:
        du = torch.baddbmm(torch.addcmul(v1, lam[:, :, None], v2), da, p, alpha=scaling)
        du = du.transpose(0, 1).reshape(m, layers * r)
        if want["x"]:
            wide = torch.cat([g.transpose(0, 1).flatten(1) for g in dy], dim=1)
            dx = (wide @ weight).addmm_(du.to(dtype), lord_A.reshape(layers * r, k).to(dtype))
            grads["x"] = [dx.reshape(*grad_y[0].shape[1:-1], k)]
        if want["lord_A"] and x is not None:
            grads["lord_A"] = [(du.T @ x.reshape(m, k).to(dt)).reshape(layers, r, k)]
    us, gated = u.split(counts), (lam[:, :, None] * u).split(counts)
    if want["lord_B_adv"]:
        grads["lord_B_adv"] = [torch.bmm(g.mT, t).mul_(scaling) for g, t in zip(dy_up, gated, strict=True)]
    if want["lord_B"] or want["w1"]:
        dp = torch.bmm(widest(da).mT, widest(u)).to(dt).split(counts)
        if want["lord_B"]:
            grads["lord_B"] = [
                torch.baddbmm(torch.bmm(g.mT, t), w.to(dt).mT, d).mul_(scaling)  # B also feeds the gate
                for g, t, w, d in zip(dy_up, us, w1, dp, strict=True)
            ]
        if want["w1"]:
            grads["w1"] = [torch.bmm(d, b.to(dt).mT).mul_(scaling) for d, b in zip(dp, lord_B, strict=True)]
    if want["b1"]:
        grads["b1"] = [da.sum(1)]
    if want["w2"]:
        grads["w2"] = [torch.bmm(activate(z, activation).mT, dlogit[:, :, None]).squeeze(2)]
    if want["b2"]:
        grads["b2"] = [dlogit.sum(1)]
    types = dict(zip(INPUTS[1:], (lord_A, lord_B[0], lord_B_adv[0], w1[0], b1, w2, b2), strict=True))
    return [
        (g if name == "x" else g.to(types[name].dtype)).contiguous()
        for name in INPUTS
        if want[name]
        for g in grads[name]
    ]


def _folds(w1: Sequence[Tensor], lord_B: Sequence[Tensor], dt: torch.dtype) -> Tensor:
    """W1 B of every layer, (L, H, r); in fp64 for the reason that `lord_forward`'s fold has."""
    return torch.cat([torch.bmm(widest(w.to(dt)), widest(b.to(dt))).to(dt) for w, b in zip(w1, lord_B, strict=True)])


def _branches(b: Tensor, b_adv: Tensor, scaling: float, dt: torch.dtype) -> Tensor:
    """C = s [B, B'], (l, N, 2r)."""
    return torch.cat([b.to(dt), b_adv.to(dt)], dim=2).mul_(scaling)


def _blocked(wide: Tensor, thin: Tensor, block: int = 64) -> Tensor:
    """(l, M, N) @ (l, N, c), summed in blocks of N: dlam needs the digits that one long sum would cost."""
    n = wide.shape[2]
    if n < 2 * block or n % block:
        return wide @ thin
    split = (n // block, block)
    return (wide.unflatten(2, split).transpose(1, 2) @ thin.unflatten(1, split)).sum(1)


def _of_tokens(rows: Tensor, m: int) -> Tensor:
    """(L, batch) -> (L, M): every token gets its sample's value; (L, M) stays as it is."""
    batch = rows.shape[1]
    if batch == m:
        return rows
    return rows.repeat_interleave(m // batch, dim=1) if m else rows[:, :0]
