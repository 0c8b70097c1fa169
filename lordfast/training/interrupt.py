"""Ctrl-C and SIGTERM end long work at the next safe point instead of in the middle of it."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType


class Interrupted(Exception):
    """Work stopped on request after saving all it had; ``--resume`` goes on from there.

    Attributes:
        done: how far it came, such as ``after step 40 of 100``.
    """

    def __init__(self, done: str) -> None:
        super().__init__(f"stopped {done}; run again with --resume to go on")
        self.done = done


class StopOnSignal:
    """A context in which the first SIGINT or SIGTERM sets `requested`; a second one raises KeyboardInterrupt."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, signal.Handlers] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> StopOnSignal:
        # Python delivers signals to the main thread alone and refuses handlers elsewhere.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)  # type: ignore[assignment]
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
