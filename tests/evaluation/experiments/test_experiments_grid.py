"""The bookkeeping of a grid with toy cells: once, interrupted, failed, retried, and shared between processes."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from lordfast.evaluation.experiments.claims import Owner, claim, owner_of
from lordfast.evaluation.experiments.grid import Cell, CellRun, Grid, Status
from lordfast.training.interrupt import Interrupted, StopOnSignal


class Toys:
    """Cells that count how often they were computed, and fail as long as they are told to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.bad = folder, [], set()

    def work(self, name: str, value: float) -> Callable[[CellRun], dict[str, Any]]:
        def compute(run: CellRun) -> dict[str, Any]:
            self.calls.append(name)
            total = value + sum(result["total"] for result in run.results.values())
            run.step("first", lambda: (run.folder / "first.txt").write_text(str(total)))
            if name in self.bad:
                raise RuntimeError(f"[no] {name}")
            return {"total": run.step("second", lambda: total)}

        return compute

    def grid(self, **values: float) -> Grid:
        """a and b; c needs both; d needs c; e stands alone."""
        needs = {"c": ("x/a", "x/b"), "d": ("x/c",)}
        cells = [
            Cell(f"x/{name}", {"value": value}, self.work(name, value), needs.get(name, ()))
            for name, value in ({"a": 1, "b": 2, "c": 4, "d": 8, "e": 16} | values).items()
        ]
        return Grid(self.folder, cells)


@pytest.fixture
def toys(tmp_path: Path) -> Toys:
    return Toys(tmp_path / "grid")


def totals(status: Status) -> dict[str, float]:
    return {name.removeprefix("x/"): result["total"] for name, result in status.done.items()}


ALL = {"a": 1, "b": 2, "c": 7, "d": 15, "e": 16}


def test_every_cell_is_computed_once_and_reused(toys: Toys) -> None:
    status = toys.grid().run()
    assert status.complete and totals(status) == ALL
    assert toys.calls == ["a", "b", "c", "d", "e"]
    assert totals(toys.grid().run()) == ALL and len(toys.calls) == 5
    assert set(status.done["x/a"]["seconds"]) == {"first", "second"}
    assert not list(toys.folder.rglob("lock"))
    assert json.loads((toys.folder / "x" / "c" / "config.json").read_text()) == {"value": 4}


def test_a_failed_cell_is_recorded_and_the_others_go_on(toys: Toys) -> None:
    toys.bad = {"c"}
    seen: list[tuple[str, int]] = []
    status = toys.grid().run(on_cell=lambda name, status: seen.append((name, len(status.done))))
    assert totals(status) == {"a": 1, "b": 2, "e": 16}
    assert status.failed["x/c"]["type"] == "RuntimeError" and status.failed["x/c"]["message"] == "[no] c"
    assert "in compute" in status.failed["x/c"]["traceback"]
    assert status.blocked == {"x/d": "x/c"} and status.left == [] and not status.complete
    assert seen == [("x/a", 1), ("x/b", 2), ("x/c", 2), ("x/e", 3)]


def test_a_failed_cell_runs_again_only_when_asked_and_from_nothing(toys: Toys) -> None:
    toys.bad = {"c"}
    toys.grid().run()
    toys.calls.clear()
    assert toys.grid().run().failed.keys() == {"x/c"} and toys.calls == []
    # Still bad: tried once more, not for ever.
    before = toys.grid().status().failed["x/c"]
    (toys.folder / "x" / "c" / "half.txt").touch()
    assert toys.grid().run(retry=True).failed["x/c"]["at"] != before["at"]
    assert toys.calls == ["c"] and not (toys.folder / "x" / "c" / "half.txt").exists()
    toys.bad = set()
    status = toys.grid().run(retry=True)
    assert status.complete and totals(status) == ALL and toys.calls == ["c", "c", "d"]
    assert not (toys.folder / "x" / "c" / "error.json").exists()


