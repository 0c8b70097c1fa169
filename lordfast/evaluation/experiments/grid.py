"""A grid of cells: each is computed once, kept in a folder of its own, and reused; several processes share the work."""

from __future__ import annotations

import json
import re
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from rich.markup import escape

from lordfast.evaluation.experiments.claims import Owner, claim, is_lock, owner_of
from lordfast.training.config import differences
from lordfast.training.interrupt import Interrupted, StopOnSignal
from lordfast.training.progress import console
from lordfast.training.run import write_json

CONFIG, RESULT, ERROR, SECONDS = "config.json", "cell.json", "error.json", "seconds.json"
_NAME = re.compile(r"[\w+-][\w.+-]*(/[\w+-][\w.+-]*)*")

T = TypeVar("T")
Result = dict[str, Any]


def slug(text: str) -> str:
    """`text` as a part of a cell's name: ``16-255`` of ``16/255``."""
    return re.sub(r"[^\w.+-]+", "-", text)


class CellRun:
    """What a cell's work is handed.

    Attributes:
        folder: the cell's own.
        results: of the cells that it needs, by name.
        seconds: of every step so far, those of earlier sessions included.
    """

    def __init__(self, folder: Path, results: Mapping[str, Result], stop: StopOnSignal) -> None:
        self.folder, self.results, self._stop = folder, results, stop
        path = folder / SECONDS
        self.seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def step(self, title: str, work: Callable[[], T]) -> T:
        """Do `work` and add its time to that of `title`.

        Raises:
            Interrupted: a signal has asked to stop; `work` has not begun then.
        """
        if self._stop.requested:
            raise Interrupted(f"before {title}")
        started = time.perf_counter()
        try:
            return work()
        finally:
            spent = self.seconds.get(title, 0.0) + time.perf_counter() - started
            self.seconds[title] = round(spent, 3)
            write_json(self.folder / SECONDS, self.seconds)


@dataclass(frozen=True)
class Cell:
    """A piece of work with a result.

    Attributes:
        name: of its folder below the grid's; slashes make sub-folders.
        config: plain JSON values, all that decides about the result.
        work: computes the result, plain JSON values; whatever it writes lies in its `CellRun.folder`. Called again
            after an interruption, with what it had written still there.
        needs: names of earlier cells whose results it reads.
    """

    name: str
    config: dict[str, Any]
    work: Callable[[CellRun], Result]
    needs: tuple[str, ...] = ()


@dataclass
class Status:
    """How far a grid is: results and errors by the cells' names, and the cells that are not decided.

    Attributes:
        done: what the cells gave.
        failed: why the cells gave nothing: ``type``, ``message``, ``traceback``, ``at``.
        blocked: cells that need a failed or blocked one, with that one's name.
        left: cells still to be computed.
    """

    done: dict[str, Result] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return not (self.failed or self.blocked or self.left)


