"""Named phases of what runs: marks for torch's profiler and for NVTX tools while a profile is taken, nothing before.

Stands below everything, so that all may use it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any

import nvtx
import torch

PHASE = "phase:"
"""What the name of a phase begins with in a trace."""

_OFF = nullcontext()
_recorded_thread: int | None = None
_open: list[str] = []


def phase(name: str) -> AbstractContextManager[Any]:
    """A context that is the phase `name`, such as ``with phase("backward")``; phases nest.

    Costs a function call and an empty context unless `recording` is entered. In code that torch.compile traces it is
    nothing at all: the compiled region belongs to the phase around it.
    """
    # The steps' own thread: what others do meanwhile is no part of a phase.
    if _recorded_thread is None or torch.compiler.is_compiling() or threading.get_ident() != _recorded_thread:
        return _OFF
    return Phase(name)


@contextmanager
def recording() -> Iterator[None]:
    """Inside, phases of this thread leave their marks."""
    global _recorded_thread
    before, _recorded_thread = _recorded_thread, threading.get_ident()
    try:
        yield
    finally:
        _recorded_thread = before


def open_phases() -> tuple[str, ...]:
    """The phases that are open, the outermost first; none outside of `recording`."""
    return tuple(_open)


class Mark:
    """A range of this name for torch's profiler and for NVTX, at half a microsecond."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._record: Any = self._recorded(name)

    def _recorded(self, name: str) -> AbstractContextManager[Any]:
        return torch._C._profiler._RecordFunctionFast(name)

    def __enter__(self) -> None:
        nvtx.push_range(self.name, domain="lordfast")
        self._record.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._record.__exit__(kind, value, trace)
        nvtx.pop_range(domain="lordfast")


class Phase(Mark):
    """A `Mark` that `open_phases` knows of."""

    def __init__(self, name: str) -> None:
        super().__init__(PHASE + name)
        self._phase = name

    def _recorded(self, name: str) -> AbstractContextManager[Any]:
        # Costs more, and the profiler repeats it on a GPU's own time line.
        return torch.autograd.profiler.record_function(name)

    def __enter__(self) -> None:
        _open.append(self._phase)
        super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, trace)
        _open.pop()
