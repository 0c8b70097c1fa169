"""From the settings of a study to what it consists of: datasets, attacks, exposures, methods."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lordfast.attacks.budget import parse_budget
from lordfast.data import DrawnSubject
from lordfast.evaluation.config import EvaluateConfig
from lordfast.evaluation.experiments.choices import attack_class, read_options
from lordfast.evaluation.experiments.grid import slug
from lordfast.evaluation.experiments.steps import RESERVED
from lordfast.evaluation.experiments.study.config import StudyConfig
from lordfast.evaluation.experiments.study.methods import (
    CLEAN,
    LORD,
    Method,
    Options,
    read_method,
    read_variants,
)
from lordfast.evaluation.experiments.study.recipes import RECIPES
from lordfast.training.config import check_choices

DRAWN = ("faces", "landscapes")
NAMED = ("attacks", "purifiers", "stage1", "stage2", "generate", "evaluate", "variants")
_MEASURED = ("generated", "reference", "lord", "clean", "attacked", "features", "out", "seed", "resume", "overwrite")


@dataclass(frozen=True)
class Dataset:
    """Whose pictures are attacked.

    Attributes:
        name: in tables and folders.
        folder: with a sub-folder per identity; None for drawn ones.
        others: folder that Stage 1 trains on; None draws them.
        prompt: of every identity.
        eps: budgets, weakest first as given.
    """

    name: str
    folder: Path | None
    others: Path | None
    prompt: str
    eps: tuple[str, ...]


@dataclass(frozen=True)
class Exposure:
    """What the training pictures went through.

    Attributes:
        attack: its name in the study; None for clean ones.
        eps: the budget.
        proportion: share of the pictures that were attacked.
    """

    attack: str | None = None
    eps: str | None = None
    proportion: float = 0.0

    @property
    def slug(self) -> str:
        if self.attack is None:
            return "clean"
        share = "" if self.proportion == 1 else f"-{self.proportion * 100:g}-percent"
        return f"{slug(self.attack)}-{slug(str(self.eps))}{share}"

    @property
    def title(self) -> str:
        if self.attack is None:
            return "clean"
        share = "" if self.proportion == 1 else f", {self.proportion:.0%} of the pictures"
        return f"{self.attack} {self.eps}{share}"


@dataclass(frozen=True)
class Design:
    """A study, read and checked.

    Attributes:
        attacks: name -> (kind, options).
        methods: in the order of the table.
        evaluate: options of every measurement.
    """

    config: StudyConfig
    datasets: list[Dataset]
    attacks: dict[str, tuple[str, Options]]
    methods: list[Method]
    features: tuple[str, ...]
    evaluate: Options

    def exposures(self, dataset: Dataset) -> list[Exposure]:
        """Clean, and then every attack, budget and proportion above 0."""
        found = [Exposure()]
        for attack in self.attacks:
            for eps in dataset.eps:
                found += [Exposure(attack, eps, share) for share in self.config.proportions if share > 0]
        return found

    def of(self, exposure: Exposure) -> list[Method]:
        """The methods that are run on such pictures."""
        if exposure.attack is not None:
            return [method for method in self.methods if method.name != CLEAN]
        both = self.config.on_clean or 0 in self.config.proportions
        return [method for method in self.methods if both or method.name == CLEAN]

    @property
    def defenses(self) -> list[Method]:
        """One method for each Stage 1 that is needed."""
        found: dict[str, Method] = {}
        for method in self.methods:
            if method.stage1 is not None:
                found.setdefault(repr(sorted(method.stage1.items())), method)
        return list(found.values())

    @property
    def gates(self) -> list[Method]:
        """One method for each LoRD whose gate is read."""
        return [method for method in self.defenses if method.defense == LORD] if self.config.gate else []


def applied(config: StudyConfig) -> StudyConfig:
    """`config` with its --set words put where they belong.

    Raises:
        ValueError: a word that is no PATH=VALUE, or whose path leads nowhere.
    """
    named: dict[str, Any] = {name: _copy(getattr(config, name)) for name in NAMED}
    for word in config.set:
        path, equals, text = word.partition("=")
        *parents, last = path.replace("-", "_").split(".")
        if not equals or not parents or parents[0] not in NAMED:
            starts = ", ".join(NAMED)
            raise ValueError(f"set: expected words PATH=VALUE, PATH beginning with one of {starts}, got {word!r}")
        place = named
        for part in parents:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ValueError(f"set: {word!r} leads into {part}, which is a value")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            place[last] = text
    return replace(config, **named, set=())


def _copy(value: Any) -> Any:
    return {name: _copy(item) for name, item in value.items()} if isinstance(value, dict) else value


def design(config: StudyConfig) -> Design:
    """Read and check all settings that need neither model nor data.

    Raises:
        ValueError: settings that no study can have.
    """
    config = applied(config)
    for part in NAMED:
        odd = [name for name in getattr(config, part) if not isinstance(name, str)]
        if odd:
            # YAML reads on, off, yes and no as switches.
            raise ValueError(f"{part}: expected text as names, got {odd[0]!r}; put the name in quotes")
    _check_numbers(config)
    recipe = RECIPES[config.recipe]
    datasets = _datasets(config, recipe.eps)
    attacks = {name: _attack(name, {**recipe.attacks, **config.attacks}) for name in config.attack or recipe.attack}
    base = {part: {**getattr(recipe, part), **getattr(config, part)} for part in ("stage1", "stage2", "generate")}
    variants = read_variants(base, config.variants)
    _check_different("methods", config.methods)
    # What all others are compared with comes first.
    words = (CLEAN, *(word for word in config.methods if word != CLEAN))
    methods = [read_method(word, variants, config.purifiers) for word in words]
    unused = [name for name in config.purifiers if not any(m.name.partition("+")[0] == name for m in methods)]
    if unused:
        raise ValueError(f"purifiers: {unused[0]} is described, but no method is named so; methods: {', '.join(words)}")
    found = Design(
        config,
        datasets,
        attacks,
        methods,
        config.features or recipe.features,
        read_options(config.evaluate, EvaluateConfig, "evaluate", _MEASURED),
    )
    if not (config.gate or config.draw):
        raise ValueError("gate, draw: both are off; nothing is left to compute")
    if config.gate and not found.gates:
        raise ValueError("gate: expected a method with a LoRD, such as lord, whose gate can be read")
    if found.defenses:
        for dataset in datasets:
            if dataset.folder is not None and dataset.others is None:
                raise ValueError(f"stage1_data: dataset {dataset.name} needs a folder of other people's images")
    return found


def _check_numbers(config: StudyConfig) -> None:
    check_choices(config)
    least = {"identities": 1, "first_identity": 0, "seeds": 1, "stage1_seeds": 1, "stage1_images": 1, "images": 1}
    for name, low in {**least, "reference": 2}.items():
        if getattr(config, name) < low:
            raise ValueError(f"{name}: expected at least {low}, got {getattr(config, name)}")
    for name in ("datasets", "proportions", "methods", "gate_timesteps"):
        _check_different(name, getattr(config, name))
    for share in config.proportions:
        count = share * config.images
        if not 0 <= share <= 1 or not math.isclose(count, round(count), abs_tol=1e-9):
            raise ValueError(
                f"proportions: expected shares from 0 to 1 that make whole numbers of {config.images} images, got "
                f"{share}"
            )


def _check_different(name: str, values: Sequence[Any]) -> None:
    if not values or len(set(values)) != len(values):
        said = ", ".join(map(str, values)) or "none"
        raise ValueError(f"{name}: expected different values, at least one, got {said}")


def _datasets(config: StudyConfig, eps: tuple[str, ...]) -> list[Dataset]:
    folders = {word.partition("=")[0]: word.partition("=")[2] for word in config.datasets}
    _check_different("datasets", list(folders))
    budgets = per_dataset("eps", config.eps or eps, folders)
    prompts = per_dataset("prompts", config.prompts, folders)
    others = per_dataset("stage1_data", config.stage1_data, folders)
    found = []
    for name, folder in folders.items():
        if name != slug(name) or name.startswith("."):
            raise ValueError(f"datasets: expected names of letters, digits, _ . + and -, got {name!r}")
        if not folder and (name not in DRAWN or config.model != "demo"):
            drawn = ", ".join(DRAWN)
            raise ValueError(f"datasets: expected NAME=DIR, or for the model demo one of {drawn}; got {name!r}")
        for text in budgets[name]:
            parse_budget(text)
        _check_different("eps", budgets[name])
        single = {field: given[name] for field, given in (("prompts", prompts), ("stage1_data", others))}
        for field, values in single.items():
            if len(values) > 1:
                raise ValueError(f"{field}: expected at most one for dataset {name}, got {', '.join(values)}")
        known = DrawnSubject.of(0, landscape=name == DRAWN[1]).prompt
        data = single["stage1_data"]
        found.append(
            Dataset(
                name,
                Path(folder) if folder else None,
                Path(data[0]) if data else None,
                single["prompts"][0] if single["prompts"] else known,
                budgets[name],
            )
        )
    return found


def per_dataset(argument: str, words: Sequence[str], names: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Dataset -> its values: those of DATASET=VALUE words, else all words that name no dataset.

    Raises:
        ValueError: DATASET=VALUE with an unknown dataset; a value with "=" of its own has to name one.
    """
    general, own = [], {name: [] for name in names}  # type: tuple[list[str], dict[str, list[str]]]
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name not in own:
            raise ValueError(f"{argument}: expected VALUE or DATASET=VALUE with one of {', '.join(own)}, got {word!r}")
        (own[name] if equals else general).append(value if equals else word)
    return {name: tuple(values or general) for name, values in own.items()}


def _attack(name: str, named: Mapping[str, Any]) -> tuple[str, Options]:
    if name != slug(name):
        raise ValueError(f"attack: expected names of letters, digits, _ . + and -, got {name!r}")
    options = named.get(name, {})
    if not isinstance(options, dict):
        raise ValueError(f"attacks: {name}: expected names and values, got {options!r}")
    rest = dict(options)
    kind = str(rest.pop("attack", name))
    return kind, read_options(rest, attack_class(kind), f"attacks: {name}", RESERVED)
