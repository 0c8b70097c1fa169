"""``lordfast attack NAME``."""

from __future__ import annotations

import argparse
from typing import Any

from lordfast.cli.choose import choose
from lordfast.cli.parse import parse, report, run_resumable


def run(args: list[str]) -> None:
    """Parse and attack, or explain."""
    from lordfast.attacks.registry import ATTACKS
    from lordfast.attacks.run import run_attack

    kinds = {name: attack.summary for name, attack in ATTACKS.items()}
    more = "lordfast attack NAME --explain prints its rule, its budget in grey levels, its source and its presets."
    chosen = choose("attack", kinds, "--model MODEL --images DIR --out DIR", args, more)
    if chosen is None:
        return
    attack, rest = ATTACKS[chosen[0]], chosen[1]
    presets = {name: dict(preset.values) for name, preset in attack.presets.items()}
    command = f"attack {attack.name}"
    if "--explain" in rest:
        from lordfast.attacks.explain import explain

        print(explain(attack, *_explained(attack.config, [word for word in rest if word != "--explain"], presets)))
        return
    config = parse(attack.config, command, rest, presets)
    summary = run_resumable(command, config, lambda: run_attack(attack.name, config))
    budget = f"{summary['eps_grey_levels']:g} grey levels ({summary['norm']})"
    report(f"{summary['images']} images within {budget}: {config.out}")
    if summary["unchanged"] and summary["eps"]:
        report(f"{summary['unchanged']} of them did not change by a single grey level; a larger --eps would help")


def _explained(cls: type[Any], words: list[str], presets: dict[str, dict[str, Any]]) -> tuple[Any, str | None]:
    """The config that `words` ask for, without what only a run needs, and the preset's name."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset")
    named, _ = early.parse_known_args(words)
    # Later flags win, so these only stand in for what is not there.
    return parse(cls, "attack", ["--model", "demo", "--images", ".", "--out", ".", *words], presets), named.preset
