"""The last step of the backward pass, one launch: adds the partials in a fixed order and finishes the gradients.

    dA = sum        dB = s (sum + W1^T dP)        dB' = s sum        dW1 = s dP B^T        db1, dw2, db2 = sum

Bytes: the partials once (those of (16384, 320, 320), rank 4, 128 rows each: 2 MB), and the parameters. FLOPs: H r for
each entry of W1's and B's gradients. Floor: a launch's latency. Every program works on BLOCK_E entries of one gradient,
laid out flat, whatever its shape; the sums over blocks of rows are trees of 32 added up in fp64. No gradient here has
2^31 entries (`cases` refuses that), so entries are counted in 32 bits: a 64-bit division is a call, with a stack.
"""

from __future__ import annotations

import triton
import triton.language as tl

_BLOCKS = tl.constexpr(32)


@triton.jit
def _add_partials(partials, es, mask, size, count, BLOCK_E: tl.constexpr):
    """The entries `es` of `count` partials of `size` numbers each, summed, (BLOCK_E,) fp64."""
    total = tl.zeros((BLOCK_E,), tl.float64)
    for i0 in range(0, count, _BLOCKS):
        i = i0 + tl.arange(0, _BLOCKS)
        at = i.to(tl.int64)[:, None] * size + es[None, :]
        total += tl.sum(tl.load(partials + at, mask=(i < count)[:, None] & mask[None, :], other=0.0), axis=0).to(
            tl.float64
        )
    return total


@triton.jit
def sum_into(grad, partials, block, size, count, scale, BLOCK_E: tl.constexpr):
    """The entries of one block of a gradient: `scale` (fp64) times the sum of their partials."""
    es = block * BLOCK_E + tl.arange(0, BLOCK_E)
    mask = es < size
    total = (_add_partials(partials, es, mask, size, count, BLOCK_E) * scale).to(tl.float32)
    tl.store(grad + es, total.to(grad.dtype.element_ty), mask=mask)


@triton.jit
def _b_into(grad, partials, w1, dp, block, N, R, H, count, scale, BLOCK_E: tl.constexpr):
    size = N * R
    es = block * BLOCK_E + tl.arange(0, BLOCK_E)
    mask = es < size
    n, j = es // R, es % R
    total = _add_partials(partials, es, mask, size, count, BLOCK_E)
    for h0 in range(0, H, _BLOCKS):
        h = h0 + tl.arange(0, _BLOCKS)
        here = (h < H)[:, None] & mask[None, :]
        left = tl.load(w1 + h[:, None] * N + n[None, :], mask=here, other=0.0).to(tl.float32)
        right = tl.load(dp + h[:, None] * R + j[None, :], mask=here, other=0.0)
        total += tl.sum(left * right, axis=0).to(tl.float64)
    tl.store(grad + es, (total * scale).to(tl.float32).to(grad.dtype.element_ty), mask=mask)


@triton.jit
def _w1_into(grad, b, dp, block, N, R, H, scale, RQ: tl.constexpr, BLOCK_E: tl.constexpr):
    es = block * BLOCK_E + tl.arange(0, BLOCK_E)
    mask = es < H * N
    h, n = es // N, es % N
    j = tl.arange(0, RQ)
    here = (j < R)[:, None] & mask[None, :]
    left = tl.load(dp + h[None, :] * R + j[:, None], mask=here, other=0.0)
    right = tl.load(b + n[None, :] * R + j[:, None], mask=here, other=0.0).to(tl.float32)
    total = tl.sum(left * right, axis=0) * scale.to(tl.float32)
    tl.store(grad + es, total.to(grad.dtype.element_ty), mask=mask)


@triton.jit
def reduce_kernel(
    pa, pb, pb_adv, pb1, pw2, pb2, dp, b, w1, d_a, d_b, d_b_adv, d_w1, d_b1, d_w2, d_b2,
    N, K, R, H, tiles_m, row_blocks, blocks_a, blocks_b, blocks_b_adv, blocks_w1, blocks_b1, blocks_w2, scaling,
    RQ: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """The grid: as many programs for each gradient as its `blocks_` says, one for db2; none where it is None."""
    pid = tl.program_id(0)
    scale = tl.full((), scaling, tl.float64)
    one = tl.full((), 1.0, tl.float64)
    in_b = pid - blocks_a
    in_b_adv = in_b - blocks_b
    in_w1 = in_b_adv - blocks_b_adv
    in_b1 = in_w1 - blocks_w1
    in_w2 = in_b1 - blocks_b1
    in_b2 = in_w2 - blocks_w2
    if in_b < 0:
        if d_a is not None:
            sum_into(d_a, pa, pid, R * K, tiles_m, one, BLOCK_E)
    elif in_b_adv < 0:
        if d_b is not None:
            _b_into(d_b, pb, w1, dp, in_b, N, R, H, row_blocks, scale, BLOCK_E)
    elif in_w1 < 0:
        if d_b_adv is not None:
            sum_into(d_b_adv, pb_adv, in_b_adv, N * R, row_blocks, scale, BLOCK_E)
    elif in_b1 < 0:
        if d_w1 is not None:
            _w1_into(d_w1, b, dp, in_w1, N, R, H, scale, RQ, BLOCK_E)
    elif in_w2 < 0:
        if d_b1 is not None:
            sum_into(d_b1, pb1, in_b1, H, row_blocks, one, BLOCK_E)
    elif in_b2 < 0:
        if d_w2 is not None:
            sum_into(d_w2, pw2, in_w2, H, row_blocks, one, BLOCK_E)
    elif d_b2 is not None:
        sum_into(d_b2, pb2, in_b2, 1, row_blocks, one, BLOCK_E)
