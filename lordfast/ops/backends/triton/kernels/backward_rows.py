"""The first step of the backward pass, one launch: all that needs whole rows of dY, which is streamed once.

Bytes (16-bit dY): 2 M N, plus u, logit, du, about 4 M (2 r + 2), plus partials, 4 (M / BLOCK_M) (2 N r + H (r + 2)).
FLOPs: 2 M N 2 CP for v = dY C, the same again for dC, CP = 16 at rank 4. Floor: the stream of dY, 10.5 MB for
(16384, 320, 320) in bf16.

A program owns BLOCK_M rows. Its share of every sum over rows goes to memory as one partial, which `reduce` adds in a
fixed order: no atomics. The gate's second half is computed transposed from a transposed load of u, because a dot's
result must not be transposed into another dot (Triton 3.4 to 3.7.0 miscompile that on Hopper).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import (
    HIDDEN,
    activate,
    activate_slope,
    add_groups,
    carried,
    gate_weights,
    operand,
    part_of,
    part_scale,
    sigmoid,
)


@triton.jit
def _product(
    left, values, scale, group, dtype: tl.constexpr,
    ROWS: tl.constexpr, RQ: tl.constexpr, G: tl.constexpr, D: tl.constexpr, C: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """left @ values for `values` (.., G * RQ), every group the same: (ROWS, C * RQ), the groups still to be added."""
    v = tl.dot(left, part_of(values, group[None, :], 0, dtype, G, UPCAST), input_precision="ieee")
    for d in tl.static_range(1, D):
        v = tl.dot(left, part_of(values, group[None, :], d * G, dtype, G, UPCAST), v, input_precision="ieee")
    # The product with `scale` keeps the compiler from chaining the blocks into one running sum over N.
    return carried(v * scale[None, :], ROWS, RQ, G, C)


@triton.jit
def _stream(
    dy, u, lam, b, b_adv, pb, pb_adv, rows, pid, M, N, R, sdm, sdn, scaling,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, RQ: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    C: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """v1 and v2 in C groups; the partials of dB (its direct part) and dB' go to memory."""
    dtype: tl.constexpr = dy.dtype.element_ty
    c = tl.arange(0, G * RQ)
    j, group = c % RQ, c // RQ
    q = tl.arange(0, RQ)
    scale = part_scale(group, dtype)
    row_mask = (rows < M)[:, None]
    u_rep = tl.load(u + rows[:, None] * R + j[None, :], mask=row_mask & (j < R)[None, :], other=0.0)
    v1 = tl.zeros((BLOCK_M, C * RQ), tl.float32)
    v2 = tl.zeros((BLOCK_M, C * RQ), tl.float32)
    for n0 in range(0, N, BLOCK_N):
        ns = n0 + tl.arange(0, BLOCK_N)
        n_mask = ns < N
        dyt = operand(
            tl.load(
                dy + rows[:, None] * sdm + ns.to(tl.int64)[None, :] * sdn, mask=row_mask & n_mask[None, :], other=0.0
            ),
            UPCAST,
        )
        branch = ns.to(tl.int64)[:, None] * R + j[None, :]
        branch_mask = n_mask[:, None] & (j < R)[None, :]
        up = tl.load(b + branch, mask=branch_mask, other=0.0).to(tl.float32)
        v1 += _product(dyt, up, scale * scaling, group, dtype, BLOCK_M, RQ, G, D, C, UPCAST)
        up = tl.load(b_adv + branch, mask=branch_mask, other=0.0).to(tl.float32)
        v2 += _product(dyt, up, scale * scaling, group, dtype, BLOCK_M, RQ, G, D, C, UPCAST)
        out = (pid.to(tl.int64) * N + ns.to(tl.int64))[:, None] * R + q[None, :]
        out_mask = n_mask[:, None] & (q < R)[None, :]
        if pb is not None:
            share = _product(tl.trans(dyt), u_rep, scale, group, dtype, BLOCK_N, RQ, G, D, C, UPCAST)
            tl.store(pb + out, add_groups(share, BLOCK_N, RQ, C), mask=out_mask)
        if pb_adv is not None:
            share = _product(tl.trans(dyt), lam[:, None] * u_rep, scale, group, dtype, BLOCK_N, RQ, G, D, C, UPCAST)
            tl.store(pb_adv + out, add_groups(share, BLOCK_N, RQ, C), mask=out_mask)
    return v1, v2


