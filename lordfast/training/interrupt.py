"""Ctrl-C and SIGTERM end long work at the next safe point instead of in the middle of it."""

from __future__ import annotations

import os
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

    def __reduce__(self) -> tuple[type[Interrupted], tuple[str]]:
        # It travels between the processes of a run; the default would rebuild it from the whole message.
        return type(self), (self.done,)


class StopOnSignal:
    """A context in which SIGINT or SIGTERM sets `requested`; a second SIGINT raises KeyboardInterrupt.

    Contexts nest: what the inner one was asked for, the outer one learns when it ends.

    Under torchrun it does not: the launcher sends its own copy of every signal that the terminal sent already, and
    kills the process when it takes too long.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, signal.Handlers] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ:
            raise KeyboardInterrupt
        if not self.requested and os.environ.get("RANK", "0") == "0":
            # Not print: a signal can come in the middle of one, and buffered streams refuse to be entered twice.
            os.write(2, b"\nStopping at the next safe point; Ctrl-C once more stops at once.\n")
        self.requested = True

    def __enter__(self) -> StopOnSignal:
        # Python delivers signals to the main thread alone and refuses handlers elsewhere.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)  # type: ignore[assignment]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
            outer = getattr(handler, "__self__", None)
            if self.requested and isinstance(outer, StopOnSignal):
                outer.requested = True
