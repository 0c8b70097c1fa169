"""One run of benchmarks: its device, its file, what it prints, and its exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from . import machine
from .ceilings import Ceilings, measure_ceilings
from .measure import NOT_CHECKED
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
        """Measure what the machine can do at best, products in these dtypes; later rows carry it."""
        self.ceilings = measure_ceilings(self.device, {name: machine.DTYPES[name] for name in dtypes}, **options)
        rates = "".join(f", matrix product {name} {rate:.0f} GFLOP/s" for name, rate in self.ceilings.gflops.items())
        self.console.print(f"Ceilings: copy {self.ceilings.gbps:.1f} GB/s{rates}")

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


def script(main: Callable[[Any], int], config: type[Any]) -> NoReturn:
    """Run a benchmark script: flags into `config`, `main`'s result into the exit status, errors into one line."""
    import tyro

    try:
        status = main(tyro.cli(config))
    except KeyboardInterrupt:
        print("\nInterrupted; the finished cases are in the results file.", file=sys.stderr)
        status = 130
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)


def default_dtypes(device: torch.device) -> tuple[str, ...]:
    """fp32 and bf16, and fp16 where the device computes it at bf16's rate."""
    return ("fp32", "bf16", "fp16") if device.type == "cuda" else ("fp32", "bf16")


def case_table(rows: Sequence[Row]) -> Table:
    """The variants of one case, a row each, one direction under the other; below, why some were not timed."""
    first = rows[0]
    sizes = f", M = {first['M']}" if first.get("M") else ""
    table = Table(
        title=f"{first['case']}{sizes}, {first['dtype']}",
        title_justify="left",
        caption="\n".join(dict.fromkeys(escape(row["gate"]) for row in rows if ":" in row["gate"])),
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    table.add_column("", no_wrap=True)
    for name in ("us", "p20", "p80", "x bare", "x eager", "roof"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("numbers", no_wrap=True)
    direction = None
    for row in rows:
        if row["direction"] != direction:
            direction = row["direction"]
            table.add_row(f"[bold]{direction}[/bold]")
        chosen = row["variant"] == "lordfast" and row["backend"]
        name = f"lordfast ({row['backend']})" if chosen else row["variant"]
        times = [_number(row.get(name), ".0f") for name in ("median_us", "p20_us", "p80_us")]
        ratios = [_number(row.get(name), ".2f") for name in ("ratio_bare", "ratio_eager")]
        table.add_row(f"  {name}", *times, *ratios, _roof(row), row["gate"].partition(":")[0].replace(NOT_CHECKED, "-"))
    return table


def _roof(row: Row) -> str:
    """The larger of the shares of the two ceilings, bandwidth and arithmetic, that the compulsory work reaches."""
    shares = [(row.get(rate), row.get(f"peak_{rate}")) for rate in ("gbps", "gflops")]
    reached = [rate / peak for rate, peak in shares if rate is not None and peak is not None]
    return f"{100 * max(reached):.0f} %" if reached else ""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
