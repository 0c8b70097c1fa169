"""What an attack does, within which budget, after whom: the text of ``lordfast attack NAME --explain``."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import groupby

from lordfast.attacks.budget import Budget
from lordfast.attacks.options import AttackConfig
from lordfast.attacks.protocol import Attack, Perturb, Phase, Recall, Remember, Train

WIDTH = 110


def explain(attack: Attack, config: AttackConfig, preset: str | None = None) -> str:
    """Rule, budget in grey levels, steps, schedule, source and presets.

    Raises:
        ValueError: settings out of range.
    """
    settings = config.settings(config.seed)
    start = "a random point of the budget" if settings.random_start else "the image"
    if settings.start_std and settings.random_start:
        start = f"Gaussian noise of {settings.start_std * 255:g} grey levels, cut to the budget"
    draws = f"{settings.draws} draw{'s' * (settings.draws > 1)} of noise and timestep a step"
    if settings.least_timestep or settings.most_timestep is not None:
        most = "the last" if settings.most_timestep is None else settings.most_timestep
        draws += f", timesteps from {settings.least_timestep} to {most}"
    steps = f"{settings.steps}"
    if settings.last_step != 1:
        steps += f", shrinking to {settings.last_step:g} of the first"
    rows = {
        "Rule": attack.rule(config),
        "Budget": _budget(settings.budget),
        "Start": start,
        "Steps": steps if attack.schedule is None else _schedule(attack.schedule(config)),
        "Draws": draws,
        "Source": attack.source,
    }
    if preset is not None:
        rows["Preset"] = f"{preset}: {attack.presets[preset].original}"
    lines = [f"{attack.name}: {attack.summary}", "", *_table(rows)]
    if attack.presets:
        lines += ["", "Presets (as published; converted to [0, 1] pixels when used):"]
        lines += _table({f"  {name}": found.original for name, found in attack.presets.items()})
    return "\n".join(lines)


def _table(rows: dict[str, str]) -> list[str]:
    width = max(map(len, rows)) + 2
    return [
        textwrap.fill(text, WIDTH, initial_indent=name.ljust(width), subsequent_indent=" " * width)
        for name, text in rows.items()
    ]


def _budget(budget: Budget) -> str:
    if budget.norm == "linf":
        return (
            f"eps {_levels(budget.eps)} and steps of {_levels(budget.step_size)} in every pixel (linf); "
            f"the saved file changes by at most {budget.grey_levels}"
        )
    return f"eps {_levels(budget.eps)} and steps of {_levels(budget.step_size)} in the whole image's norm (l2)"


def _levels(length: float) -> str:
    return f"{length * 255:.4g} grey levels"


def _schedule(phases: Sequence[Phase]) -> str:
    """The phases of a round, and how many rounds there are."""
    for length in range(1, len(phases) + 1):
        rounds, rest = divmod(len(phases), length)
        if rest == 0 and list(phases) == rounds * list(phases[:length]):
            break
    words = ", ".join(_phase(phase) for phase, _ in groupby(phases[:length]))
    return words if rounds == 1 else f"{rounds} rounds: {words}"


def _phase(phase: Phase) -> str:
    if isinstance(phase, Perturb):
        return f"{phase.steps} image steps"
    if isinstance(phase, Train):
        return f"{phase.steps} training steps on the {phase.on} images"
    return {Remember: "remember the surrogate", Recall: "put it back"}[type(phase)]
