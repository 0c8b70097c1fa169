"""``lordfast attack NAME``."""

from __future__ import annotations

from lordfast.cli.choose import choose
from lordfast.cli.parse import parse, report, run_resumable

KINDS = {"pgd": "projected gradient descent on the diffusion loss (AdvDM), untargeted or --targeted"}


def run(args: list[str]) -> None:
    """Parse and attack."""
    from lordfast.attacks.folder import AttackConfig, run_attack

    chosen = choose("attack", KINDS, "--model MODEL --images DIR --out DIR", args)
    if chosen is None:
        return
    name, rest = chosen
    command = f"attack {name}"
    config = parse(AttackConfig, command, rest)
    summary = run_resumable(command, config, lambda: run_attack(name, config))
    budget = f"{summary['eps_grey_levels']:g} grey levels ({summary['norm']})"
    report(f"{summary['images']} images within {budget}: {config.out}")
    if summary["unchanged"] and summary["eps"]:
        report(f"{summary['unchanged']} of them did not change by a single grey level; a larger --eps would help")
