"""``lordfast experiment NAME``."""

from __future__ import annotations

import sys

from lordfast.cli.choose import choose
from lordfast.cli.parse import parse, run_resumable


def run(args: list[str]) -> None:
    """Parse, compute what is missing, and show the table."""
    from rich.console import Console

    from lordfast.evaluation.experiments.effects_table import sections
    from lordfast.evaluation.experiments.registry import EXPERIMENTS
    from lordfast.evaluation.table import section_to_rich

    kinds = {name: experiment.summary for name, experiment in EXPERIMENTS.items()}
    chosen = choose("experiment", kinds, "--out DIR", args)
    if chosen is None:
        return
    name, rest = chosen
    command = f"experiment {name}"
    config = parse(EXPERIMENTS[name].config, command, rest)
    results = run_resumable(command, config, lambda: EXPERIMENTS[name].run(config))
    console = Console()
    for section in sections(results):
        console.print(section_to_rich(section))
    for one in results["failed"]:
        console.print(f"failed: {one['cell']}: {one['type']}: {one['message']}", style="red", markup=False)
    for file in ("table.md", "table.csv", "chart.png"):
        print(config.out / file)
    if results["failed"]:
        print("--retry computes the failed cells again", file=sys.stderr)
