"""What the kernels share: exact splits of fp32 operands, the packing of the rank dimension, the gate's first layer.

`tl.dot` pads a rank of 4 to 16 columns, and its half-precision products would round fp32 parameters. Both are cured at
once: the columns hold G groups of RQ, and group g holds the g-th part of each number in x's dtype (high, middle, low;
together 24 bits). A sum over the groups is the product with the unrounded numbers. At rank 4 and bf16 the three parts
fit the 16 columns that one dot has anyway; where fewer groups fit, D dots follow each other.
CP = G * RQ is the number of columns, all powers of two. Sums carry C groups on: G where only together they are as many
columns as the next dot wants, else 1.

The interpreter multiplies bf16 wrongly and truncates on a cast to it: UPCAST keeps bf16 numbers in fp32 there.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Rows of the gate's first layer that are worked on together: any H takes the same number of registers.
HIDDEN = tl.constexpr(16)
# The low part of an fp16 split is kept this much larger: unscaled it would often be subnormal.
LIFT = tl.constexpr(2048.0)


@triton.jit
def operand(t, UPCAST: tl.constexpr):
    """A tile in x's dtype as `tl.dot` may have it."""
    if UPCAST:
        return t.to(tl.float32)
    else:
        return t


@triton.jit
def narrow(v, dtype: tl.constexpr, UPCAST: tl.constexpr):
    """fp32 -> dtype, to the nearest; still an fp32 tile with UPCAST."""
    if UPCAST:
        bits = v.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        return bits.to(tl.float32, bitcast=True)
    else:
        return v.to(dtype)


@triton.jit
def part_of(v, group, first: tl.constexpr, dtype: tl.constexpr, G: tl.constexpr, UPCAST: tl.constexpr):
    """The parts `first`, `first + 1`, ... of the fp32 tile `v`, by the group that a column (or row) belongs to."""
    high = narrow(v, dtype, UPCAST)
    if dtype == tl.float32:
        return high
    rest = v - high.to(tl.float32)
    if dtype == tl.float16:
        return tl.where(group == 0, high, narrow(rest * LIFT, dtype, UPCAST))
    middle = narrow(rest, dtype, UPCAST)
    low = narrow(rest - middle.to(tl.float32), dtype, UPCAST)
    if G == 1:
        if first == 0:
            return high
        elif first == 1:
            return middle
        else:
            return low
    part = group + first
    nothing = tl.zeros_like(low)
    return tl.where(part == 0, high, tl.where(part == 1, middle, tl.where(part == 2, low, nothing)))


@triton.jit
def part_scale(group, dtype: tl.constexpr):
    """What a column's product is to be multiplied by, fp32."""
    if dtype == tl.float16:
        return tl.where(group == 0, 1.0, 1.0 / LIFT).to(tl.float32)
    else:
        return tl.where(group == 0, 1.0, 1.0).to(tl.float32)


@triton.jit
def add_groups(v, ROWS: tl.constexpr, RQ: tl.constexpr, G: tl.constexpr):
    """(ROWS, G * RQ) -> (ROWS, RQ)."""
    if G == 1:
        return v
    else:
        return tl.sum(tl.reshape(v, (ROWS, G, RQ)), axis=1)


@triton.jit
def carried(v, ROWS: tl.constexpr, RQ: tl.constexpr, G: tl.constexpr, C: tl.constexpr):
    """(ROWS, G * RQ) -> (ROWS, C * RQ)."""
    if C == G:
        return v
    else:
        return add_groups(v, ROWS, RQ, G)


@triton.jit
def sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def activate(z, ACT: tl.constexpr):
    if ACT == "relu":
        return tl.where(z < 0, 0.0, z)  # and not maximum, which would swallow NaN
    elif ACT == "silu":
        return z * sigmoid(z)
    else:
        return 0.5 * z * (1.0 + tl.math.erf(z * 0.7071067811865476))


@triton.jit
def activate_slope(z, ACT: tl.constexpr):
    """act'(z), with relu'(0) = 0."""
    if ACT == "relu":
        return tl.where(z > 0, 1.0, 0.0)
    elif ACT == "silu":
        s = sigmoid(z)
        return s * (1.0 + z * (1.0 - s))
    else:
        bell = 0.3989422804014327 * tl.exp(-0.5 * z * z)
        return 0.5 * (1.0 + tl.math.erf(z * 0.7071067811865476)) + z * bell


@triton.jit
def fold_rows(
    w1, b, hs, N, R, H, scaling, ROWS: tl.constexpr, RQ: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    """P = s W1 B for the rows `hs`, (ROWS, RQ) fp32: short fp32 sums over blocks of N, added in fp64; all fp64 if WIDE.

    P's rounding is shared by all tokens and does not average out over them, so a running fp32 sum is too coarse.
    """
    j = tl.arange(0, RQ)
    h_mask = hs < H
    total = tl.zeros((ROWS, RQ), tl.float64)
    for n0 in range(0, N, BLOCK):
        ns = n0 + tl.arange(0, BLOCK)
        n_mask = ns < N
        at = hs.to(tl.int64)[:, None] * N + ns[None, :]
        left = tl.load(w1 + at, mask=h_mask[:, None] & n_mask[None, :], other=0.0).to(tl.float32)
        right = tl.load(
            b + ns.to(tl.int64)[:, None] * R + j[None, :], mask=n_mask[:, None] & (j < R)[None, :], other=0.0
        ).to(tl.float32)
        if WIDE:
            left, right = left.to(tl.float64), right.to(tl.float64)
        total += tl.sum(left[:, :, None] * right[None, :, :], axis=1).to(tl.float64)
    return (total * scaling).to(tl.float32)


@triton.jit
def gate_weights(
    w1, b, p, h0, N, R, H, scaling, EVERY: tl.constexpr, RQ: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr
):
    """HIDDEN rows of P from h0 on, (HIDDEN, C * RQ): in every group, or in the first and zeros in the others.

    Read from `p` (H, R), or folded on the spot where that is None.
    """
    hs = h0 + tl.arange(0, HIDDEN)
    if p is None:
        rows = fold_rows(w1, b, hs, N, R, H, scaling, HIDDEN, RQ, BLOCK, False)
    else:
        j = tl.arange(0, RQ)
        rows = tl.load(p + hs[:, None] * R + j[None, :], mask=(hs < H)[:, None] & (j < R)[None, :], other=0.0)
    if C == 1:
        return rows
    else:
        wide = tl.broadcast_to(rows[:, None, :], (HIDDEN, C, RQ))
        if not EVERY:
            wide = tl.where((tl.arange(0, C) == 0)[None, :, None], wide, 0.0)
        return tl.reshape(wide, (HIDDEN, C * RQ))
