"""One look for everything that takes long."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True)


def note(text: str) -> None:
    """Print a line that users should read on standard error, once however many processes torchrun started."""
    if os.environ.get("RANK", "0") == "0":
        # Paths may hold brackets, and a broken line can't be searched for.
        console.print(f"[yellow]note:[/] {escape(text)}", highlight=False, soft_wrap=True)


@contextmanager
def progress(
    description: str, total: int | None, *, start: int = 0, show: bool = True
) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error; yields ``advance(n=1, note="")``. Quiet where it is not a terminal.

    Args:
        total: None where nobody knows.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not (show and console.is_terminal)) as bar:
        task = bar.add_task(description, total=total, completed=start, note="")

        def advance(n: int = 1, note: str = "") -> None:
            bar.update(task, advance=n, note=note)

        yield advance