@pytest.mark.parametrize("lack", [{"a": {"unavailable": "no w"}}, {"s": [{"unavailable": {"clip": "no w"}}]}])
def test_what_lacks_something_runs_again_only_when_asked_and_from_nothing(lack: dict[str, Any], toys: Toys) -> None:
    def measure(run: CellRun) -> dict[str, Any]:
        toys.calls.append("e")
        return lack if not (toys.folder / "weights").exists() else {"total": 16, "unavailable": {}}

    def grid() -> Grid:
        made = toys.grid()
        made.cells["x/e"] = Cell("x/e", {"value": 16}, measure)
        return made

    first = grid()
    assert first.run().complete
    toys.calls.clear()
    assert first.run().complete and toys.calls == []
    (first.path("x/e") / "half.txt").touch()
    # Still no weights: tried once, and as complete as before.
    assert first.run(retry=True).complete and toys.calls == ["e"]
    assert not (first.path("x/e") / "half.txt").exists() and not (first.path("x/e") / "error.json").exists()
    (toys.folder / "weights").touch()
    assert totals(first.run(retry=True)) == ALL == totals(grid().run(retry=True)) and toys.calls == ["e", "e"]


def test_what_another_process_has_tried_again_is_not_tried_once_more(toys: Toys) -> None:
    toys.bad = {"a", "e"}
    toys.grid().run()
    toys.calls.clear()
    toys.bad = set()
    grid = toys.grid()
    meanwhile = {"type": "RuntimeError", "message": "[no] e", "traceback": "", "at": "later"}

    def slow(run: CellRun) -> dict[str, Any]:
        (grid.path("x/e") / "error.json").write_text(json.dumps(meanwhile))
        return {"total": 1}

    grid.cells["x/a"] = Cell("x/a", {"value": 1}, slow)
    assert grid.run(retry=True).failed == {"x/e": meanwhile}
    assert toys.calls == ["c", "d"]


def test_the_time_of_earlier_sessions_counts(toys: Toys) -> None:
    (toys.folder / "x" / "a").mkdir(parents=True)
    (toys.folder / "x" / "a" / "seconds.json").write_text('{"first": 100}')
    seconds = toys.grid().run().done["x/a"]["seconds"]
    assert 100 <= seconds["first"] < 160 and seconds["second"] < 60


def test_a_signal_stops_between_steps_and_the_cell_goes_on_later(toys: Toys) -> None:
    grid = toys.grid()

    def interrupted(run: CellRun) -> dict[str, Any]:
        toys.calls.append("b")
        run.step("first", lambda: (run.folder / "kept.txt").write_text("kept"))
        run.step("signal", lambda: signal.raise_signal(signal.SIGINT))
        return {"total": run.step("never", lambda: 0)}

    grid.cells["x/b"] = Cell("x/b", {"value": 2}, interrupted)
    with pytest.raises(Interrupted, match="after 1 of 5 cells"):
        grid.run()
    assert toys.calls == ["a", "b"] and owner_of(grid.path("x/b")) is None
    assert toys.grid().status().left == ["x/b", "x/c", "x/d", "x/e"]
    assert (grid.path("x/b") / "kept.txt").exists()
    assert not (grid.path("x/b") / "error.json").exists()
    status = toys.grid().run()
    assert totals(status) == ALL and toys.calls == ["a", "b", "b", "c", "d", "e"]
    assert set(status.done["x/b"]["seconds"]) == {"first", "signal", "second"}


def test_a_signal_that_an_inner_part_was_too_late_for_stops_the_grid(toys: Toys) -> None:
    grid = toys.grid()

    def last_batch(run: CellRun) -> dict[str, Any]:
        def inner() -> None:
            with StopOnSignal():
                signal.raise_signal(signal.SIGTERM)

        run.step("inner", inner)
        return {"total": 1}

    grid.cells["x/a"] = Cell("x/a", {"value": 1}, last_batch)
    with pytest.raises(Interrupted, match="after 1 of 5 cells"):
        grid.run()
    assert toys.calls == []


