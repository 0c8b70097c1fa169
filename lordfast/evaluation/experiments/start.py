"""Opening the folder of an experiment, which several processes may do at the same time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from lordfast.evaluation.experiments.grid import Cell, Grid
from lordfast.training.config import RunConfig
from lordfast.training.run import RunFolder

C = TypeVar("C", bound="GridConfig")


@dataclass(kw_only=True)
class GridConfig(RunConfig):
    """What every experiment's config shares."""

    retry: bool = False
    """Compute failed cells again."""
    page: Path | None = None
    """Also write the table into this Markdown file, between <!-- table:begin --> and <!-- table:end -->."""


def open_grid(config: GridConfig, command: str, cells: Sequence[Cell]) -> tuple[RunFolder, Grid]:
    """The run folder ``config.out`` and its grid; one that is there already goes on, also without ``resume``.

    Raises:
        ValueError: the folder holds something else, or the same experiment with other settings, which are named; it is
            to be overwritten while processes work in it.
    """
    grid = Grid(config.out / "cells", cells)
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
