"""The Triton kernels on a GPU, or interpreted on the CPU where there is none; all their memory poisoned with NaN."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

GPU = torch.cuda.is_available()

# The kernels are interpreted if the variable is set when they are imported. No test elsewhere sees it.
with pytest.MonkeyPatch.context() as _patch:
    if not GPU:
        _patch.setenv("TRITON_INTERPRET", "1")
    importlib.import_module("lordfast.ops.backends.triton.run")

from lordfast.ops import use_backend  # noqa: E402
from lordfast.ops.backends.triton import backward, forward, launch, tuning  # noqa: E402
from lordfast.ops.backends.triton.configs import Config  # noqa: E402


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if not GPU:
        assert launch.INTERPRETED, "triton was imported before tests/conftest.py could have it interpreted"
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel should have written and did not is NaN."""
    for module in (forward, backward):
        monkeypatch.setattr(module, "empty", lambda *args: launch.empty(*args).fill_(float("nan")))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if GPU else "cpu")


@pytest.fixture
def forced() -> Iterator[None]:
    """Everything inside runs on this backend."""
    with use_backend("triton"):
        yield


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Config]]:
    """`tiles(m, n, k, entries, fold="kernel")`: all kernels use tiles of this size from now on.

    The interpreter takes its time by the program: small tiles to test what depends on them, large ones for the rest.
    """

    def use(m: int = 16, n: int = 16, k: int = 16, entries: int = 64, **options: Any) -> dict[str, Config]:
        monkeypatch.setattr(backward, "ENTRIES", entries)
        rows = {name: Config("test", name, m, n, k, 4, 1, "small", **options) for name in ("forward", "rows", "dx")}
        monkeypatch.setattr(tuning, "candidates", lambda kernel, *case: (rows[kernel],))
        return rows

    return use


@pytest.fixture
def here(device: torch.device) -> Callable[..., Any]:
    """A case with its tensors on the tests' device."""
    return lambda case: replace(case, tensors=tuple(None if t is None else t.to(device) for t in case.tensors))
