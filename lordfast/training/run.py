"""The run folder: config.yaml, environment.json, inputs.json, metrics.jsonl, summary.json, checkpoints/, product."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from lordfast.files import is_temporary, naming, sweep, write_atomic
from lordfast.runs.host import recorded_variables, resolve_device
from lordfast.training.config import RunConfig, changes, check_choices, read_yaml, write_yaml
from lordfast.training.inputs import INPUTS_NAME, changed_inputs, load_inputs, read_inputs

logger = logging.getLogger(__name__)

# Config fields whose folders are searched for images.
_IMAGE_FOLDERS = ("images", "data", "instance_data", "class_data")
_PACKAGES = ("lordfast", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "pillow", "torchmetrics")


def write_json(path: Path, value: Any) -> None:
    """Write JSON to a temporary file and rename it."""
    write_atomic(path, (json.dumps(value, indent=2) + "\n"))


def environment() -> dict[str, Any]:
    """Versions, hardware and the environment variables that libraries compute by, for environment.json."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if cuda else None,
        "cuda_version": torch.version.cuda,
        "packages": versions,
        "variables": recorded_variables(),
    }


class RunFolder:
    """One run on disk. Of several processes the main one opens it; the others hold it with `write` false.

    Args:
        stem: of the file of rows: ``metrics.jsonl``, or ``metrics.NAME.jsonl`` for a share of the run.
    """

    def __init__(self, path: Path, write: bool = True, stem: str = "metrics") -> None:
        self.path = path
        self.write = write
        self._stem = stem

    @classmethod
    def inspect(cls, config: RunConfig, command: str, grows: bool = False) -> dict[str, Any] | None:
        """Raise what `open` would raise, before long work and without touching anything.

        Args:
            grows: images that were added since the run began are made, too: they change nothing about the others.

        Returns:
            The summary of a finished run that is resumed: there is nothing left to do. Else None.

        Raises:
            ValueError: the folder holds another run and neither ``resume`` nor ``overwrite`` was given; it holds
                files that are no run; it lies inside a folder of images that the run reads; the run to resume has
                another config (every differing field is named), or read files that have changed since (likewise); what
                is to be overwritten holds an input of this run; torchrun started several processes, and this one has
                not joined the others; a setting that no run can have (`check_choices`); a device that is not there.
        """
        _check_alone(command)
        check_choices(config)
        resolve_device(config.device)
        path = Path(config.out)
        if path.exists() and not path.is_dir():
            raise ValueError(f"out: {path} is a file; expected a folder to write the run into")
        if config.resume and config.overwrite:
            raise ValueError("resume, overwrite: both were given; expected at most one")
        folders = {name: getattr(config, name, None) for name in _IMAGE_FOLDERS}
        # A field of this name may also count images.
        _check_outside(path, {name: Path(folder) for name, folder in folders.items() if isinstance(folder, str | Path)})
        if not _holds_run(path):
            # A job that shares the run with this one may be about to claim it,
            if not path.exists() or all(is_temporary(file) or file.name == INPUTS_NAME for file in path.iterdir()):
                return None
            # or has just done so: its config comes before everything else.
            if not _holds_run(path):
                raise ValueError(f"out: {path} is not empty and holds no run; expected a new or empty folder")
        if config.overwrite:
            _check_kept(path, _inputs(config))
            return None
        if not config.resume:
            raise ValueError(f"out: {path} holds a run already; --resume goes on with it, --overwrite replaces it")
        stored = path / "config.yaml"
        changed = changes(read_yaml(stored, command), config)
        if changed:
            raise ValueError(
                f"resume: the run in {path} has another config ({'; '.join(changed)}); give the same settings "
                f"(--config {stored}), or another --out"
            )
        return None if _has_grown(path, config, grows) else cls(path, write=False).summary()

    @classmethod
    def open(cls, config: RunConfig, command: str, alone: bool = True, grows: bool = False) -> RunFolder:
        """Claim ``config.out`` for a run of `command`, or pick up the interrupted run there. Raises as `inspect`.

        Args:
            alone: nobody else writes into it at this moment: halves of files in it are remains of a killed process,
                and are deleted.
            grows: as of `inspect`. With more images, a finished run is unfinished again.
        """
        cls.inspect(config, command, grows)
        path = Path(config.out)
        if config.overwrite and path.exists():
            shutil.rmtree(path)
        path.mkdir(parents=True, exist_ok=True)
        if alone:
            sweep(path)
        grown = config.resume and _holds_run(path) and _has_grown(path, config, grows)
        run = cls(path)
        run.record_inputs(config)
        # The config makes the folder a run, which an interruption right here leaves resumable.
        if not (path / "config.yaml").exists():
            write_yaml(path / "config.yaml", command, config)
        if not (path / "environment.json").exists():
            write_json(path / "environment.json", environment())
        if grown:
            (path / "summary.json").unlink(missing_ok=True)
        return run

    def record_inputs(self, config: RunConfig) -> None:
        """Write down what the run reads; once more where it has itself added to that."""
        if self.write:
            known = load_inputs(self.path)
            now = read_inputs(config, known or {})
            if now != known:
                write_json(self.path / INPUTS_NAME, now)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def summary(self) -> dict[str, Any] | None:
        """What `finish` wrote, or None while the run is unfinished."""
        path = self.path / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def finish(self, summary: dict[str, Any]) -> dict[str, Any]:
        """Write summary.json, the mark of a finished run, and return it."""
        if self.write:
            write_json(self.path / "summary.json", summary)
        return summary

    def of_process(self, rank: int) -> RunFolder:
        """The run to one of several processes that all log rows: rows of its own, which count among those of the run.

        `keep` and `collect` of the main process take them over, at a moment when no other one logs.
        """
        stem = f"{self._stem}.process-{rank}" if rank else self._stem
        return RunFolder(self.path, write=True, stem=stem)

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl."""
        if self.write:
            path = self.path / f"{self._stem}.jsonl"
            with naming(path), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def _files(self) -> list[Path]:
        """Where the rows are: the run's own file, and those of its other processes; to the whole run, of its shares."""
        others = "metrics.*.jsonl" if self._stem == "metrics" else f"{self._stem}.process-*.jsonl"
        return [self.path / f"{self._stem}.jsonl", *sorted(self.path.glob(others))]

    def rows(self) -> list[dict[str, Any]]:
        """The whole rows of metrics.jsonl; an interruption can leave half of one, which is passed over."""
        return [row for path in self._files() for row in _rows(path)]

    def keep(
        self, wanted: Callable[[dict[str, Any]], bool], step: Callable[[dict[str, Any]], int] | None = None
    ) -> list[dict[str, Any]]:
        """Drop the rows of metrics.jsonl that are not `wanted`, so that a resumed run writes each of them once.

        A share of a run looks into all files: an earlier session may have divided the work in another way.

        Args:
            step: the place of a row now, where it depends on how many there are.

        Returns:
            The rows that stay; none where this process does not write.
        """
        if not self.write:
            return []
        files = self._files() if self._stem == "metrics" else sorted(self.path.glob("metrics*.jsonl"))
        rows = [row for path in files for row in _rows(path) if wanted(row)]
        if step is not None:
            rows = [{**row, "step": step(row)} for row in rows]
        return self._rewrite(rows if len(files) < 2 else _by_step(rows))

    def collect(self, tidy: bool = True) -> list[dict[str, Any]]:
        """Put the rows of all processes into metrics.jsonl, ordered by step, a step once; they are returned.

        Args:
            tidy: delete the files that the rows came from.
        """
        return self._rewrite(_by_step(self.rows()), tidy)

    def _rewrite(self, rows: list[dict[str, Any]], tidy: bool = True) -> list[dict[str, Any]]:
        own, *others = self._files()
        if self.write and (own.exists() or others or rows):
            write_atomic(own, "".join(json.dumps(row) + "\n" for row in rows))
            for path in others if tidy else ():
                path.unlink()
        return rows

    def rewind(self, step: int) -> list[dict[str, Any]]:
        """`keep` the rows up to `step`."""
        return self.keep(lambda row: row["step"] <= step)


