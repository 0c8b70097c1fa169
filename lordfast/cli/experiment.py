"""``lordfast experiment NAME``."""

from __future__ import annotations

import sys

from lordfast.cli.parse import parse, run_resumable


def run(args: list[str]) -> None:
    """Parse, compute what is missing, and show the table."""
    from rich.console import Console

    from lordfast.evaluation.experiments.effects_table import sections
    from lordfast.evaluation.experiments.registry import EXPERIMENTS
    from lordfast.evaluation.table import section_to_rich

    if not args or args[0] in ("-h", "--help"):
        rows = "\n".join(f"  {name}  {experiment.summary}" for name, experiment in EXPERIMENTS.items())
        print(
            "usage: lordfast experiment NAME --out DIR [options]\n\n"
            f"experiments:\n{rows}\n\n"
            "lordfast experiment NAME --help lists the options."
        )
        return
    name, *rest = args
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment: expected one of {', '.join(EXPERIMENTS)} first, got {name!r}")
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
