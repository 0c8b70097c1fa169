"""``lordfast transfer``."""

from __future__ import annotations

from rich.console import Console

from lordfast.cli.parse import parse, run_resumable


def run(args: list[str]) -> None:
    """Parse, vary and measure."""
    from lordfast.evaluation.table import rich_tables
    from lordfast.evaluation.transfer import TransferConfig, run_transfer
    from lordfast.evaluation.transfer.table import sections

    config = parse(TransferConfig, "transfer", args)
    summary = run_resumable("transfer", config, lambda: run_transfer(config))
    console = Console()
    console.print(rich_tables(sections(summary, brief=True)))
    for text in summary["warnings"]:
        console.print("warning:", text, style="yellow", markup=False, highlight=False)
    print(f"{summary['images']} images, {len(summary['rows'])} x {len(summary['columns'])} cells: {config.out}")
