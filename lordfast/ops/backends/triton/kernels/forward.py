"""The forward pass in one launch: y = x W^T + bias + [u, lam u] (s [B, B'])^T, with u = x A^T and the gate on the way.

Bytes (16-bit x): 2 (M K + N K + M N) + 4 M (r + 1), x and W read again from L2 by the tiles that share them. FLOPs:
2 M N K for the base, 2 M (CP K + 2 CP N) for the update, CP = 16 columns at rank 4, H (2 r + ~10) a token for the gate.
Floor: the bare linear layer's bytes or FLOPs. For (M, K, N) = (16384, 320, 320) in bf16 that is 21.5 MB.

A tile of y carries u's columns through its own K-loop, so every tile of a row of tiles forms u and the gate again
(N / BLOCK_N times the work, all of it in registers) instead of waiting for another launch; the first one writes them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import HIDDEN, activate, add_groups, carried, gate_weights, narrow, operand, part_of, part_scale, sigmoid


@triton.jit
def _products(
    x, w, a, rows, ns, M, N, K, R, sxm, sxk, swn, swk,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    RQ: tl.constexpr, G: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """x W^T, (BLOCK_M, BLOCK_N), and u, (BLOCK_M, C * RQ), in one loop over K; zeros without w or a."""
    CP: tl.constexpr = G * RQ
    dtype: tl.constexpr = x.dtype.element_ty
    c = tl.arange(0, CP)
    j, group = c % RQ, c // RQ
    ks = tl.arange(0, BLOCK_K)
    row_mask, n_mask, j_mask = (rows < M)[:, None], (ns < N)[None, :], (j < R)[None, :]
    x_at = x + rows[:, None] * sxm + ks[None, :] * sxk
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    u = tl.zeros((BLOCK_M, CP), tl.float32)
    if a is not None:
        a_at = a + j[None, :] * K + ks[:, None]
    if w is not None:
        w_at = w + ns.to(tl.int64)[None, :] * swn + ks[:, None] * swk
    for k0 in range(0, K, BLOCK_K):
        x_mask, a_mask, w_mask = row_mask, j_mask, n_mask
        if not EVEN_K:
            k_mask = k0 + ks < K
            x_mask, a_mask, w_mask = x_mask & k_mask[None, :], a_mask & k_mask[:, None], w_mask & k_mask[:, None]
        xt = operand(tl.load(x_at, mask=x_mask, other=0.0), UPCAST)
        if w is not None:
            wt = operand(tl.load(w_at, mask=w_mask, other=0.0), UPCAST)
            acc = tl.dot(xt, wt, acc, input_precision=PRECISION)
            w_at += BLOCK_K * swk
        if a is not None:
            at = tl.load(a_at, mask=a_mask, other=0.0).to(tl.float32)
            for d in tl.static_range(D):
                u = tl.dot(xt, part_of(at, group[None, :], d * G, dtype, G, UPCAST), u, input_precision="ieee")
            a_at += BLOCK_K
        x_at += BLOCK_K * sxk
    return acc, carried(u * part_scale(group, dtype)[None, :], BLOCK_M, RQ, G, C)


@triton.jit
def _logit(
    u, w1, b, p, b1, w2, b2, N, R, H, scaling,
    BLOCK_M: tl.constexpr, RQ: tl.constexpr, C: tl.constexpr, BLOCK_F: tl.constexpr, ACT: tl.constexpr,
):  # fmt: skip
    """w2 . act(P u + b1) + b2, (BLOCK_M,), from u in C groups."""
    logit = tl.zeros((BLOCK_M,), tl.float32)
    for h0 in range(0, H, HIDDEN):
        hs = h0 + tl.arange(0, HIDDEN)
        h_mask = hs < H
        weights = tl.trans(gate_weights(w1, b, p, h0, N, R, H, scaling, True, RQ, C, BLOCK_F))
        offset = tl.load(b1 + hs, mask=h_mask, other=0.0).to(tl.float32)
        z = tl.dot(u, weights, input_precision="ieee") + offset[None, :]
        out = tl.load(w2 + hs, mask=h_mask, other=0.0).to(tl.float32)
        logit += tl.sum(activate(z, ACT) * out[None, :], axis=1)
    return logit + tl.load(b2).to(tl.float32)


@triton.jit
def _store_gate(
    u, logit, u_out, logit_out, rows, M, R, BLOCK_M: tl.constexpr, RQ: tl.constexpr, C: tl.constexpr
):  # fmt: skip
    j = tl.arange(0, RQ)
    mask = rows < M
    tl.store(
        u_out + rows[:, None] * R + j[None, :], add_groups(u, BLOCK_M, RQ, C), mask=mask[:, None] & (j < R)[None, :]
    )
    tl.store(logit_out + rows, logit, mask=mask)


@triton.jit
def _tile(
    x, w, bias, a, b, b_adv, w1, b1, w2, b2, p, y, logit_at, u_at, pid_m, pid_n,
    M, N, K, R, H, sxm, sxk, swn, swk, tokens, scaling,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_F: tl.constexpr,
    RQ: tl.constexpr, G: tl.constexpr, D: tl.constexpr, C: tl.constexpr, ACT: tl.constexpr, GIVEN: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of y. GIVEN: u and the samples' logits (one for `tokens` rows) are read, not formed."""
    dtype: tl.constexpr = x.dtype.element_ty
    rows = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    ns = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    row_mask, n_mask = rows < M, ns < N
    c = tl.arange(0, C * RQ)
    j = c % RQ
    if GIVEN:
        acc, _ = _products(x, w, None, rows, ns, M, N, K, R, sxm, sxk, swn, swk,
                           BLOCK_M, BLOCK_N, BLOCK_K, RQ, G, D, C, EVEN_K, PRECISION, UPCAST)  # fmt: skip
        u = tl.load(u_at + rows[:, None] * R + c[None, :], mask=row_mask[:, None] & (c < R)[None, :], other=0.0)
        logit = tl.load(logit_at + (pid_m * BLOCK_M + tl.arange(0, BLOCK_M)) // tokens, mask=row_mask, other=0.0)
    else:
        acc, u = _products(x, w, a, rows, ns, M, N, K, R, sxm, sxk, swn, swk,
                           BLOCK_M, BLOCK_N, BLOCK_K, RQ, G, D, C, EVEN_K, PRECISION, UPCAST)  # fmt: skip
        logit = _logit(u, w1, b, p, b1, w2, b2, N, R, H, scaling, BLOCK_M, RQ, C, BLOCK_F, ACT)
        if pid_n == 0:  # no two programs write the same address
            _store_gate(u, logit, u_at, logit_at, rows, M, R, BLOCK_M, RQ, C)
    lam = sigmoid(logit)
    branch = ns.to(tl.int64)[None, :] * R + j[:, None]
    branch_mask = n_mask[None, :] & (j < R)[:, None]
    up = tl.load(b + branch, mask=branch_mask, other=0.0).to(tl.float32) * scaling
    acc = tl.dot(narrow(u, dtype, UPCAST), narrow(up, dtype, UPCAST), acc, input_precision="ieee")
    up = tl.load(b_adv + branch, mask=branch_mask, other=0.0).to(tl.float32) * scaling
    acc = tl.dot(narrow(lam[:, None] * u, dtype, UPCAST), narrow(up, dtype, UPCAST), acc, input_precision="ieee")
    if bias is not None:
        acc += tl.load(bias + ns, mask=n_mask, other=0.0).to(tl.float32)[None, :]
    tl.store(
        y + rows[:, None] * N + ns[None, :],
        narrow(acc, dtype, UPCAST).to(dtype),
        mask=row_mask[:, None] & n_mask[None, :],
    )


@triton.jit
def forward_kernel(
    x, w, bias, a, b, b_adv, w1, b1, w2, b2, p, y, logit, u, M, N, K, R, H, sxm, sxk, swn, swk, tokens, scaling,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_F: tl.constexpr,
    RQ: tl.constexpr, G: tl.constexpr, D: tl.constexpr, C: tl.constexpr, ACT: tl.constexpr, GIVEN: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    # Tiles that share rows of x come one after the other, so that x is read from memory once and then from L2.
    tiles_n = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    _tile(
        x, w, bias, a, b, b_adv, w1, b1, w2, b2, p, y, logit, u, pid // tiles_n, pid % tiles_n,
        M, N, K, R, H, sxm, sxk, swn, swk, tokens, tl.full((), scaling, tl.float32),
        BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_F, RQ, G, D, C, ACT, GIVEN, EVEN_K, PRECISION, UPCAST,
    )  # fmt: skip


@triton.jit
def token_gate_kernel(
    x, a, b, w1, b1, w2, b2, p, logit, u, M, N, K, R, H, sxm, sxk, scaling,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_F: tl.constexpr,
    RQ: tl.constexpr, G: tl.constexpr, D: tl.constexpr, C: tl.constexpr, ACT: tl.constexpr,
    EVEN_K: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """u and the tokens' logits alone: a sample's lambda takes the mean of its tokens' logits before any y is known."""
    scaling = tl.full((), scaling, tl.float32)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    _, packed = _products(x, None, a, rows, tl.arange(0, 16), M, N, K, R, sxm, sxk, 0, 0,
                          BLOCK_M, 16, BLOCK_K, RQ, G, D, C, EVEN_K, "ieee", UPCAST)  # fmt: skip
    logits = _logit(packed, w1, b, p, b1, w2, b2, N, R, H, scaling, BLOCK_M, RQ, C, BLOCK_F, ACT)
    _store_gate(packed, logits, u, logit, rows, M, R, BLOCK_M, RQ, C)


@triton.jit
def _pick(which, q, k, v):
    chosen = q
    if which == 1:
        chosen = k
    elif which == 2:
        chosen = v
    return chosen


@triton.jit
def qkv_kernel(
    x, w_q, w_k, w_v, bias_q, bias_k, bias_v, a_q, a_k, a_v, b_q, b_k, b_v, b_adv_q, b_adv_k, b_adv_v,
    w1_q, w1_k, w1_v, b1_q, b1_k, b1_v, w2_q, w2_k, w2_v, b2_q, b2_k, b2_v, y, logit, u,
    M, N, K, R, H, sxm, sxk, scaling,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_F: tl.constexpr,
    RQ: tl.constexpr, G: tl.constexpr, D: tl.constexpr, C: tl.constexpr, ACT: tl.constexpr,
    EVEN_K: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Three projections of the same x: the tiles of all three for the same rows follow each other, so x stays in L2."""
    tiles_n = tl.cdiv(N, BLOCK_N)
    pid = tl.program_id(0)
    pid_n = pid % tiles_n
    which = (pid // tiles_n) % 3
    bias = None
    if bias_q is not None:
        bias = _pick(which, bias_q, bias_k, bias_v)
    slab = which.to(tl.int64) * M
    _tile(
        x, _pick(which, w_q, w_k, w_v), bias, _pick(which, a_q, a_k, a_v), _pick(which, b_q, b_k, b_v),
        _pick(which, b_adv_q, b_adv_k, b_adv_v), _pick(which, w1_q, w1_k, w1_v), _pick(which, b1_q, b1_k, b1_v),
        _pick(which, w2_q, w2_k, w2_v), _pick(which, b2_q, b2_k, b2_v), None,
        y + slab * N, logit + slab, u + slab * R, pid // (3 * tiles_n), pid_n,
        M, N, K, R, H, sxm, sxk, K, 1, 1, tl.full((), scaling, tl.float32),
        BLOCK_M, BLOCK_N, BLOCK_K, BLOCK_F, RQ, G, D, C, ACT, False, EVEN_K, PRECISION, UPCAST,
    )  # fmt: skip
