"""The experiments that there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lordfast.evaluation.experiments import effects_table
from lordfast.evaluation.experiments.purifiers import PurifiersConfig, run_purifiers
from lordfast.evaluation.experiments.study import tables
from lordfast.evaluation.experiments.study.config import StudyConfig
from lordfast.evaluation.experiments.study.named import PRESETS, Fig7Config, GateConfig, Table1Config
from lordfast.evaluation.experiments.study.run import run_study
from lordfast.evaluation.table import Section


@dataclass(frozen=True)
class Experiment:
    """What a command line needs of an experiment.

    Attributes:
        config: its settings.
        run: config -> what results.json holds.
        summary: what it finds out, in a line.
        sections: what results.json holds -> tables.
        presets: name -> settings.
        note: more for ``--help``.
    """

    config: type[Any]
    run: Callable[[Any], dict[str, Any]]
    summary: str
    sections: Callable[[dict[str, Any]], list[Section]]
    presets: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    note: str | None = None


def study(name: str, config: type[StudyConfig] = StudyConfig, summary: str = "a study of your own") -> Experiment:
    """A study of any name."""
    note = None if config is StudyConfig else StudyConfig.__doc__
    return Experiment(config, partial(run_study, name=name), summary, tables.sections, PRESETS, note)


EXPERIMENTS = {
    "table1": study("table1", Table1Config, "the paper's Table I: methods on attacked pictures of several datasets"),
    "fig7": study("fig7", Fig7Config, "the paper's Fig. 7: methods when a share of the pictures is attacked"),
    "gate": study("gate", GateConfig, "how well lambda tells attacks and budgets that Stage 1 has not seen"),
    "purifiers": Experiment(
        PurifiersConfig,
        run_purifiers,
        "how strong an attack is, and how much of it purifying the pictures undoes",
        effects_table.sections,
    ),
}
