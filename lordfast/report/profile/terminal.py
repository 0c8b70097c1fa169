"""The profile as tables in the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lordfast.report.profile.words import amount, headline, number, share


def print_profile(profile: dict[str, Any], console: Console) -> None:
    """Print the headline, the phases and the kinds of layers."""
    for line in headline(profile):
        console.print(line, highlight=False)
    console.print(phase_table(profile))
    console.print(kind_table(profile))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=i > 0)
    return table


def phase_table(profile: dict[str, Any]) -> Table:
    """A row for each phase, indented as they nest."""
    device = ["device ms"] if profile["on_device"] else []
    busy = "host busy" if profile["on_device"] else "busy"
    table = _table("Phases of a step", "", "ms", "share", busy, *device, "launches", "waits")
    for row in profile["phases"]:
        name = "  " * row["depth"] + row["phase"].rpartition("/")[2]
        kernels = [number(row["device_ms"])] if device else []
        busy_share = share(row["busy_ms"], row["own_ms"])
        of_step = share(row["wall_ms"], profile["step"]["wall_ms"])
        table.add_row(
            name, number(row["wall_ms"]), of_step, busy_share, *kernels, number(row["launches"]), number(row["waits"])
        )
    return table


def kind_table(profile: dict[str, Any], most: int = 12) -> Table:
    """A row for each kind of layer and pass, those that take longest."""
    table = _table("Layers", "", "pass", "ms", "launches", "GFLOP", "GFLOP/s", "of roof")
    for row in profile["kinds"][:most]:
        reached = "" if row["of_roof"] is None else share(row["of_roof"], 1)
        table.add_row(
            row["kind"],
            row["pass"],
            number(row["ms"]),
            number(row["launches"]),
            amount(row["flops"] / 1e9),
            amount(row["gflops"]),
            reached,
        )
    return table
