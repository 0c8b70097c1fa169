"""``lordfast evaluate``."""

from __future__ import annotations

import sys

from rich.console import Console

from lordfast.cli.parse import parse, run_resumable


def run(args: list[str]) -> None:
    """Parse and measure."""
    from lordfast.evaluation.config import EvaluateConfig
    from lordfast.evaluation.evaluate import run_evaluate
    from lordfast.evaluation.table import reasons, to_rich

    config = parse(EvaluateConfig, "evaluate", args)
    summary = run_resumable("evaluate", config, lambda: run_evaluate(config))
    console = Console()
    console.print(to_rich(summary))
    for reason in reasons(summary):
        print("unavailable:", reason, file=sys.stderr)
    for text in summary["warnings"]:
        console.print("warning:", text, style="yellow", markup=False, highlight=False)
    print(
        f"{len(summary['skipped'])} images skipped: {config.out}" if summary["skipped"] else f"measured: {config.out}"
    )
