"""From the settings of a study to what it consists of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from lordfast.evaluation.experiments.study.design import DRAWN, Dataset, Design
from lordfast.evaluation.experiments.study.methods import CLEAN, Options, read_method, read_variants
from lordfast.evaluation.experiments.study.recipes import RECIPES
from lordfast.evaluation.experiments.study.values import check_values
from lordfast.training.config import check_choices

NAMED = ("attacks", "purifiers", "stage1", "stage2", "generate", "evaluate", "variants")
"""Fields of a study's config that hold names and values."""
_SETS = ("generated", "reference", "clean", "attacked", "features", "lord", "lora", "lord_lambda", "prompt")
_ASKED = ("distribution", "paired", "frequency", "lpips", "timesteps", "denoising")
_RUN = ("out", "model", "seed", "device", "dtype", "resume", "overwrite", "cache_dir")
_LIKENESS = ("identity", "clip_model", "clip_prompt", "iqa_subject", "dino_model")


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
    attacks = {
        name: _attack(name, recipe.attacks.get(name, {}), config.attacks.get(name, {}))
        for name in config.attack or recipe.attack
    }
    base = {part: {**getattr(recipe, part), **getattr(config, part)} for part in ("stage1", "stage2", "generate")}
    variants = read_variants(base, config.variants)
    _check_different("methods", config.methods)
    # What all others are compared with comes first.
    words = (CLEAN, *(word for word in config.methods if word != CLEAN))
    methods = [read_method(word, variants, config.purifiers) for word in words]
    named = {method.name.partition(":")[0].partition("+")[0] for method in methods}
    unused = [name for name in config.purifiers if name not in named]
    if unused:
        raise ValueError(f"purifiers: {unused[0]} is described, but no method is named so; methods: {', '.join(words)}")
    measured = read_options(
        {**recipe.evaluate, **config.evaluate}, EvaluateConfig, "evaluate", (*_SETS, *_ASKED, *_RUN)
    )
    check_values(config, methods, measured)
    found = Design(
        config,
        datasets,
        attacks,
        methods,
        config.features or recipe.features,
        {name: value for name, value in measured.items() if name not in _LIKENESS},
        {name: value for name, value in measured.items() if name in _LIKENESS},
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
    if config.stage1_seeds > config.seeds:
        raise ValueError(
            f"stage1_seeds: expected at most one for each of an identity's {config.seeds} replicates (seeds), got "
            f"{config.stage1_seeds}"
        )
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
    named = [_folder(word) for word in config.datasets]
    _check_different("datasets", [name for name, _ in named])
    folders = dict(named)
    budgets = per_dataset("eps", config.eps or eps, folders)
    prompts = per_dataset("prompts", config.prompts, folders)
    others = per_dataset("stage1_data", config.stage1_data, folders)
    found = []
    for name, folder in folders.items():
        if name != slug(name) or name.startswith("."):
            raise ValueError(f"datasets: expected names of letters, digits, _ . + and -, got {name!r}")
        if not folder and config.model != "demo":
            raise ValueError(f"datasets: {name} are drawn for the model demo only; {config.model} needs NAME=DIR")
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


def _folder(word: str) -> tuple[str, str]:
    """Name and folder of a dataset; drawn ones have none."""
    name, equals, folder = word.partition("=")
    if equals:
        return name, folder
    return (word, "") if word in DRAWN else (slug(Path(word).name), word)


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


def _attack(name: str, base: Options, options: Any) -> tuple[str, Options]:
    if name != slug(name):
        raise ValueError(f"attack: expected names of letters, digits, _ . + and -, got {name!r}")
    if not isinstance(options, dict):
        raise ValueError(f"attacks: {name}: expected names and values, got {options!r}")
    # Of another kind, the recipe's options mean nothing.
    same = options.get("attack", base.get("attack")) == base.get("attack")
    rest = {**(base if same else {}), **options}
    kind = str(rest.pop("attack", name))
    return kind, read_options(rest, attack_class(kind), f"attacks: {name}", RESERVED)
