"""How this backend launches and allocates: one place for the device guard, the launch count and fresh memory.

Imports triton through the kernels; imported by the operations here when one first runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

from .kernels import prep

# Settled when the kernels were imported: a change of TRITON_INTERPRET after that has no effect on them.
INTERPRETED: bool = isinstance(prep.prep_kernel, InterpretedFunction)


class Launch(NamedTuple):
    """One launch of a kernel: its positional arguments, its constants and the compiler's options."""

    kernel: Any
    args: tuple[Any, ...]
    options: dict[str, Any]


_launches: list[Launch] | None = None
_executes = True


def empty(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised memory on the device of `like`: every number of it is for a kernel to write."""
    return torch.empty(shape, dtype=dtype, device=like.device)


def launch(kernel: Any, programs: int, like: Tensor, *args: Any, **options: Any) -> None:
    """Run `programs` programs of a kernel on torch's current stream of `like`'s device; none at all for 0."""
    if not programs:
        return
    if _launches is not None:
        _launches.append(Launch(kernel, args, options))
    if not _executes:
        return
    with torch.cuda.device(like.device) if like.is_cuda else nullcontext():
        kernel[(programs,)](*args, **options)


@contextmanager
def recording(*, execute: bool = True) -> Iterator[list[Launch]]:
    """The launches made inside, which are only written down without `execute`; not to be nested."""
    global _launches, _executes
    _launches, _executes = [], execute
    try:
        yield _launches
    finally:
        _launches, _executes = None, True


def matrix(t: Tensor, rows: int) -> Tensor:
    """(rows, columns) without a copy where strides allow; the kernels count in 32 bits inside a tile."""
    t = t.reshape(rows, t.shape[-1])
    return t if t.stride(1) < 2**20 else t.contiguous()


def cdiv(a: int, b: int) -> int:
    return -(-a // b)
