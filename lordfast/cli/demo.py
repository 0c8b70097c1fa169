"""``lordfast demo``."""

from __future__ import annotations

from lordfast.cli.parse import parse, run_resumable


def run(args: list[str]) -> None:
    """Parse and tell the story."""
    from lordfast.demo.story import DemoConfig, run_demo

    config = parse(DemoConfig, "demo", args)
    run_resumable("demo", config, lambda: run_demo(config))
    print(f"Pictures: {config.out / 'result.png'}\nNumbers:  {config.out / 'summary.json'}")
