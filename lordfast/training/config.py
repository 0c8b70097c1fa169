"""What every command's config shares, and how a config travels through YAML and flags."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml

from lordfast.files import write_atomic

C = TypeVar("C", bound="RunConfig")

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
    """Run folder: config.yaml, environment.json, metrics.jsonl, summary.json, checkpoints/ and the product."""
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
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"config: {path} does not exist") from error
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ValueError(f"config: {path} is no readable YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"config: {path} holds a {type(values).__name__}; expected names and values")
    written_by = values.pop("command", command)
    if written_by != command:
        raise ValueError(f"config: {path} belongs to 'lordfast {written_by}', not to 'lordfast {command}'")
    return values


def write_yaml(path: Path, command: str, config: RunConfig) -> None:
    """Write the complete config so that ``lordfast COMMAND --config path`` runs it again."""
    values = {"command": command, **to_dict(config)}
    values["resume"] = values["overwrite"] = False
    if "share" in values:
        # The jobs of one run write the same file.
        values["share"] = None
    write_atomic(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def check_choices(config: RunConfig) -> None:
    """Raise ValueError for a value that its field's ``Literal`` does not list, or a seed no generator takes."""
    if not 0 <= config.seed < 2**63:
        raise ValueError(f"seed: expected a whole number from 0 to 2^63 - 1, got {config.seed}")
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
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
