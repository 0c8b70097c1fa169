"""Checkpoints of what is trained: whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lordfast.files import naming

logger = logging.getLogger(__name__)

_FILES = ("weights.safetensors", "state.pt")


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save_checkpoint(folder: Path, step: int, weights: Mapping[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Write ``folder/step-N`` under a temporary name, sync it, rename it; then drop all but the newest `keep`.

    Raises:
        OSError: the disk is full, or does not take it; nothing of it stays then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary, final = folder / f".step-{step:08d}", folder / f"step-{step:08d}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with naming(final):
            held = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
            save_file(held, temporary / "weights.safetensors")
            torch.save(state, temporary / "state.pt")
            files = {name: _digest(temporary / name) for name in _FILES}
            (temporary / "checkpoint.json").write_text(json.dumps({"step": step, "files": files}), encoding="utf-8")
            for path in (*temporary.iterdir(), temporary):
                _sync(path)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _sync(folder)
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_whole(checkpoint: Path) -> bool:
    """Whether weights, state and step are those that were written."""
    try:
        record = json.loads((checkpoint / "checkpoint.json").read_text(encoding="utf-8"))
        files = {name: _digest(checkpoint / name) for name in _FILES}
        return bool(record == {"step": int(checkpoint.name.removeprefix("step-")), "files": files})
    except (OSError, ValueError):
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
