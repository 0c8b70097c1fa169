"""How this backend launches and allocates: one place for the device guard, the launch count and fresh memory.

Imports triton through the kernels; imported by the operations here when one first runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from .kernels import prep

# Settled when the kernels were imported: a change of TRITON_INTERPRET after that has no effect on them.
INTERPRETED: bool = isinstance(prep.prep_kernel, InterpretedFunction)

_counts: Counter[str] | None = None


def empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory on the device of `like`: every number of it is for a kernel to write."""
    return torch.empty(shape, dtype=dtype, device=like.device)


def launch(kernel: Any, programs: int, like: Tensor, *args: Any, **options: Any) -> None:
    """Run `programs` programs of a kernel on torch's current stream of `like`'s device; none at all for 0."""
    if not programs:
        return
    if _counts is not None:
        _counts[kernel.fn.__name__] += 1
    with torch.cuda.device(like.device) if like.is_cuda else nullcontext():
        kernel[(programs,)](*args, **options)


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """The launches made inside, by kernel name; not to be nested."""
    global _counts
    _counts = Counter()
    try:
        yield _counts
    finally:
        _counts = None


def matrix(t: Tensor, rows: int) -> Tensor:
    """(rows, columns) without a copy where strides allow; the kernels count in 32 bits inside a tile."""
    t = t.reshape(rows, t.shape[-1])
    return t if t.stride(1) < 2**20 else t.contiguous()


def cdiv(a: int, b: int) -> int:
    return -(-a // b)
