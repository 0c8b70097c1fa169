"""``lordfast demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lordfast.cli.parse import parse, run_resumable

if TYPE_CHECKING:
    from lordfast.report import Measured


def run(args: list[str]) -> None:
    """Parse and tell the story."""
    from lordfast.demo.story import DemoConfig, run_demo

    config = parse(DemoConfig, "demo", args)
    summary = run_resumable("demo", config, lambda: run_demo(config))
    _show(summary)
    for name in ("report.html", "result.png", "summary.json"):
        print(config.out / name)


def _show(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from lordfast.demo.methods import METHODS, method_title
    from lordfast.demo.report import METRICS, evidence, spread
    from lordfast.report import Measured

    table = Table(title="What each method draws, against fresh clean pictures", caption=spread(summary["seeds"]))
    table.add_column("trained as")
    for metric in METRICS:
        arrow = {"higher": " ↑", "lower": " ↓", None: ""}[metric.better]
        table.add_column(metric.title + arrow, justify="right")
    for name in METHODS:
        cells = [_written(Measured.read(summary["methods"][name][metric.key])) for metric in METRICS]
        table.add_row(method_title(name), *cells, end_section=name == "clean-lord")
    console = Console()
    console.print(table)
    auroc = Measured.read(summary["auroc"])
    console.print(f"AUROC of lambda, attacked against clean (0.5 is chance): {_written(auroc).replace(chr(10), ', ')}")
    if summary["quick"]:
        console.print("With so few images and steps, differences are noise: run it without --quick.")
    elif (warning := evidence(summary)) is not None:
        console.print(f"{warning} --seeds 5 draws that many.")


def _written(measured: Measured | None) -> str:
    if measured is None:
        return "-"
    if measured.interval is None:
        return f"{measured.value:.3g}"
    return f"{measured.value:.3g}\n{measured.low:.3g} to {measured.high:.3g}"
