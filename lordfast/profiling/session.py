"""One run of benchmarks: its device, its file, what it prints, and its exit status."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import machine
from .ceilings import Ceilings, measure_ceilings
from .results import ResultsFile, Row

Job = tuple[str, Callable[[], list[Row]]]


@dataclass
class Session:
    """Where rows go: to the file with the machine's columns, and to the terminal as tables."""

    device: torch.device
    file: ResultsFile
    console: Console
    columns: dict[str, str]
    ceilings: Ceilings | None = None

    def run(self, jobs: Sequence[Job], title: str, *, tables: bool = True) -> None:
        """Run the jobs (name, rows) one after the other; the rows of each are on disk before the next begins."""
        bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*bar, console=self.console, disable=not self.console.is_terminal, transient=True) as progress:
            task = progress.add_task(title, total=len(jobs))
            for name, job in jobs:
                progress.update(task, description=f"{title}: {name}")
                rows = [{**self.columns, **self._peaks(row), **row} for row in job()]
                self.file.add(rows)
                if tables:
                    self.console.print(case_table(rows))
                progress.advance(task)

    def measure_ceilings(self, dtypes: Sequence[str], **options: Any) -> None:
        """Measure what the machine can do at best; later rows carry it."""
        self.ceilings = measure_ceilings(self.device, {name: machine.DTYPES[name] for name in dtypes}, **options)
        rates = ", ".join(f"{rate:.0f} GFLOP/s {name}" for name, rate in self.ceilings.gflops.items())
        self.console.print(f"Ceilings: copy {self.ceilings.gbps:.1f} GB/s; matrix product {rates}")

    def _peaks(self, row: Row) -> Row:
        return {} if self.ceilings is None else self.ceilings.columns(row["dtype"])

    def finish(self) -> int:
        """Say what was wrong and where the rows are; the exit status, 1 for wrong numbers."""
        for row in self.file.red:
            what = f"{row['case']}, {row['dtype']}, {row['direction']}, {row['variant']}"
            self.console.print(f"[red]Not timed, its numbers are wrong:[/red] {escape(what)}: {escape(row['gate'])}")
        if self.file.path is not None and self.file.rows:
            self.console.print(f"Results: {self.file.path}", soft_wrap=True)
        return 1 if self.file.red else 0


@contextmanager
def session(device: str, threads: int, out: Path | None, console: Console | None = None) -> Iterator[Session]:
    """Open a run on a device with this many CPU threads.

    Raises:
        ValueError: an unknown device, a thread count below 1, or an `out` that is no results file.
    """
    found = machine.find_device(device)
    if found.type == "cuda":
        torch.cuda.set_device(found)
    with machine.threads(threads):
        file = ResultsFile(out)
        columns = machine.describe(found)
        console = console or Console()
        where = columns["device"] if found.type == "cuda" else f"{columns['device']}, {threads} thread(s)"
        console.print(f"{where}, torch {columns['torch']}, lordfast {columns['lordfast']}")
        yield Session(found, file, console, columns)


def default_dtypes(device: torch.device) -> tuple[str, ...]:
    """fp32 and bf16, and fp16 where the device computes it at bf16's rate."""
    return ("fp32", "bf16", "fp16") if device.type == "cuda" else ("fp32", "bf16")


def case_table(rows: Sequence[Row]) -> Table:
    """The variants of one case, a row each, in all directions."""
    first = rows[0]
    sizes = f", M = {first['M']}" if first.get("M") else ""
    table = Table(title=f"{first['case']}{sizes}, {first['dtype']}", title_justify="left", title_style="bold")
    table.add_column("")
    table.add_column("variant")
    table.add_column("backend")
    for name in ("us", "p20", "p80", "x bare", "x eager", "GB/s", "GFLOP/s"):
        table.add_column(name, justify="right")
    table.add_column("numbers")
    direction = None
    for row in rows:
        shown = row["direction"] if row["direction"] != direction else ""
        direction = row["direction"]
        times = [_number(row.get(name), ".1f") for name in ("median_us", "p20_us", "p80_us")]
        ratios = [_number(row.get(name), ".2f") for name in ("ratio_bare", "ratio_eager")]
        rates = [_number(row.get(name), ".1f") for name in ("gbps", "gflops")]
        table.add_row(shown, row["variant"], row["backend"], *times, *ratios, *rates, escape(_short(row["gate"])))
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else format(value, form)


def _short(gate: str, width: int = 60) -> str:
    return gate if len(gate) <= width else f"{gate[: width - 3]}..."
