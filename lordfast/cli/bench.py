"""``lordfast bench``."""

from __future__ import annotations

from lordfast.cli.parse import parse


def run(args: list[str]) -> None:
    """Parse, measure and print."""
    from lordfast.profiling.quick import BenchConfig, run_bench

    config = parse(BenchConfig, "bench", args)
    status = run_bench(config)
    if status:
        raise SystemExit(status)