def _rows(path: Path) -> list[dict[str, Any]]:
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            row = json.loads(line)
            if isinstance(row, dict) and "step" in row:
                found.append(row)
    return found


def _by_step(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    steps = {row["step"]: row for row in rows}
    return [steps[step] for step in sorted(steps)]


def _has_grown(path: Path, config: RunConfig, grows: bool) -> bool:
    """Whether images were added to what the run in `path` read when it began.

    Raises:
        ValueError: something else has changed about its inputs, or images were added to a run that does not grow.
    """
    then = load_inputs(path)
    if then is None:
        _say_unknown(path)
        return False
    changes, added = changed_inputs(then, read_inputs(config, then))
    named = changes if grows else [*changes, *added]
    if named:
        more = f" and {len(named) - 5} more" if len(named) > 5 else ""
        raise ValueError(
            f"resume: inputs of the run in {path} changed since it began ({'; '.join(named[:5])}{more}); expected the "
            "same files. Put them back, or begin anew with --overwrite or another --out"
        )
    return bool(added)


@cache
def _say_unknown(path: Path) -> None:
    logger.warning(
        "%s has no %s, as runs of earlier versions: it goes on without a look at whether its inputs changed",
        path,
        INPUTS_NAME,
    )


def check_apart(config: RunConfig, folders: Mapping[str, Path]) -> None:
    """`RunFolder.inspect`'s checks for folders that a run reads and `config` does not hold as plain paths, by name.

    Raises:
        ValueError: ``config.out`` lies inside one of them, or one lies in ``config.out``, which is to be overwritten.
    """
    _check_outside(Path(config.out), folders)
    if config.overwrite:
        _check_kept(Path(config.out), {name: path for name, path in folders.items() if path.exists()})


def _check_alone(command: str) -> None:
    # A command that works in several processes has joined them before it looks at the folder.
    count = os.environ.get("WORLD_SIZE", "1")
    if count.isdecimal() and int(count) > 1 and not torch.distributed.is_initialized():
        raise ValueError(
            f"lordfast {command} runs in one process, got {count} (WORLD_SIZE), which would write over each other; "
            "start it without torchrun or accelerate launch"
        )


def _check_outside(out: Path, folders: Mapping[str, Path]) -> None:
    for name, folder in folders.items():
        if out.resolve().is_relative_to(folder.resolve()):
            # The run's own images would be data of the next run, and of this one when it is resumed.
            raise ValueError(f"out: {out} lies inside the {name} {folder}; expected a folder apart from it")


def _check_kept(out: Path, inputs: Mapping[str, Path]) -> None:
    for name, path in inputs.items():
        if path.resolve().is_relative_to(out.resolve()):
            raise ValueError(f"overwrite: {name} {path} lies inside {out} and would be deleted with it")


def _holds_run(path: Path) -> bool:
    # Other tools call their files config.yaml too, and --overwrite deletes what counts as a run.
    try:
        values = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False
    return isinstance(values, dict) and isinstance(values.get("command"), str) and "out" in values


def _inputs(config: RunConfig) -> dict[str, Path]:
    """The existing files and folders that a config reads."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        is_path = isinstance(value, Path) and field.name not in ("out", "cache_dir")
        if is_path or (field.name == "model" and isinstance(value, str)):
            found[field.name] = Path(value)
    return {name: path for name, path in found.items() if path.exists()}
