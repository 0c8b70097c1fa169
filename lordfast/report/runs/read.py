"""A run folder as it is on disk: settings, versions, rows, and a summary if it is finished."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from lordfast.training.run import RunFolder

CONFIG, ENVIRONMENT, SUMMARY, RESULTS = "config.yaml", "environment.json", "summary.json", "results.json"


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        command: that made it, such as ``attack pgd``.
        config: its settings.
        environment: versions and hardware; empty where a run was killed in its first moments.
        summary: what it found; None while it is unfinished.
        results: the table of an experiment, which may be half finished; None of other commands.
    """

    path: Path
    command: str
    config: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any] | None
    results: dict[str, Any] | None = None

    @property
    def kind(self) -> str:
        """The first word of the command."""
        return self.command.partition(" ")[0]

    @property
    def name(self) -> str:
        """The other words: which attack, purifier or experiment; "" where there are none."""
        return self.command.partition(" ")[2]

    @property
    def finished(self) -> bool:
        return self.summary is not None

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Of metrics.jsonl, and of the files that shares or processes of the run keep beside it."""
        return sorted(RunFolder(self.path, write=False).rows(), key=lambda row: row["step"])

    def input(self, field: str) -> Path | None:
        """The existing file or folder that `field` of the config names.

        A relative path is where the command was started, which the run's own path tells unless it was moved.
        """
        value = self.config.get(field)
        if not isinstance(value, str) or not value:
            return None
        starts = [Path.cwd()]
        out, here = Path(str(self.config.get("out", ""))), self.path.resolve()
        if not out.is_absolute() and out.parts and here.parts[-len(out.parts) :] == out.parts:
            starts.insert(0, Path(*here.parts[: -len(out.parts)]))
        return next((start / value for start in starts if (start / value).exists()), None)


def read_run(folder: str | Path) -> Run:
    """The run in `folder`.

    Raises:
        ValueError: it holds no run, or a file of it is damaged.
    """
    path = Path(folder)
    if not path.exists():
        raise ValueError(f"run: {path} does not exist; expected the --out folder of a lordfast command")
    try:
        config = yaml.safe_load((path / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict) or not isinstance(config.get("command"), str):
        raise ValueError(f"run: {path} holds no run: it has no {CONFIG} of a lordfast command")
    command = config.pop("command")
    found = {name: read_json(path / name) for name in (ENVIRONMENT, SUMMARY, RESULTS)}
    return Run(path, command, config, found[ENVIRONMENT] or {}, found[SUMMARY], found[RESULTS])


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no file.

    Raises:
        ValueError: it holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"run: {path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"run: {path} holds a {type(found).__name__}; expected an object")
    return found
