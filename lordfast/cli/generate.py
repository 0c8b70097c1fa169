"""``lordfast generate``."""

from __future__ import annotations

from lordfast.cli.parse import parse, report, run_resumable


def run(args: list[str]) -> None:
    """Parse and draw."""
    from lordfast.training.generate import GenerateConfig, run_generate

    # The field's usual short flag for the number of images.
    args = ["--n" if arg == "-n" else arg for arg in args]
    config = parse(GenerateConfig, "generate", args)
    summary = run_resumable("generate", config, lambda: run_generate(config))
    report(f"{summary['images']} images: {config.out}")
