"""``lordfast experiment NAME``."""

from __future__ import annotations

import sys

from lordfast.cli.choose import choose
from lordfast.cli.parse import parse, run_resumable


def run(args: list[str]) -> None:
    """Parse, compute what is missing, and show the table."""
    from rich.console import Console

    from lordfast.evaluation.experiments.registry import EXPERIMENTS, study
    from lordfast.evaluation.table import section_to_rich
    from lordfast.report.runs import write_report

    known = dict(EXPERIMENTS)
    if args and args[0] not in known and any(word.partition("=")[0] == "--config" for word in args):
        known[args[0]] = study(args[0])
    kinds = {name: experiment.summary for name, experiment in known.items()}
    more = "lordfast experiment ANY-NAME --config FILE.yaml --out DIR runs a study of your own."
    chosen = choose("experiment", kinds, "--out DIR", args, more)
    if chosen is None:
        return
    name, rest = chosen
    command = f"experiment {name}"
    experiment = known[name]
    config = parse(experiment.config, command, rest, experiment.presets, experiment.note)
    results = run_resumable(command, config, lambda: experiment.run(config))
    console = Console()
    for section in experiment.sections(results):
        console.print(section_to_rich(section))
    for one in results["failed"]:
        console.print(f"failed: {one['cell']}: {one['type']}: {one['message']}", style="red", markup=False)
    write_report(config.out)
    for path in sorted(
        path for suffix in ("md", "csv", "tex", "png", "html") for path in config.out.glob(f"*.{suffix}")
    ):
        print(path)
    if results["failed"]:
        print("--retry computes the failed cells again", file=sys.stderr)
