"""Pages of runs that are made of other runs, and of commands that this package knows nothing of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lordfast.report.blocks import Charts, Column, Details, Table
from lordfast.report.runs.album import Album
from lordfast.report.runs.common import metric_charts
from lordfast.report.runs.content import Content, section
from lordfast.report.runs.read import CONFIG, Run, read_run

_PASSED = frozenset({"cache", "checkpoints", "tensorboard", "preview"})


def inner_runs(folder: Path) -> Iterator[Path]:
    """The run folders below `folder`, in order; what lies within one of them is its own affair."""
    for base, inside, files in os.walk(folder):
        inside[:] = sorted(name for name in inside if name not in _PASSED and not name.startswith("."))
        if CONFIG in files and Path(base) != folder:
            inside.clear()
            yield Path(base)


def describe_other(run: Run, album: Album) -> Content:
    """Curves of what was logged over steps, and the runs inside."""
    rows = []
    for path in inner_runs(run.path):
        try:
            found = read_run(path)
        except ValueError as error:
            rows.append((str(path.relative_to(run.path)), [str(error), "damaged"]))
            continue
        rows.append((str(path.relative_to(run.path)), [found.command, "finished" if found.finished else "unfinished"]))
    seconds = {str(row["title"]): float(row["seconds"]) for row in run.rows if "title" in row and "seconds" in row}
    charts = [] if seconds else metric_charts(run.rows)
    inside = Table("folder", [Column("command"), Column("state")], rows, "Each of these runs has a report of its own")
    return Content(
        f"lordfast {run.command}",
        f"The run folder {run.path.resolve().name}: what it has logged, and what it was made with.",
        sections=[
            *section("Over the steps", Charts(charts) if charts else None),
            *section("Runs inside", Details(f"{len(rows)} runs", [inside]) if rows else None),
        ],
        seconds=seconds,
    )
