"""``lordfast stage1``."""

from __future__ import annotations

from lordfast.cli.parse import parse, report, run_resumable


def run(args: list[str]) -> None:
    """Parse and train a LoRD."""
    from lordfast.defense.stage1 import PRESETS, Stage1Config, run_stage1

    config = parse(Stage1Config, "stage1", args, PRESETS)
    summary = run_resumable("stage1", config, lambda: run_stage1(config))
    report(f"LoRD after {summary['steps']} steps on {summary['examples']} pairs: {config.out}")