@triton.jit
def _gate_sums(
    u, dlogit, w1, b, p, b1, w2, pp, pb1, pw2, rows, row_mask, pid, N, R, H, scaling,
    RQ: tl.constexpr, C: tl.constexpr, BLOCK_F: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """The partials of dP, db1 and dw2 over the rows of one program."""
    c = tl.arange(0, C * RQ)
    here = row_mask[:, None] & (c < R)[None, :]
    u_rows = tl.load(u + rows[:, None] * R + c[None, :], mask=here, other=0.0)
    u_columns = tl.load(u + rows[None, :] * R + c[:, None], mask=row_mask[None, :] & (c < R)[:, None], other=0.0)
    for h0 in range(0, H, HIDDEN):
        hs = h0 + tl.arange(0, HIDDEN)
        h_mask = hs < H
        at = pid.to(tl.int64) * H + hs
        weights = gate_weights(w1, b, p, h0, N, R, H, scaling, False, RQ, C, BLOCK_F)
        offset = tl.load(b1 + hs, mask=h_mask, other=0.0).to(tl.float32)
        out = tl.load(w2 + hs, mask=h_mask, other=0.0).to(tl.float32)
        z = tl.dot(weights, u_columns, input_precision="ieee") + offset[:, None]
        da = dlogit[None, :] * out[:, None] * activate_slope(z, ACT)
        if pp is not None:
            dp = tl.dot(da, u_rows, input_precision="ieee")
            tl.store(pp + at[:, None] * R + c[None, :], dp, mask=h_mask[:, None] & (c < R)[None, :])
        tl.store(pb1 + at, tl.sum(da, axis=1), mask=h_mask)
        tl.store(pw2 + at, tl.sum(dlogit[None, :] * activate(z, ACT), axis=1), mask=h_mask)


@triton.jit
def rows_kernel(
    dy, u, logit, grad_logit, b, b_adv, w1, b1, w2, p, v, dlam, du, pb, pb_adv, pp, pb1, pw2, pb2,
    M, N, R, H, sdm, sdn, tokens, scaling,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_F: tl.constexpr,
    RQ: tl.constexpr, G: tl.constexpr, D: tl.constexpr, C: tl.constexpr, ACT: tl.constexpr, DU: tl.constexpr,
    STREAM: tl.constexpr, GATE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The token gate does both halves at once. Under a sample gate every token's share of the logit's gradient waits
    for the sample's sum: STREAM alone leaves v = v1 + lam v2 and dlam in memory, GATE alone goes on from `v` and the
    samples' logit gradients, which it then finds in `grad_logit`, one for `tokens` rows.
    """
    scaling = tl.full((), scaling, tl.float32)
    pid = tl.program_id(0)
    rows = pid.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    samples = (pid * BLOCK_M + tl.arange(0, BLOCK_M)) // tokens
    row_mask = rows < M
    c = tl.arange(0, C * RQ)
    q = tl.arange(0, RQ)
    j = c % RQ
    narrow_at = rows[:, None] * R + q[None, :]
    narrow_mask = row_mask[:, None] & (q < R)[None, :]
    if STREAM:
        u_rep = tl.load(u + rows[:, None] * R + j[None, :], mask=row_mask[:, None] & (j < R)[None, :], other=0.0)
        lam = sigmoid(tl.load(logit + samples, mask=row_mask, other=0.0))
        v1, v2 = _stream(dy, u, lam, b, b_adv, pb, pb_adv, rows, pid, M, N, R, sdm, sdn, scaling,
                         BLOCK_M, BLOCK_N, RQ, G, D, C, UPCAST)  # fmt: skip
        own = tl.sum(v2 * u_rep, axis=1)
        both = v1 + lam[:, None] * v2
    if GATE:
        if STREAM:
            dlogit = own * lam * (1.0 - lam)
            if grad_logit is not None:
                dlogit += tl.load(grad_logit + rows, mask=row_mask, other=0.0).to(tl.float32)
        else:
            dlogit = tl.load(grad_logit + samples, mask=row_mask, other=0.0)
        if DU:
            u_first = tl.load(u + rows[:, None] * R + c[None, :], mask=row_mask[:, None] & (c < R)[None, :], other=0.0)
            if not STREAM:
                both = tl.load(v + rows[:, None] * R + c[None, :], mask=row_mask[:, None] & (c < R)[None, :], other=0.0)
            for h0 in range(0, H, HIDDEN):
                hs = h0 + tl.arange(0, HIDDEN)
                h_mask = hs < H
                weights = gate_weights(w1, b, p, h0, N, R, H, scaling, False, RQ, C, BLOCK_F)
                offset = tl.load(b1 + hs, mask=h_mask, other=0.0).to(tl.float32)
                out = tl.load(w2 + hs, mask=h_mask, other=0.0).to(tl.float32)
                z = tl.dot(u_first, tl.trans(weights), input_precision="ieee") + offset[None, :]
                da = dlogit[:, None] * out[None, :] * activate_slope(z, ACT)
                both = tl.dot(da, weights, both, input_precision="ieee")
            tl.store(du + narrow_at, add_groups(both, BLOCK_M, RQ, C), mask=narrow_mask)
        if pb1 is not None:
            _gate_sums(u, dlogit, w1, b, p, b1, w2, pp, pb1, pw2, rows, row_mask, pid, N, R, H, scaling,
                       RQ, C, BLOCK_F, ACT)  # fmt: skip
        if pb2 is not None:
            tl.store(pb2 + pid, tl.sum(dlogit, axis=0))
    else:
        tl.store(v + narrow_at, add_groups(both, BLOCK_M, RQ, C), mask=narrow_mask)
        tl.store(dlam + rows, own, mask=row_mask)
