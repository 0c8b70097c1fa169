"""``lordfast generate``."""

from __future__ import annotations

from lordfast.cli.parse import parse, report, run_resumable


def run(args: list[str]) -> None:
    """Parse and draw."""
    from lordfast.training.generate import GenerateConfig, run_generate

    config = parse(GenerateConfig, "generate", args)
    summary = run_resumable("generate", config, lambda: run_generate(config))
    report(f"{summary['images']} images: {config.out}")