class Grid:
    """Cells in a folder.

    Raises:
        ValueError: names that are no relative paths, that come twice or lie inside one another; needs that don't stand
            before the cell.
    """

    def __init__(self, folder: Path, cells: Sequence[Cell]) -> None:
        self.folder = Path(folder)
        self._results: dict[str, Result] = {}
        self.cells: dict[str, Cell] = {}
        for cell in cells:
            if not _NAME.fullmatch(cell.name):
                raise ValueError(f"cells: expected names of letters, digits, _ . + - and slashes, got {cell.name!r}")
            if cell.name in self.cells:
                raise ValueError(f"cells: {cell.name!r} comes twice")
            missing = [name for name in cell.needs if name not in self.cells]
            if missing:
                raise ValueError(f"cells: {cell.name!r} needs {missing[0]!r}, which does not stand before it")
            self.cells[cell.name] = cell
        for name in self.cells:
            around = [str(parent) for parent in PurePosixPath(name).parents if str(parent) in self.cells]
            if around:
                raise ValueError(f"cells: {name!r} lies inside {around[0]!r}")

    def path(self, name: str) -> Path:
        """The folder of a cell."""
        return self.folder / name

    def holders(self) -> dict[str, Owner]:
        """Cells that living processes, or processes of other hosts, are working on."""
        owners = {name: owner_of(self.path(name)) for name in self.cells}
        return {name: owner for name, owner in owners.items() if owner is not None and not owner.is_dead()}

    def status(self) -> Status:
        """What the folder holds now. A result outweighs an error."""
        found = Status()
        for name, cell in self.cells.items():
            result = self._results.get(name) or _read(self.path(name) / RESULT)
            if result is not None:
                # It stays as it is, and a large grid is looked at after every cell.
                self._results[name] = result
            error = _read(self.path(name) / ERROR) if result is None else None
            bad = [need for need in cell.needs if need in found.failed or need in found.blocked]
            if result is not None:
                found.done[name] = result
            elif bad:
                found.blocked[name] = bad[0]
            elif error is not None:
                found.failed[name] = error
            else:
                found.left.append(name)
        return found

    def check(self) -> None:
        """Raise ValueError where a cell's folder belongs to another definition of the cell."""
        for cell in self.cells.values():
            self._check(cell)

    def _check(self, cell: Cell) -> None:
        stored = _read(self.path(cell.name) / CONFIG)
        # As JSON has it: there, tuples are lists.
        changed = differences(stored, json.loads(json.dumps(cell.config))) if stored is not None else []
        if changed:
            raise ValueError(
                f"out: the cell {cell.name} in {self.folder} was made with other settings ({'; '.join(changed)}); "
                "expected the same ones, or another --out"
            )

    def run(
        self, *, retry: bool = False, on_cell: Callable[[str, Status], Any] | None = None, poll: float = 1.0
    ) -> Status:
        """Compute every cell that has no result; those that other processes work on are waited for.

        A cell that raises is recorded with its error, and those that don't need it go on.

        Args:
            retry: compute again, from nothing, what had failed before this call, and the cells whose results say that
                something was unavailable.
            on_cell: called with the name of every cell that this process computed, failed or not, and the new status.
            poll: seconds between looks at what others are doing.

        Raises:
            Interrupted: SIGINT or SIGTERM; the cell in work goes on where it was, next time.
            ValueError: a folder belongs to another definition of its cell.
        """
        self.check()
        if retry:
            self._reopen_lacking()
        # As they were when this call began: what another process has tried again since then is not tried once more.
        again = self.status().failed if retry else {}
        said: set[str] = set()
        with StopOnSignal() as stop:
            while True:
                worked = False
                for cell in self.cells.values():
                    worked |= self._try(cell, again, stop, on_cell)
                status = self.status()
                if not status.left and not any(status.failed.get(name) == error for name, error in again.items()):
                    return status
                if not worked:
                    self._wait(poll, stop, said)

    def _reopen_lacking(self) -> None:
        """Have the cells whose results lack something stand as failed, with the reason."""
        for name in [name for name, result in self.status().done.items() if lacks(result)]:
            folder = self.path(name)
            with claim(folder) as mine:
                # Another process may have been here first.
                result = _read(folder / RESULT) if mine else None
                if result is not None and (reason := lacks(result)):
                    write_json(folder / ERROR, _record(LookupError(f"unavailable: {reason}")))
                    (folder / RESULT).unlink()
            self._results.pop(name, None)

    def _try(
        self,
        cell: Cell,
        again: dict[str, dict[str, str]],
        stop: StopOnSignal,
        on_cell: Callable[[str, Status], Any] | None,
    ) -> bool:
        """Compute `cell` if it can be and nobody else does; whether this process did."""
        folder = self.path(cell.name)
        results = {name: _read(self.path(name) / RESULT) for name in cell.needs}
        if not _is_open(cell, folder, again) or any(result is None for result in results.values()):
            return False
        with claim(folder) as mine:
            # It may have been finished between the look and the claim.
            if not mine or not _is_open(cell, folder, again):
                return False
            if stop.requested:
                raise self._interrupted()
            self._check(cell)
            if (folder / ERROR).exists():
                _empty(folder)
            write_json(folder / CONFIG, cell.config)
            self._compute(cell, CellRun(folder, {n: r for n, r in results.items() if r is not None}, stop))
        if on_cell is not None:
            on_cell(cell.name, self.status())
        return True

    def _compute(self, cell: Cell, run: CellRun) -> None:
        number = list(self.cells).index(cell.name) + 1
        console.print(f"[bold]\\[{number}/{len(self.cells)}] {cell.name}[/]", highlight=False)
        try:
            result = cell.work(run)
        except Interrupted:
            raise self._interrupted() from None
        # Whatever it is, the other cells don't depend on it, and it is reported with the table.
        except Exception as error:
            said = escape(f"{type(error).__name__}: {error}")
            console.print(f"[red]failed[/] {cell.name}: {said}", highlight=False, soft_wrap=True)
            write_json(run.folder / ERROR, _record(error))
        else:
            write_json(run.folder / RESULT, {**result, "seconds": run.seconds})

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"after {len(self.status().done)} of {len(self.cells)} cells")

    def _wait(self, poll: float, stop: StopOnSignal, said: set[str]) -> None:
        for name, owner in self.holders().items():
            if name not in said:
                console.print(f"waiting for {name}: {owner} works on it", highlight=False)
                said.add(name)
        time.sleep(poll)
        if stop.requested:
            raise self._interrupted()


def lacks(result: Any) -> str | None:
    """The first reason under any ``unavailable`` in a cell's result; None where nothing was."""
    if isinstance(result, list):
        return next(filter(None, map(lacks, result)), None)
    if not isinstance(result, dict):
        return None
    if reasons := result.get("unavailable"):
        return str(next(iter(reasons.values())) if isinstance(reasons, dict) else reasons)
    return next(filter(None, map(lacks, result.values())), None)


def _is_open(cell: Cell, folder: Path, again: dict[str, dict[str, str]]) -> bool:
    if (folder / RESULT).exists():
        return False
    error = _read(folder / ERROR)
    return error is None or error == again.get(cell.name)


def _empty(folder: Path) -> None:
    """Remove all but locks. The error goes last: until then it marks the folder as one to be emptied."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == ERROR):
        if not is_lock(path):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _record(error: Exception) -> dict[str, str]:
    return {
        "type": type(error).__name__,
        "message": str(error),
        "traceback": "".join(traceback.format_exception(error)),
        # With the time two attempts that fail in the same way are two errors.
        "at": datetime.now(timezone.utc).isoformat(),
    }


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
