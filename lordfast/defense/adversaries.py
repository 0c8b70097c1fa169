"""The adversaries that Stage 1 trains against: which they are, from words, and which image is whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import torch

from lordfast.attacks.engine import PgdSettings
from lordfast.attacks.options import AttackConfig, BudgetOptions
from lordfast.attacks.pgd import check_target, pgd_loss
from lordfast.attacks.protocol import Attack, AttackLoss
from lordfast.attacks.registry import find_attack
from lordfast.diffusion import LatentDiffusion
from lordfast.training.config import check_choices
from lordfast.training.seeds import derived_generator

if TYPE_CHECKING:
    from lordfast.defense.stage1 import Stage1Config


@dataclass(frozen=True)
class Adversary:
    """A loss whose gradient is followed, and how.

    Attributes:
        word: what it was asked for by.
    """

    word: str
    loss: AttackLoss
    settings: PgdSettings


def adversaries_of(config: Stage1Config, model: LatentDiffusion) -> list[Adversary]:
    """The adversaries that perturb images here: those of ``config.adversaries``, else Stage 1's own PGD, which is left
    out where ready-made twins take its place.

    Raises:
        ValueError: as `parse_adversary`; a loss that the model can't give, or timesteps that it does not have.
    """
    if config.adversaries or config.perturbed:
        return [_named(word, config, model) for word in config.adversaries]
    own = Adversary("pgd", pgd_loss(config), config.settings(config.seed))
    own.settings.timesteps(model)
    return [own]


def _named(word: str, config: Stage1Config, model: LatentDiffusion) -> Adversary:
    attack, own = parse_adversary(word, config)
    try:
        adversary = Adversary(word, attack.loss(own, model), own.settings(config.seed))
        adversary.settings.timesteps(model)
    except ValueError as error:
        raise ValueError(f"adversaries: {word!r}: {error}") from error
    return adversary


def check_adversaries(config: Stage1Config) -> None:
    """Raise a ValueError for words that `parse_adversary` refuses, or a picture that none of them pulls towards."""
    found = [parse_adversary(word, config)[1] for word in config.adversaries]
    if not found and not config.perturbed:
        check_target(config.targeted, config.target)
    elif config.target is not None and all(getattr(own, "target", None) != config.target for own in found):
        raise ValueError(
            f"target: {config.target} was given, and none of the adversaries pulls towards it; expected targeted too, "
            "or one that does, such as pgd,targeted=true"
        )


def parse_adversary(word: str, config: Stage1Config) -> tuple[Attack, AttackConfig]:
    """An attack and its options from ``name,option=value,...``; what is left out is `config`'s where it has it.

    Raises:
        ValueError: no such attack, option or value; or an attack that trains a surrogate.
    """
    name, *pairs = (part.strip() for part in word.split(","))
    try:
        attack = find_attack(name)
    except ValueError as error:
        raise ValueError(f"adversaries: {word!r}: {error}") from error
    if attack.schedule is not None:
        raise ValueError(
            f"adversaries: {name} trains a surrogate on all images in turn with perturbing them; make its images with "
            f"'lordfast attack {name} --images {config.data}', and give their folder to --perturbed"
        )
    hints = get_type_hints(attack.config)
    names = _option_names(attack)
    given: dict[str, Any] = {}
    for pair in pairs:
        option, equals, text = pair.partition("=")
        option = option.strip().replace("-", "_")
        if not equals or option not in names:
            there = ", ".join(sorted(names)).replace("_", "-")
            raise ValueError(f"adversaries: {word!r}: expected option=value with one of {there}; got {pair!r}")
        try:
            given[option] = _value(text.strip(), hints[option])
        except ValueError as error:
            raise ValueError(f"adversaries: {word!r}: {option}: {error}") from error
    ours = {field.name for field in fields(config)}
    values = {option: getattr(config, option) for option in names & ours} | given
    if not values.get("targeted", True) and "target" not in given:
        # Stage 1's picture is for those that pull.
        values.pop("target", None)
    own = attack.config(model=config.model, images=config.data, out=config.out, seed=config.seed, **values)
    try:
        check_choices(own)
        own.settings(config.seed)
    except ValueError as error:
        raise ValueError(f"adversaries: {word!r}: {error}") from error
    return attack, own


def assignment(count: int, adversaries: int, seed: int, refresh: int) -> list[int]:
    """Whose each of `count` images is: number i mod k of k at first, dealt out in another order at every refresh."""
    if refresh == 0:
        return [i % adversaries for i in range(count)]
    order = torch.randperm(count, generator=derived_generator(seed, "adversaries", refresh)).tolist()
    return [place % adversaries for place in order]


def at_refresh(adversaries: Sequence[Adversary], seed: int) -> list[Adversary]:
    """The same adversaries with other random numbers."""
    return [replace(one, settings=replace(one.settings, seed=seed)) for one in adversaries]


def _option_names(attack: Attack) -> set[str]:
    """The options that say how an image is perturbed, not which images on which model."""
    shared = {field.name for field in fields(AttackConfig)} - {field.name for field in fields(BudgetOptions)}
    return {field.name for field in fields(attack.config)} - shared


def _value(text: str, hint: Any) -> Any:
    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    if type(None) in kinds and text in ("", "none"):
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"expected true or false, got {text!r}")
        return text == "true"
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError as error:
            raise ValueError(f"expected a number, got {text!r}") from error
    if get_origin(kind) is Literal or kind is str:
        return text
    return Path(text)
