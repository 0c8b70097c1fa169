"""Tiny cases, efforts that take no time, and made-up backends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from lordfast.ops import dispatch
from lordfast.ops.backends._base import Backend, Kernel
from lordfast.profiling import linear, pgd
from lordfast.profiling.cases import LinearCase
from lordfast.profiling.linear import LinearOptions, bench_linear
from lordfast.profiling.rounds import Effort

TINY = LinearCase("sd15", tokens=24, k=20, n=16, batch=2)
EFFORT = Effort(repeats=2, seconds=0.0, least=2, draws=2)


@pytest.fixture(autouse=True)
def _one_thread_and_small_caches(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (linear, pgd):
        monkeypatch.setattr(module, "cache_bytes", lambda device: 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run_tiny() -> Callable[..., dict[tuple[str, str], dict[str, Any]]]:
    """`run_tiny(case, dtype)`: `bench_linear` on a tiny layer, without torch.compile; rows by (direction, variant)."""

    def run(case: LinearCase = TINY, dtype: str = "fp32", **options: Any) -> dict[tuple[str, str], dict[str, Any]]:
        rows = bench_linear(case, LinearOptions(hidden=8, compile=False, **options), dtype, torch.device("cpu"), EFFORT)
        return {(row["direction"], row["variant"]): row for row in rows}

    return run


@pytest.fixture
def add_backend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`add_backend(name, op=kernel function, ...)`: a backend that the dispatcher knows and nobody chooses."""

    def add(name: str, **functions: Callable[..., Any]) -> None:
        kernels = {
            op: function if isinstance(function, Kernel) else Kernel(function) for op, function in functions.items()
        }
        monkeypatch.setitem(dispatch.BACKENDS, name, Backend(name, -1, lambda: None, kernels))

    return add
