"""``lordfast attack NAME``."""

from __future__ import annotations

from lordfast.cli.parse import parse, report, run_resumable


def run(args: list[str]) -> None:
    """Parse and attack."""
    from lordfast.attacks.folder import ATTACKS, AttackConfig, run_attack

    if not args or args[0].startswith("-"):
        print(
            "usage: lordfast attack NAME --model MODEL --images DIR --out DIR [options]\n\n"
            "attacks:\n  pgd  projected gradient descent on the diffusion loss (AdvDM), untargeted or --targeted\n\n"
            "lordfast attack NAME --help lists the options."
        )
        if args and args[0] in ("-h", "--help"):
            return
        raise ValueError(f"attack: expected a name ({', '.join(ATTACKS)}) first")
    name, *rest = args
    if name not in ATTACKS:
        raise ValueError(f"attack: expected one of {', '.join(ATTACKS)}, got {name!r}")
    command = f"attack {name}"
    config = parse(AttackConfig, command, rest)
    summary = run_resumable(command, config, lambda: run_attack(name, config))
    budget = f"{summary['eps_grey_levels']:g} grey levels ({summary['norm']})"
    report(f"{summary['images']} images within {budget}: {config.out}")
    if summary["unchanged"] and summary["eps"]:
        report(f"{summary['unchanged']} of them did not change by a single grey level; a larger --eps would help")
