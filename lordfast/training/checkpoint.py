"""Checkpoints of what is trained: whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

logger = logging.getLogger(__name__)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_checkpoint(folder: Path, step: int, weights: dict[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Write ``folder/step-N`` under a temporary name, sync it, rename it; then drop all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary, final = folder / f".step-{step:08d}", folder / f"step-{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    save_file({name: value.detach().cpu().contiguous() for name, value in weights.items()}, temporary / "weights.safetensors")
    torch.save(state, temporary / "state.pt")
    files = {path.name: _digest(path) for path in temporary.iterdir()}
    (temporary / "checkpoint.json").write_text(json.dumps({"step": step, "files": files}), encoding="utf-8")
    for path in temporary.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def is_whole(checkpoint: Path) -> bool:
    """Whether every file that the checkpoint lists is there with the content it had when it was written."""
    try:
        listed = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))["files"]
        return all(_digest(checkpoint / name) == digest for name, digest in listed.items())
    except (OSError, json.JSONDecodeError, KeyError, UnicodeDecodeError):
        return False


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint; damaged ones are passed over with a warning."""
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        if is_whole(checkpoint):
            return checkpoint
        logger.warning("checkpoint %s is incomplete or damaged: ignored", checkpoint)
    return None


def load_checkpoint(checkpoint: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """Step, weights and optimiser state."""
    step = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))["step"]
    weights = load_file(checkpoint / "weights.safetensors")
    return step, weights, torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
