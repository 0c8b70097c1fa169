"""``lordfast demo``."""

from __future__ import annotations

from typing import Any

from lordfast.cli.parse import parse, run_resumable


def run(args: list[str]) -> None:
    """Parse and tell the story."""
    from lordfast.demo.story import DemoConfig, run_demo

    config = parse(DemoConfig, "demo", args)
    summary = run_resumable("demo", config, lambda: run_demo(config))
    _show(summary)
    print(f"Report:   {config.out / 'report.html'}")
    print(f"Pictures: {config.out / 'result.png'}\nNumbers:  {config.out / 'summary.json'}")


def _show(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from lordfast.demo.story import method_title

    table = Table(title="Distance of the generated pictures from the clean ones (lower is nearer)")
    table.add_column("trained as")
    table.add_column("Frechet", justify="right")
    table.add_column("kernel", justify="right")
    for name, measured in summary["generated"].items():
        distance = measured["distribution"]
        row = (f"{distance['frechet_distance']:.3f}", f"{distance['kernel_distance']:.4f}")
        table.add_row(method_title(name), *row)
    console = Console()
    console.print(table)
    images, auroc = summary["attack"]["images"], summary["detection"]["detection"]["auroc"]
    console.print(f"AUROC of lambda, attacked against clean: {auroc:.2f} (0.5 is chance)")
    if summary["quick"]:
        console.print(f"With {images} images and few steps, differences this small are noise: run it without --quick.")