def test_other_settings_of_a_cell_are_named(toys: Toys) -> None:
    toys.grid().run()
    with pytest.raises(ValueError, match=r"x/b .*value: 2 -> 3"):
        toys.grid(b=3).run()
    assert len(toys.calls) == 5


def test_tuples_are_the_lists_that_json_makes_of_them(tmp_path: Path) -> None:
    for _ in range(2):
        grid = Grid(tmp_path, [Cell("a", {"eps": ("1/255", "2/255")}, lambda run: {})])
        assert grid.run().complete


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a"], "twice"),
        (["../a"], "letters"),
        (["a//b"], "letters"),
        (["/a"], "letters"),
        (["a", "a/b"], "inside"),
    ],
)
def test_names_that_no_folder_can_have(names: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Grid(tmp_path, [Cell(name, {}, lambda run: {}) for name in names])


def test_a_need_has_to_stand_before(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'b', which does not stand before"):
        Grid(tmp_path, [Cell("a", {}, lambda run: {}, ("b",)), Cell("b", {}, lambda run: {})])


def test_a_cell_in_other_hands_is_waited_for(toys: Toys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process holds a cell, and finishes it while this one looks round."""
    grid = toys.grid()
    naps = []
    other = claim(grid.path("x/a"))
    assert other.__enter__()

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        (grid.path("x/a") / "cell.json").write_text('{"total": 1, "seconds": {}}')
        other.__exit__(None, None, None)

    monkeypatch.setattr(time, "sleep", sleep)
    status = grid.run(poll=0.25)
    assert naps == [0.25] and toys.calls == ["b", "e", "c", "d"] and totals(status) == ALL


def test_the_lock_of_a_dead_process_is_taken_over(toys: Toys) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    lock = toys.grid().path("x/a") / "lock"
    lock.mkdir(parents=True)
    (lock / "owner.json").write_text(json.dumps(vars(Owner(process.pid, Owner.here().host, ""))))
    assert toys.grid().holders() == {}
    assert toys.grid().run().complete


def share(folder: Path, kill: str, together: int) -> None:
    """What each of `together` processes does: 30 cells and their sum, in the same grid."""

    def work(run: CellRun) -> dict[str, Any]:
        with (folder / "log").open("a") as log:
            log.write(f"{run.folder.name} {os.getpid()}\n")
        if run.folder.name == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        # Longer than the other needs to look round: who shares, gets some.
        time.sleep(0.02)
        return {"total": sum(result["total"] for result in run.results.values()) + 1}

    names = [f"c{i}" for i in range(30)]
    cells = [Cell(name, {}, work) for name in names] + [Cell("sum", {}, work, tuple(names))]
    (folder / f"ready-{os.getpid()}").touch()
    while len(list(folder.glob("ready-*"))) < together:
        time.sleep(0.01)
    status = Grid(folder / "grid", cells).run(poll=0.05)
    assert status.complete and status.done["sum"]["total"] == 31


def started(folder: Path, kill: str, together: int) -> list[BaseProcess]:
    # Forked: a fresh interpreter would spend nearly all of the test on imports.
    context = multiprocessing.get_context("fork")
    processes: list[BaseProcess] = [
        context.Process(target=share, args=(folder, kill, together)) for _ in range(together)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return processes


def done_by(folder: Path) -> tuple[list[str], set[str]]:
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    return sorted(name for name, _ in lines), {pid for _, pid in lines}


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    assert [process.exitcode for process in started(tmp_path, "none", 2)] == [0, 0]
    names, pids = done_by(tmp_path)
    assert names == sorted([*(f"c{i}" for i in range(30)), "sum"]) and len(pids) == 2


def test_what_a_killed_process_held_is_done_by_the_next(tmp_path: Path) -> None:
    assert [process.exitcode for process in started(tmp_path, "c3", 1)] == [-signal.SIGKILL]
    assert owner_of(tmp_path / "grid" / "c3") is not None
    assert [process.exitcode for process in started(tmp_path, "none", 1)] == [0]
    names, pids = done_by(tmp_path)
    assert names.count("c3") == 2 and len(names) == 32 and len(pids) == 2
