"""P = s W1 B, (H, R), for gates so large that folding in every program of the main kernel would cost more.

Bytes: W1 and B once each a row of H (B from L2), P written: 4 (H N + N R + H R). FLOPs 2 H N R. A program a row, which
has nothing to wait for but its own loads: a launch's latency is the floor.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .device import fold_rows


@triton.jit
def prep_kernel(w1, b, p, N, R, H, scaling, RQ: tl.constexpr, BLOCK: tl.constexpr):
    h = tl.program_id(0) + tl.arange(0, 1)
    j = tl.arange(0, RQ)
    row = fold_rows(w1, b, h, N, R, H, tl.full((), scaling, tl.float32), 1, RQ, BLOCK, True)
    tl.store(p + h[:, None] * R + j[None, :], row, mask=(j < R)[None, :])
