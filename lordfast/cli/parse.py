"""Flags, YAML files and presets into a config dataclass, and a config into a run."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from lordfast.training.config import check_types, expand_paths, read_yaml, to_flags
from lordfast.training.interrupt import Interrupted

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

C = TypeVar("C", bound="DataclassInstance")


class Stopped(Exception):
    """An interrupted command, and the command line that goes on with it."""

    def __init__(self, done: str, resume: str) -> None:
        super().__init__(done)
        self.done, self.resume = done, resume


def parse(
    cls: type[C],
    command: str,
    args: list[str],
    presets: Mapping[str, dict[str, Any]] | None = None,
    note: str | None = None,
) -> C:
    """Parse `args` into `cls`: defaults, then ``--preset``, then ``--config FILE``, then the other flags, last wins.

    Args:
        note: a paragraph for ``--help`` on what the config does not hold.

    Raises:
        ValueError: an unknown preset; a YAML file that is unreadable, foreign, or has unknown fields or values of
            another type; a path in the home folder of nobody.
        SystemExit: from tyro, for bad flags and ``--help``.
    """
    presets = presets or {}
    early = argparse.ArgumentParser(prog=f"lordfast {command}", add_help=False, allow_abbrev=False)
    early.add_argument("--config")
    early.add_argument("--preset")
    known, rest = early.parse_known_args(args)
    settings: dict[str, Any] = {}
    if known.preset is not None:
        if known.preset not in presets:
            there = ", ".join(presets) or "none for this command"
            raise ValueError(f"preset: expected one of: {there}; got {known.preset!r}")
        settings |= presets[known.preset]
    if known.config is not None:
        settings |= _checked(cls, known.config, read_yaml(known.config, command))
    needed = [f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING]
    extra = f"\n\nNeeded: {' '.join('--' + name.replace('_', '-') for name in needed)}." if needed else ""
    extra += "\n\n--config FILE.yaml reads settings from a file; a run's own config.yaml runs it again."
    for name, values in presets.items():
        extra += f"\n\n--preset {name}: {' '.join(to_flags(values))}"
    extra += f"\n\n{note}" if note else ""
    # No flag can hold names and values that are free; what does comes from files and presets alone.
    mappings = {name: value for name, value in settings.items() if isinstance(value, dict)}
    flags = to_flags({name: value for name, value in settings.items() if name not in mappings})
    # Later flags win, so what the person wrote stands last.
    config = tyro.cli(
        cls,
        prog=f"lordfast {command}",
        description=(cls.__doc__ or "") + extra,
        args=flags + rest,
    )
    return expand_paths(dataclasses.replace(config, **mappings))


def report(line: str) -> None:
    """Print a command's last line, once however many processes torchrun started."""
    if os.environ.get("RANK", "0") == "0":
        print(line)


def _checked(cls: type[Any], path: str, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(cls)}
    unknown = [name for name in values if name not in names]
    if unknown:
        raise ValueError(f"config: {path} sets {', '.join(map(repr, unknown))}, which this command does not have")
    check_types(values, cls, f"config: {path}")
    return values


def run_resumable(
    command: str, config: Any, work: Callable[[], dict[str, Any]], more: Sequence[str] = ()
) -> dict[str, Any]:
    """Call `work`; when it is interrupted, raise `Stopped` with the command line that goes on.

    Args:
        more: words of the command line that the config does not hold.
    """
    path = config.out / "config.yaml"
    try:
        return work()
    except Interrupted as interrupted:
        raise Stopped(interrupted.done, _again(command, path, more)) from None
    except KeyboardInterrupt:
        if not path.exists() or (config.out / "summary.json").exists():
            raise
        raise Stopped("at once", _again(command, path, more)) from None


def _again(command: str, config: Path, more: Sequence[str]) -> str:
    """The command line that resumes the run of `config`, with as many processes as this one has."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    program = (
        ["lordfast"] if processes == "1" else ["torchrun", "--nproc_per_node", processes, "-m", "lordfast.cli.main"]
    )
    return shlex.join([*program, *command.split(), "--config", str(config), "--resume", *more])
