"""Processes side by side on one folder: who does what, who stops, and where all meet again.

Nobody waits for anybody while there is work, so what they tell each other goes through small files beside the results:
a collective would have to be entered by all at once, and gives up after some minutes.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from lordfast.files import write_atomic
from lordfast.training.interrupt import Interrupted, StopOnSignal
from lordfast.training.processes import on_all, on_main

T = TypeVar("T")

PAUSE = 0.1
"""Seconds between two looks at what the others are doing."""
PATIENCE = 20.0
"""Seconds that a process which has to stop waits for the others; torchrun kills it after 30."""


class Team:
    """The processes of a run, which share its work out; without an accelerator one process that does everything.

    Args:
        name: tells the notes of runs apart that write into one folder.
    """

    def __init__(self, accelerator: Any = None, name: str = "") -> None:
        self._accelerator = accelerator
        self.size: int = 1 if accelerator is None else accelerator.num_processes
        self.rank: int = accelerator.process_index if self.size > 1 else 0
        self._name = f".processes{name}"

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[T], rank: int | None = None) -> Sequence[T]:
        """The items that this process, or the one of that rank, works on: dealt out like cards."""
        return items[self.rank if rank is None else rank :: self.size]

    def on_main(self, work: Callable[[], T]) -> T:
        """`processes.on_main` for this team."""
        return work() if self.size == 1 else on_main(self._accelerator, work)

    def on_all(self, work: Callable[[], T]) -> list[T]:
        """`processes.on_all` for this team: for work of which each process has about as much."""
        return [work()] if self.size == 1 else on_all(self._accelerator, work)

    @contextmanager
    def together(self, folder: Path, waiting: Callable[[], Any] = lambda: None) -> Iterator[Callable[[], bool]]:
        """A block that ends when it has ended on every process; what one of them raises, all raise.

        Yields what says whether to stop: SIGINT or SIGTERM came, or another process has come to an early end.

        Args:
            folder: one that all processes see; notes lie there meanwhile.
            waiting: called again and again while this process waits for the others.

        Raises:
            Interrupted: a process was, and none failed; or the others do not come although this one has to stop.
        """
        with StopOnSignal() as stop:
            if self.size == 1:
                yield lambda: stop.requested
                return
            notes = self.on_main(lambda: _fresh(folder / self._name))
            failure: Exception | None = None
            try:
                yield lambda: stop.requested or (notes / "stop").exists()
            except BaseException as error:
                write_atomic(notes / "stop", b"")
                # What is no Exception, a second Ctrl-C, ends this process at once.
                if not isinstance(error, Exception):
                    raise
                failure = error
            write_atomic(notes / str(self.rank), json.dumps(_described(failure)).encode())
            self._await_all(notes, waiting, stop, failure)
        found = [json.loads((notes / str(rank)).read_text()) for rank in range(self.size)]
        self._accelerator.wait_for_everyone()
        if self.is_main:
            shutil.rmtree(notes.parent, ignore_errors=True)
        failed = [rank for rank, note in enumerate(found) if note is not None]
        if failed:
            # An interruption may be the consequence of a failure elsewhere, never its cause.
            first = min(failed, key=lambda rank: (found[rank]["kind"] == "Interrupted", rank))
            raise failure if failure is not None and first == self.rank else _rebuilt(found[first], first)

    def _await_all(
        self, notes: Path, waiting: Callable[[], Any], stop: StopOnSignal, failure: Exception | None
    ) -> None:
        missing = set(range(self.size))
        until: float | None = None
        while True:
            missing = {rank for rank in missing if not (notes / str(rank)).exists()}
            if not missing:
                return
            if until is None and (stop.requested or isinstance(failure, Interrupted)):
                until = time.monotonic() + PATIENCE
            if until is not None and time.monotonic() > until:
                raise failure or Interrupted("while waiting for other processes")
            waiting()
            time.sleep(PAUSE)


class Others(Generic[T]):
    """What the other processes of a team have finished, seen by its results, for the main process's progress bar.

    Args:
        to_do: everything that `Team.share` shares out.
        is_done: whether the result of an item is there.
        tell: called with each item that another process has finished.

    Attributes:
        seen: how many those are.
    """

    def __init__(self, team: Team, to_do: Sequence[T], is_done: Callable[[T], bool], tell: Callable[[T], Any]) -> None:
        self._left = [deque(team.share(to_do, rank)) for rank in range(1, team.size) if team.is_main]
        self._is_done, self._tell, self._not_before = is_done, tell, 0.0
        self.seen = 0

    def look(self) -> None:
        """Look, unless that was less than a second ago."""
        if not self._left or time.monotonic() < self._not_before:
            return
        self._not_before = time.monotonic() + 1
        for left in self._left:
            while left and self._is_done(left[0]):
                self._tell(left.popleft())
                self.seen += 1


def _fresh(notes: Path) -> Path:
    # A name of its own: notes that a killed session left must not count.
    shutil.rmtree(notes, ignore_errors=True)
    folder = notes / uuid.uuid4().hex
    folder.mkdir(parents=True)
    return folder


def _described(failure: Exception | None) -> dict[str, str] | None:
    if failure is None:
        return None
    if isinstance(failure, Interrupted):
        return {"kind": "Interrupted", "message": failure.done}
    kinds = (kind for kind in (ValueError, OSError) if isinstance(failure, kind))
    return {"kind": next(kinds, type(failure)).__name__, "message": str(failure)}


def _rebuilt(note: dict[str, str], rank: int) -> Exception:
    known: dict[str, type[Exception]] = {"Interrupted": Interrupted, "ValueError": ValueError, "OSError": OSError}
    if note["kind"] in known:
        return known[note["kind"]](note["message"])
    return RuntimeError(f"process {rank} failed with {note['kind']}: {note['message']}")
