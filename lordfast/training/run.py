"""The run folder: config.yaml, environment.json, metrics.jsonl, summary.json, checkpoints/ and the product."""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lordfast.training.config import RunConfig, differences, read_yaml, to_dict, write_yaml

_PACKAGES = ("lordfast", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy", "pillow", "torchmetrics")


def write_json(path: Path, value: Any) -> None:
    """Write JSON to a temporary file and rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def environment() -> dict[str, Any]:
    """Versions and hardware, for environment.json."""
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
    }


class RunFolder:
    """One run on disk. Only the main process of several should open it with `write` true."""

    def __init__(self, path: Path, write: bool = True) -> None:
        self.path = path
        self.write = write

    @classmethod
    def open(cls, config: RunConfig, command: str, write: bool = True) -> RunFolder:
        """Claim ``config.out`` for a run of `command`, or pick up the interrupted run there.

        Raises:
            ValueError: the folder holds another run and neither ``resume`` nor ``overwrite`` was given; it holds
                files that are no run; the run to resume has another config (every differing field is named).
        """
        path = Path(config.out)
        if path.exists() and not path.is_dir():
            raise ValueError(f"out: {path} is a file; expected a folder to write the run into")
        if config.resume and config.overwrite:
            raise ValueError("resume, overwrite: both were given; expected at most one")
        stored = path / "config.yaml"
        if stored.exists():
            if config.overwrite:
                if write:
                    shutil.rmtree(path)
            elif config.resume:
                changed = differences(read_yaml(stored, command), to_dict(config))
                if changed:
                    raise ValueError(
                        f"resume: the run in {path} has another config ({'; '.join(changed)}); give the same settings "
                        f"(--config {stored}), or another --out"
                    )
            else:
                raise ValueError(f"out: {path} holds a run already; --resume goes on with it, --overwrite replaces it")
        elif path.exists() and any(path.iterdir()):
            raise ValueError(f"out: {path} is not empty and holds no run; expected a new or empty folder")
        if write:
            path.mkdir(parents=True, exist_ok=True)
            if not stored.exists():
                write_json(path / "environment.json", environment())
                write_yaml(stored, command, config)
        return cls(path, write)

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

    def log(self, row: dict[str, Any]) -> None:
        """Append a row to metrics.jsonl."""
        if self.write:
            with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def rewind(self, step: int) -> None:
        """Drop the rows of metrics.jsonl beyond `step`, so that a resumed run writes each of them once."""
        path = self.path / "metrics.jsonl"
        if not self.write or not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError):
                continue  # a line cut short by the interruption
        temporary = path.with_name(f".{path.name}")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(path)
