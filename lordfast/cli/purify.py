"""``lordfast purify NAME``."""

from __future__ import annotations

from lordfast.cli.choose import choose
from lordfast.cli.parse import parse, report, run_resumable


def run(args: list[str]) -> None:
    """Parse and purify."""
    from lordfast.purify.registry import PURIFIERS

    kinds = {name: purifier.summary for name, purifier in PURIFIERS.items()}
    chosen = choose("purify", kinds, "--images DIR --out DIR [--model MODEL]", args)
    if chosen is None:
        return
    from lordfast.purify.run import run_purify

    name, rest = chosen
    command = f"purify {name}"
    config = parse(PURIFIERS[name].config, command, rest)
    summary = run_resumable(command, config, lambda: run_purify(name, config))
    psnr = "all as they were" if summary["psnr"] is None else f"{summary['psnr']:.2f} dB from the given ones"
    report(f"{summary['images']} images, {psnr}: {config.out}")
