"""The methods of a study by their words: what is done about an attack, with which options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lordfast.defense.stage1 import Stage1Config
from lordfast.evaluation.experiments.choices import purifier_class, read_options
from lordfast.evaluation.experiments.steps import RESERVED
from lordfast.training.generate import GenerateConfig
from lordfast.training.stage2 import Stage2Config

CLEAN, PLAIN, PGD2, LORD = "clean-lora", "lora", "pgd2", "lord"
DEFAULT = "default"

_RUN = ("out", "model", "seed", "device", "dtype", "resume", "overwrite", "tensorboard", "cache_dir")
_STAGE1 = (*_RUN, "data", "one_branch")
_STAGE2 = (*_RUN, "instance_data", "instance_prompt", "lord")
_GENERATE = (*_RUN, "prompt", "lora", "lord")
_SAME = ("n", "resolution")
"""What all methods' pictures have in common: they are compared one by one."""

Options = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """What a LoRD's name stands for: options of Stage 1, Stage 2 and sampling.

    Attributes:
        lord: whether the LoRD is loaded for sampling too.
    """

    stage1: Options
    stage2: Options
    generate: Options
    lord: bool = True


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: its word.
        defense: what lies under the LoRA.
        variant: its options, and the LoRA's.
        purifier: the kind of purifier that the pictures go through first, with `options`.
    """

    name: str
    defense: Literal["pgd2", "lord"] | None
    variant: Variant
    purifier: str | None
    options: Options

    @property
    def lord(self) -> str:
        """What lies under the LoRA, as a word: ``lord:soft`` of ``jpeg+lord:soft``."""
        _, colon, variant = self.name.partition(":")
        return f"{self.defense or PLAIN}{colon}{variant}"

    @property
    def stage1(self) -> Options | None:
        """All that decides about its Stage 1; None without one."""
        if self.defense is None:
            return None
        return {**self.variant.stage1, "one_branch": self.defense == PGD2}


def read_variants(base: Mapping[str, Options], named: Mapping[str, Any]) -> dict[str, Variant]:
    """Name -> variant, the default among them.

    Args:
        base: ``stage1``, ``stage2``, ``generate`` options that all share.
        named: name -> what it changes of them.

    Raises:
        ValueError: unknown parts or options.
    """
    found = {}
    for name, changes in {DEFAULT: {}, **named}.items():
        where = f"variants: {name}"
        if not isinstance(changes, dict) or not changes.keys() <= base.keys():
            raise ValueError(f"{where}: expected options under {', '.join(base)}, got {changes!r}")
        for key in changes.get("generate") or {}:
            if str(key).replace("-", "_") in _SAME:
                raise ValueError(
                    f"{where}: generate: {key} has to be the same for all methods, whose pictures are compared one by "
                    "one; expected it under generate, beside variants"
                )
        parts = {part: {**options, **(changes.get(part) or {})} for part, options in base.items()}
        lord = _switch(parts["generate"].pop("lord", True), f"{where}: generate: lord")
        found[name] = Variant(
            read_options(parts["stage1"], Stage1Config, f"{where}: stage1", _STAGE1),
            read_options(parts["stage2"], Stage2Config, f"{where}: stage2", _STAGE2),
            read_options(parts["generate"], GenerateConfig, f"{where}: generate", _GENERATE),
            lord,
        )
    return found


def _switch(value: Any, what: str) -> bool:
    if value in (True, "on"):
        return True
    if value in (False, "off"):
        return False
    raise ValueError(f"{what}: expected on or off, got {value!r}")


def read_method(word: str, variants: Mapping[str, Variant], purifiers: Mapping[str, Any]) -> Method:
    """The method of a word: [PURIFIER+]DEFENSE[:VARIANT], or PURIFIER.

    Raises:
        ValueError: an unknown purifier, variant or option.
    """
    text, colon, name = word.partition(":")
    first, plus, rest = text.partition("+")
    bases = (CLEAN, PLAIN, PGD2, LORD)
    purifier, base = (first, rest if plus else PLAIN) if plus or first not in bases else (None, first)
    name = name if colon else DEFAULT
    if base not in bases or (plus and base == CLEAN):
        raise ValueError(f"methods: expected {PLAIN}, {PGD2} or {LORD} after the purifier, got {word!r}")
    if name not in variants or (base == CLEAN and colon):
        raise ValueError(f"methods: expected a variant among {', '.join(variants)}, got {word!r}")
    defense: Any = base if base in (PGD2, LORD) else None
    kind: str | None = None
    options: Options = {}
    if purifier is not None:
        kind, options = read_purifier(purifier, purifiers.get(purifier))
    return Method(word, defense, variants[name], kind, options)


def read_purifier(name: str, options: Any) -> tuple[str, Options]:
    """Kind and options of a purifier by its name in the study.

    Raises:
        ValueError: an unknown kind, or unknown options.
    """
    rest = dict(_mapping(options, f"purifiers: {name}"))
    kind = str(rest.pop("purifier", name))
    return kind, read_options(rest, purifier_class(kind), f"purifiers: {name}", RESERVED)


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{what}: expected names and values, got {value!r}")
    return value
