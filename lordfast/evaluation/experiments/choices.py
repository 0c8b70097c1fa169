"""Attacks and purifiers by name, with options as ``NAME=VALUE`` words: what a condition of an experiment is made of."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from lordfast.attacks.registry import find_attack
from lordfast.purify.registry import PURIFIERS
from lordfast.training.config import check_types


def attack_class(name: str) -> type[Any]:
    """The config of an attack.

    Raises:
        ValueError: an unknown one.
    """
    return find_attack(name).config


def purifier_class(name: str) -> type[Any]:
    """The config of a purifier.

    Raises:
        ValueError: an unknown one.
    """
    if name not in PURIFIERS:
        raise ValueError(f"purifiers: expected names of {', '.join(PURIFIERS)}, got {name!r}")
    return PURIFIERS[name].config


def build(cls: type[Any], needed: Mapping[str, Any], offered: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    """`cls` from what it has to be given, from what is `offered` as far as it has such fields, and from `options`."""
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{**{name: value for name, value in offered.items() if name in names}, **needed, **options})


def parse_options(words: Iterable[str], cls: type[Any], argument: str, reserved: Iterable[str]) -> dict[str, Any]:
    """``NAME=VALUE`` words as fields of `cls`, the values read as in a YAML file.

    Args:
        argument: the config's field that they come from, for errors.
        reserved: fields that the experiment sets itself.

    Raises:
        ValueError: a word without "=", a name twice, an unknown or reserved field, or a value of another type.
    """
    hints = get_type_hints(cls)
    free = [field.name for field in dataclasses.fields(cls) if field.name not in set(reserved)]
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        name = name.replace("-", "_")
        if not equals or name in found:
            raise ValueError(f"{argument}: expected words NAME=VALUE, each name once, got {word!r}")
        if name not in free:
            raise ValueError(f"{argument}: expected options among {', '.join(free)}, got {name!r}")
        found[name] = _convert(text, hints[name], f"{argument}: {name}")
    return found


def read_options(
    values: Mapping[str, Any], cls: type[Any], argument: str, reserved: Iterable[str] = ()
) -> dict[str, Any]:
    """Values from YAML as fields of `cls`, of the types that these have: a path is a string there, 5e-4 too.

    Args:
        argument: where they come from, for errors.
        reserved: fields that the experiment sets itself.

    Raises:
        ValueError: an unknown or reserved field, or a value of another type.
    """
    hints = get_type_hints(cls)
    free = [field.name for field in dataclasses.fields(cls) if field.name not in set(reserved)]
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in free:
            raise ValueError(f"{argument}: expected options among {', '.join(free)}, got {key!r}")
        if not isinstance(value, str | list | tuple) and {str, Path} & {hints[name], *get_args(hints[name])}:
            # Anything has a text, which nobody wrote: no would become the prompt "false".
            check_types({name: value}, cls, argument)
        found[name] = _typed(value, hints[name], f"{argument}: {name}")
    return found


def _typed(value: Any, hint: Any, what: str) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if isinstance(value, list | tuple):
        items = next((get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple), None)
        if items is None:
            raise ValueError(f"{what}: expected one value, got {list(value)!r}")
        return tuple(_convert(_text(item), items, what) for item in value)
    lone = next((get_args(kind)[0] for kind in kinds if get_origin(kind) is tuple), None)
    return (_convert(_text(value), lone, what),) if lone is not None else _convert(_text(value), hint, what)


def _text(value: Any) -> str:
    """As YAML would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _convert(text: str, hint: Any, what: str) -> Any:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    for kind in kinds:
        if get_origin(kind) is Literal and text in get_args(kind):
            return text
        if kind is type(None) and value is None:
            return None
        if kind is bool and isinstance(value, bool):
            return value
        if kind is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if kind is float and (number := _float(text)) is not None:
            return number
        # Budgets such as 16/255 and 0.06 are kept as they were written.
        if kind is str:
            return text
        if kind is Path:
            return Path(text)
    expected = " or ".join(
        "/".join(map(str, get_args(kind))) if get_origin(kind) is Literal else getattr(kind, "__name__", str(kind))
        for kind in kinds
    )
    raise ValueError(f"{what}: expected {expected}, got {text!r}")


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
