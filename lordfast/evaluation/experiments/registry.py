"""The experiments that there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lordfast.evaluation.experiments.purifiers import PurifiersConfig, run_purifiers


@dataclass(frozen=True)
class Experiment:
    """What a command line needs of an experiment.

    Attributes:
        config: its settings.
        run: config -> what results.json holds.
        summary: what it finds out, in a line.
    """

    config: type[Any]
    run: Callable[[Any], dict[str, Any]]
    summary: str


EXPERIMENTS = {
    "purifiers": Experiment(
        PurifiersConfig, run_purifiers, "how strong an attack is, and how much of it purifying the pictures undoes"
    )
}
