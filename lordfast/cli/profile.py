"""``lordfast profile JOB``."""

from __future__ import annotations

from lordfast.cli.choose import choose
from lordfast.cli.parse import parse, report, run_resumable


def run(args: list[str]) -> None:
    """Parse and profile."""
    from lordfast.report.profile import JOBS, run_profile

    kinds = {name: job.summary for name, job in JOBS.items()}
    more = "It runs on made-up data; --model demo and --topology need no download."
    chosen = choose("profile", kinds, "--out DIR [--model MODEL | --topology NAME]", args, more)
    if chosen is None:
        return
    name, rest = chosen
    command = f"profile {name}"
    config = parse(JOBS[name].config, command, rest)
    run_resumable(command, config, lambda: run_profile(name, config))
    report(f"Page: {config.out / 'profile.html'}; trace for Perfetto: {config.out / 'trace.json.gz'}")
