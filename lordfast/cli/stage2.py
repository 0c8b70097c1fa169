"""``lordfast stage2``."""

from __future__ import annotations

from lordfast.cli.parse import parse, report, run_resumable


def run(args: list[str]) -> None:
    """Parse and train a LoRA."""
    from lordfast.training.stage2 import PRESETS, Stage2Config, run_stage2

    config = parse(Stage2Config, "stage2", args, PRESETS)
    summary = run_resumable("stage2", config, lambda: run_stage2(config))
    report(f"LoRA after {summary['steps']} steps on {summary['examples']} images: {config.out}")
