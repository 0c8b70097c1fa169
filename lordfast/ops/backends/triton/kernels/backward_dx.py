"""The second step of the backward pass, one launch: dx = dY W + du A, and on the way out the partials of dA = du^T x.

Bytes (16-bit x): 2 (M N + N K + 2 M K) + 4 M r, plus the partials 4 (M / BLOCK_M) r K. FLOPs 2 M N K + 4 M K CP.
Floor: the bare product dY W with x read once more, 32 MB for (16384, 320, 320) in bf16.

A tile of x that was just the shape of the tile of dx is read in the epilogue, so dA costs no pass of its own. du comes
from memory, rounded to x's dtype for dx as PyTorch would, in exact parts for dA. The last programs of the grid have
nothing to do with dx: they add up dP, which `reduce` needs whole and which was complete when this launch began.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import narrow, operand, part_of, part_scale
from .reduce import sum_into


@triton.jit
def _dx(
    dy, w, du, a, rows, ks, M, N, K, R, sdm, sdn, swn, swk,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, RP: tl.constexpr,
    EVEN_N: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """One tile of dx, (BLOCK_M, BLOCK_K)."""
    row_mask, k_mask = (rows < M)[:, None], (ks < K)[None, :]
    ns = tl.arange(0, BLOCK_N)
    c = tl.arange(0, RP)
    acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    if w is not None:
        dy_at = dy + rows[:, None] * sdm + ns.to(tl.int64)[None, :] * sdn
        w_at = w + ns.to(tl.int64)[:, None] * swn + ks[None, :] * swk
        for n0 in range(0, N, BLOCK_N):
            dy_mask, w_mask = row_mask, k_mask
            if not EVEN_N:
                n_mask = n0 + ns < N
                dy_mask, w_mask = dy_mask & n_mask[None, :], w_mask & n_mask[:, None]
            dyt = operand(tl.load(dy_at, mask=dy_mask, other=0.0), UPCAST)
            wt = operand(tl.load(w_at, mask=w_mask, other=0.0), UPCAST)
            acc = tl.dot(dyt, wt, acc, input_precision=PRECISION)
            dy_at += BLOCK_N * sdn
            w_at += BLOCK_N * swn
    dut = tl.load(du + rows[:, None] * R + c[None, :], mask=row_mask & (c < R)[None, :], other=0.0)
    at = tl.load(a + c.to(tl.int64)[:, None] * K + ks[None, :], mask=(c < R)[:, None] & k_mask, other=0.0).to(
        tl.float32
    )
    return tl.dot(narrow(dut, dtype, UPCAST), narrow(at, dtype, UPCAST), acc, input_precision="ieee")


@triton.jit
def _power_of_two_above(v):
    """Of the largest magnitude in `v`, 1 where that is 0 or not finite: makes any gradient fit fp16."""
    top = tl.max(tl.max(tl.abs(v), axis=1), axis=0)
    exponent = (top.to(tl.int32, bitcast=True) >> 23) & 255
    usual = (exponent > 0) & (exponent < 253)
    return tl.where(usual, ((exponent + 1) << 23).to(tl.float32, bitcast=True), 1.0)


@triton.jit
def _da(
    du, xt, rows, M, R,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, RQ: tl.constexpr, G: tl.constexpr, D: tl.constexpr,
    UPCAST: tl.constexpr, dtype: tl.constexpr,
):  # fmt: skip
    """du^T x over the rows of one tile, (RQ, BLOCK_K); du^T is loaded as such."""
    c = tl.arange(0, G * RQ)
    j, group = c % RQ, c // RQ
    dut = tl.load(du + rows[None, :] * R + j[:, None], mask=(j < R)[:, None] & (rows < M)[None, :], other=0.0)
    lift = 1.0
    if dtype == tl.float16:
        lift = _power_of_two_above(dut)
        dut = dut / lift
    xt = operand(xt, UPCAST)
    total = tl.dot(part_of(dut, group[:, None], 0, dtype, G, UPCAST), xt, input_precision="ieee")
    for d in tl.static_range(1, D):
        total = tl.dot(part_of(dut, group[:, None], d * G, dtype, G, UPCAST), xt, total, input_precision="ieee")
    total = total * (part_scale(group, dtype) * lift)[:, None]
    if G == 1:
        return total
    else:
        return tl.sum(tl.reshape(total, (G, RQ, BLOCK_K)), axis=0)


@triton.jit
def dx_kernel(
    dy, w, du, a, x, dx, pa, pp, dp, M, N, K, R, H, row_blocks, tiles, sdm, sdn, swn, swk, sxm, sxk,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_E: tl.constexpr,
    RP: tl.constexpr, RQ: tl.constexpr, G: tl.constexpr, D: tl.constexpr, C: tl.constexpr,
    EVEN_N: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    dtype: tl.constexpr = dy.dtype.element_ty
    pid = tl.program_id(0)
    if pid < tiles:
        if du is not None:
            tiles_k = tl.cdiv(K, BLOCK_K)
            pid_m = pid // tiles_k
            rows = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
            ks = (pid % tiles_k) * BLOCK_K + tl.arange(0, BLOCK_K)
            mask = (rows < M)[:, None] & (ks < K)[None, :]
            if dx is not None:
                tile = _dx(dy, w, du, a, rows, ks, M, N, K, R, sdm, sdn, swn, swk,
                           BLOCK_M, BLOCK_N, BLOCK_K, RP, EVEN_N, PRECISION, UPCAST, dtype)  # fmt: skip
                out = narrow(tile, dtype, UPCAST).to(dtype)
                tl.store(dx + rows[:, None] * K + ks[None, :], out, mask=mask)
            if pa is not None:
                xt = tl.load(x + rows[:, None] * sxm + ks.to(tl.int64)[None, :] * sxk, mask=mask, other=0.0)
                share = _da(du, xt, rows, M, R, BLOCK_M, BLOCK_K, RQ, G, D, UPCAST, dtype)
                q = tl.arange(0, RQ)
                at = (pid_m.to(tl.int64) * R + q)[:, None] * K + ks[None, :]
                tl.store(pa + at, share, mask=(q < R)[:, None] & (ks < K)[None, :])
    elif pp is not None:
        sum_into(dp, pp, pid - tiles, H * R, row_blocks, tl.full((), 1.0, tl.float64), BLOCK_E)
