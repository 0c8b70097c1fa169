"""``lordfast transfer``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from lordfast.cli.parse import parse, run_resumable

if TYPE_CHECKING:
    from lordfast.evaluation.transfer import TransferConfig


def run(args: list[str]) -> None:
    """Parse, vary and measure."""
    from lordfast.evaluation.transfer import TransferConfig

    measure(parse(TransferConfig, "transfer", args))


def measure(config: TransferConfig) -> None:
    """Vary, measure, and show the matrix."""
    from lordfast.evaluation.table import rich_tables
    from lordfast.evaluation.transfer import run_transfer
    from lordfast.evaluation.transfer.table import sections

    summary = run_resumable("transfer", config, lambda: run_transfer(config))
    console = Console()
    console.print(rich_tables(sections(summary, brief=True)))
    for text in summary["warnings"]:
        console.print("warning:", text, style="yellow", markup=False, highlight=False)
    print(f"{summary['images']} images, {len(summary['rows'])} x {len(summary['columns'])} cells: {config.out}")
