"""What every command's config shares, and how a config travels through YAML and flags."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from lordfast.files import expand_user, write_atomic

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")

# Text, because of 8/255 and of words, which a file may have as the number that it is.
_NUMBERS_AS_TEXT = frozenset({"eps", "purify_eps", "step_size", "start_std", "lord_lambda"})

NOT_IDENTITY = frozenset(
    {
        "out",
        "resume",
        "overwrite",
        "share",
        "fsdp",
        "cache_dir",
        "checkpoint_every",
        "keep_checkpoints",
        "tensorboard",
        "page",
        "retry",
    }
)
"""Fields that may differ between an interrupted run and its resumption: they don't change what it computes."""


@dataclass(kw_only=True)
class RunConfig:
    """Where a run writes, and what makes it reproducible."""

    out: Path
    """Run folder: config.yaml, environment.json, inputs.json, metrics.jsonl, summary.json, checkpoints/ and the
    product."""
    seed: int = 0
    """Seeds everything random in the run; the same seed on the same machine gives the same result."""
    device: str = "auto"
    """auto (CUDA where there is one, else CPU), cpu, cuda, cuda:N."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the frozen weights: fp32, bf16 or fp16. Trained weights are always fp32."""
    resume: bool = False
    """Go on with the interrupted run in --out."""
    overwrite: bool = False
    """Delete the run in --out and start anew."""


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The config as plain YAML values: paths are strings, tuples are lists."""

    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def to_flags(values: dict[str, Any]) -> list[str]:
    """Flags that set `values`: the one route by which YAML files and presets reach a config.

    Booleans become ``--name`` or ``--no-name``, lists several words, None is left to the default; anything else is
    joined to its flag, so that a value may begin with a dash.
    """
    flags: list[str] = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list | tuple):
            flags += [f"--{flag}", *map(str, value)]
        else:
            flags.append(f"--{flag}={value}")
    return flags


def read_yaml(path: str | Path, command: str) -> dict[str, Any]:
    """The settings in a YAML file, for `command`.

    Raises:
        ValueError: the file is missing, is no mapping, or was written by another command.
    """
    try:
        values = yaml.safe_load(Path(expand_user(str(path))).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"config: {path} does not exist") from error
    # A date that does not exist is a plain ValueError.
    except (yaml.YAMLError, ValueError, IsADirectoryError) as error:
        raise ValueError(f"config: {path} is no readable YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} holds a {type(values).__name__}; expected names and values")
    written_by = values.pop("command", command)
    if written_by != command:
        raise ValueError(f"config: {path} belongs to 'lordfast {written_by}', not to 'lordfast {command}'")
    return values


def check_types(values: Mapping[str, Any], cls: type[Any], source: str) -> None:
    """Raise ValueError for a value out of a YAML file that is of another type than its field of `cls`.

    Args:
        values: names of fields -> what YAML made of what stands there: ``no`` is false, ``2024-01-01`` a date.
        source: where they stand, for the message.
    """
    hints = get_type_hints(cls)
    for name, value in values.items():
        kinds = (hints[name], float) if name in _NUMBERS_AS_TEXT else (hints[name],)
        if not any(_fits(value, kind) for kind in kinds):
            said = {True: "true (yes, on or true without quotes)", False: "false (no, off or false without quotes)"}
            got = "empty" if value is None else said[value] if isinstance(value, bool) else repr(_plain_date(value))
            raise ValueError(f"{source}: {name} is {got}; expected {_wanted(hints[name])}")


def _fits(value: Any, hint: Any) -> bool:
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return any(_fits(value, option) for option in inner)
    if kind is tuple:
        # A lone value is a list of one, as it is for the flag.
        return all(_fits(item, inner[0]) for item in (value if isinstance(value, list | tuple) else (value,)))
    if kind is Literal:
        return isinstance(value, str) and value in inner
    if hint in (int, float) and isinstance(value, str):
        # YAML takes 1e-4, which has no full stop, for text.
        with contextlib.suppress(ValueError):
            return hint(value) is not None
        return False
    if isinstance(value, bool):
        return hint is bool
    accepted: Any = {float: (int, float), Path: str, NoneType: NoneType}.get(hint, kind or hint)
    return hint is Any or isinstance(value, accepted)


def _wanted(hint: Any) -> str:
    kind, inner = get_origin(hint), get_args(hint)
    if kind in (Union, UnionType):
        return " or ".join(_wanted(option) for option in inner)
    if kind is Literal:
        return f"one of {', '.join(map(str, inner))}, as text in quotes"
    if kind is tuple:
        return f"a list, each of it {_wanted(inner[0])}"
    names = {
        str: "text, in quotes where YAML reads something else",
        Path: "a path, in quotes where YAML reads something else",
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        NoneType: "null",
    }
    return names.get(hint, "names and values")


def _plain_date(value: Any) -> Any:
    return str(value) if isinstance(value, datetime.date) else value


def expand_paths(config: C) -> C:
    """`config` with the home folder in place of ``~`` and ``~user`` wherever a path may stand: in all but prompts.

    Raises:
        ValueError: there is no such home folder.
    """
    now = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    changed = {name: value for name, value in _expanded(now).items() if value != now[name]}
    return dataclasses.replace(config, **changed) if changed else config


def _expanded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: item if "prompt" in str(name) else _expanded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_expanded(item) for item in value)
    return type(value)(expand_user(str(value))) if isinstance(value, str | Path) else value


def write_yaml(path: Path, command: str, config: RunConfig) -> None:
    """Write the complete config so that ``lordfast COMMAND --config path`` runs it again."""
    values = {"command": command, **to_dict(config)}
    values["resume"] = values["overwrite"] = False
    if "share" in values:
        # The jobs of one run write the same file.
        values["share"] = None
    write_atomic(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def check_choices(config: RunConfig) -> None:
    """Raise ValueError for a value that no field of its kind may have.

    That is one that its field's ``Literal`` does not list, a number that is infinite or NaN, a seed no generator takes.
    """
    if not 0 <= config.seed < 2**63:
        raise ValueError(f"seed: expected a whole number from 0 to 2^63 - 1, got {config.seed}")
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{name}: expected a finite number, got {number}")
        kinds = get_args(hint) if type(None) in get_args(hint) and value is not None else (hint,)
        for kind in kinds:
            if get_origin(kind) is Literal and value not in get_args(kind):
                raise ValueError(f"{name}: expected one of {', '.join(get_args(kind))}, got {value!r}")


def changes(stored: dict[str, Any], config: RunConfig) -> list[str]:
    """`differences` between what a run folder's config.yaml holds and `config`.

    A field that the file lacks is younger than the run, which did what the field's default says.
    """
    defaults = {
        field.name: _plain(field.default)
        for field in dataclasses.fields(config)
        if field.default is not dataclasses.MISSING and field.name not in stored
    }
    return differences({**stored, **defaults}, to_dict(config))


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lines ``name: before -> now`` for every field that decides what a run computes and differs."""
    names = [name for name in {**before, **now} if name not in NOT_IDENTITY and name != "command"]
    return [f"{n}: {before.get(n)!r} -> {now.get(n)!r}" for n in names if before.get(n) != now.get(n)]
