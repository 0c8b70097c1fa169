"""The `triton` backend: fused kernels for CUDA devices, compute capability 8.0 and later.

Imported by `lordfast.ops.backends` only; imports torch, and triton when an operation of it first runs.
`kernels/` is the device code, `forward` and `backward` launch it, `configs` and `tuning` choose the tile sizes, and
`python -m lordfast.ops.backends.triton.aot` compiles everything without a GPU and says what it takes.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from .._base import Backend, Kernel
from .cases import refuses_backward, refuses_forward, refuses_qkv


def _missing() -> str | None:
    if not _has_triton():
        return "triton is not installed"
    if _has_cuda():
        return None
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "no CUDA device (TRITON_INTERPRET=1 runs it on CPU tensors, for tests)"
    return None if _interprets() else "no CUDA device (TRITON_INTERPRET=1 was set after triton had been imported)"


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _has_cuda() -> bool:
    return torch.cuda.is_available()


@cache
def _interprets() -> bool:
    # Triton compiles or interprets its own device functions for good, by what was set at its import.
    language = importlib.import_module("triton.language")
    return isinstance(language.cdiv, importlib.import_module("triton.runtime.interpreter").InterpretedFunction)


def _lazily(name: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        return getattr(importlib.import_module(f"{__name__}.run"), name)(*args)

    return run


BACKEND = Backend(
    name="triton",
    priority=20,
    missing=_missing,
    kernels={
        "lord_forward": Kernel(_lazily("lord_forward"), refuses_forward),
        "lord_backward": Kernel(_lazily("lord_backward"), refuses_backward),
        "lord_qkv_forward": Kernel(_lazily("lord_qkv_forward"), refuses_qkv),
    },
    devices=("cuda",),
)
