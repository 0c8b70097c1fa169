"""Opening the folder of an experiment, which several processes may do at the same time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lordfast.diffusion import LatentDiffusion
from lordfast.evaluation.experiments.claims import holders
from lordfast.evaluation.experiments.grid import Cell, Grid, Status
from lordfast.evaluation.features import extract, load_features
from lordfast.evaluation.measure import Unavailable
from lordfast.training.config import RunConfig, changes, read_yaml, write_yaml
from lordfast.training.interrupt import Interrupted
from lordfast.training.run import RunFolder

C = TypeVar("C", bound="GridConfig")

_SHARE = 20.0
"""Tables are written again after as many times as long as it took to write them."""


@dataclass(kw_only=True)
class GridConfig(RunConfig):
    """What every experiment's config shares."""

    retry: bool = False
    """Compute failed cells again, and those that could not measure something, such as for want of weights."""
    page: Path | None = None
    """Also write the table into this Markdown file, between <!-- table:begin --> and <!-- table:end -->."""


def open_grid(
    config: GridConfig, command: str, cells: Sequence[Cell], *, grows: bool = False
) -> tuple[RunFolder, Grid]:
    """The run folder ``config.out`` and its grid; one that is there already goes on, also without ``resume``.

    Args:
        grows: other settings are welcome, as long as no cell has changed: what the settings add is computed. They
            become those of the folder.

    Raises:
        ValueError: the folder holds something else, or the same experiment with other settings, which are named; it is
            to be overwritten while processes work in it.
    """
    grid = Grid(config.out / "cells", cells)
    if grows:
        _grow(config, command, grid)
    if config.overwrite and (busy := grid.holders()):
        name, owner = next(iter(busy.items()))
        raise ValueError(f"overwrite: {owner} is working on {name} in {config.out}; stop it first")
    try:
        run = _open(config, command, grid)
    except ValueError:
        # Another process may be creating the folder at this very moment: in a moment it will be a run.
        time.sleep(0.2)
        run = _open(config, command, grid)
    # Had two different ones been started at once, the first one's settings would have been replaced.
    RunFolder.inspect(_going_on(config), command)
    return run, grid


def _grow(config: GridConfig, command: str, grid: Grid) -> None:
    """Write the settings over those of a folder of the same experiment, if its cells allow it."""
    path = config.out / "config.yaml"
    if config.overwrite or not path.exists():
        return
    changed = "; ".join(changes(read_yaml(path, command), config))
    if not changed:
        return
    grid.check()
    if busy := holders(grid.folder):
        name, owner = next(iter(busy.items()))
        raise ValueError(
            f"out: the experiment in {config.out} has other settings ({changed}), and {owner} is working on {name}; "
            "expected the same settings, or nobody at work"
        )
    write_yaml(path, command, dataclasses.replace(config, retry=False))
    (config.out / "summary.json").unlink(missing_ok=True)


def compute(
    config: GridConfig,
    run: RunFolder,
    grid: Grid,
    write: Callable[[Status], dict[str, Any]],
    finish: Callable[[dict[str, Any]], Any],
) -> dict[str, Any]:
    """Compute what is missing; returns what results.json holds.

    Args:
        write: writes what there is as tables, and returns it. Called now and then as cells are finished.
        finish: adds what takes longer, such as charts; called at the end, and on an interruption.

    Raises:
        Interrupted: on Ctrl-C, with the tables of what is there.
    """
    spent, written = 0.0, 0.0

    def save(status: Status) -> dict[str, Any]:
        nonlocal spent, written
        started = time.perf_counter()
        results = write(status)
        written = time.perf_counter()
        spent = written - started
        return results

    def end() -> dict[str, Any]:
        results = save(grid.status())
        finish(results)
        return results

    def on_cell(name: str, status: Status) -> None:
        seconds = status.done.get(name, {}).get("seconds")
        run.log({"step": len(status.done) + len(status.failed), "cell": name, "seconds": seconds})
        # A large grid's tables take seconds, and its cells are many.
        if time.perf_counter() - written >= _SHARE * spent:
            save(status)

    try:
        status = grid.run(retry=config.retry, on_cell=on_cell)
    except (Interrupted, KeyboardInterrupt):
        end()
        raise
    results = end()
    if status.complete:
        run.finish({name: results[name] for name in ("replicates", "cells", "seconds")})
    return results


def overview(status: Status) -> dict[str, Any]:
    """How far a grid is, what failed, and the seconds of each kind of step: a part of every results.json."""
    count = {name: len(getattr(status, name)) for name in ("done", "failed", "blocked", "left")}
    spent: dict[str, list[float]] = {}
    for result in status.done.values():
        for name, seconds in result["seconds"].items():
            spent.setdefault(name, []).append(seconds)
    return {
        "complete": status.complete,
        "cells": {"all": sum(count.values()), **count},
        "failed": [{"cell": name, **error} for name, error in status.failed.items()],
        "seconds": {
            name: {"cells": len(times), "mean": round(sum(times) / len(times), 3), "total": round(sum(times), 2)}
            for name, times in spent.items()
        },
    }


def check_features(
    specs: Sequence[str], model: LatentDiffusion, side: int, *, weights: Path | None = None, lack: bool = False
) -> None:
    """Raise a ValueError for features that are unknown or don't take pictures of this side.

    Args:
        weights: a file with those of Inception.
        lack: features whose weights are missing are no error.
    """
    blank = np.zeros((side, side, 3), np.uint8)
    for spec in specs:
        try:
            features = load_features(spec, model=model, device=model.device, weights=weights)
        except Unavailable:
            if not lack:
                raise
        else:
            extract(features, [blank], device=model.device)


def _open(config: GridConfig, command: str, grid: Grid) -> RunFolder:
    there = (config.out / "config.yaml").exists()
    # What is asked of this start alone is no part of the experiment that config.yaml repeats.
    shared = dataclasses.replace(config, retry=False) if config.overwrite or not there else _going_on(config)
    RunFolder.inspect(shared, command)
    if not config.overwrite:
        grid.check()
    # Other processes may be computing cells.
    return RunFolder.open(shared, command, alone=False)


def _going_on(config: C) -> C:
    return dataclasses.replace(config, resume=True, overwrite=False)
