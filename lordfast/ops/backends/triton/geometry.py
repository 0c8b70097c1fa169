"""How a rank is laid out in the columns of `tl.dot` (see kernels/device.py), and other sizes that follow from it."""

from __future__ import annotations

from typing import NamedTuple

import torch

MAX_RANK = 64
# Parts that hold fp32's 24 bits: 3 of bf16's 8, 2 of fp16's 11.
_PARTS = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
_LEAST = {torch.float32: 16, torch.float16: 8, torch.bfloat16: 4}
# Products that a program of 4 warps holds at once while it folds: 32 registers a thread.
_FOLD = 4096


class Layout(NamedTuple):
    """The packing of a rank in one dtype: G groups of RQ columns, D dots, C groups carried on (kernels/device.py)."""

    RQ: int
    G: int
    D: int
    C: int


def layout_of(rank: int, dtype: torch.dtype) -> Layout:
    """The layout of a rank from 1 to MAX_RANK for x of a dtype."""
    rq = max(_LEAST[dtype], power_of_two(rank))
    # fp16's low part has a scale of its own, so both parts must have columns of their own.
    groups = 2 if dtype == torch.float16 else max(1, 16 // rq)
    return Layout(rq, groups, -(-_PARTS[dtype] // groups), 1 if rq >= 16 else groups)


def fold_block(layout: Layout) -> int:
    """How much of N is folded at a time beside the forward or backward pass, 16 rows of W1 at once."""
    return _FOLD // (16 * layout.RQ)


def prep_block(layout: Layout) -> int:
    """How much of N is folded at a time in a launch of its own, a row of W1 at once and in fp64."""
    return min(512, _FOLD // (2 * layout.RQ))


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def rank_class(rank: int) -> int:
    """16, 32 or 64: the ranks that share a row of the table of configurations."""
    return max(16, power_of_two(rank))
