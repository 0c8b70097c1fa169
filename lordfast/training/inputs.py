"""What a run reads, recorded in its folder as digests, so that ``--resume`` tells what has changed since it began."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from lordfast.data import ImageRecord, list_images
from lordfast.data.archives import find_archives, names_archives
from lordfast.data.folder import RUN_CONFIG
from lordfast.training.config import RunConfig

INPUTS_NAME = "inputs.json"
CLASS_IMAGE = re.compile(r"class-\d{4,}\.png")
"""Names of the class images that stage2 draws."""

Files = dict[str, dict[str, Any]]
"""Name -> ``sha256``, ``stat`` and, of an image with a caption, ``caption``, all of one file."""

# Fields by what they name: one, several, or as NAME=PATH.
_CAPTIONED = frozenset(
    {"images", "data", "instance_data", "generated", "reference", "clean", "attacked", "originals", "stage1_data"}
)
_IMAGES = _CAPTIONED | {"class_data", "perturbed", "masks", "datasets"}
_WEIGHTS = frozenset({"model", "lord", "lora", "features_model", "clip", "clip_model", "dino_model", "upscaler", "to"})
_FILES = frozenset({"target", "inception_weights", "features"})
# Captions of these folders are read even where one prompt stands for those of others.
_OWN_CAPTIONS = frozenset({"generated", "reference"})
_OF_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".json", ".txt", ".model"})


def read_inputs(config: RunConfig, known: Mapping[str, Files]) -> dict[str, Files]:
    """The files that `config` names: images with their captions, weights, pictures; argument -> its files.

    What does not exist, or is no folder of images where one belongs, is the command's to complain about. Of models on
    the hub and the embedded one nothing is read.

    Args:
        known: an earlier answer; files that have not been touched since are not read again.
    """
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if settings.get("prior_preservation"):
        settings["class_data"] = class_folder(config.out, settings["class_data"])
    found: dict[str, Files] = {}
    for argument, name, path in _paths(settings):
        earlier = known.get(argument, {})
        found[argument] = {
            key: _described(file, caption, earlier.get(key)) for key, file, caption in _files(name, path, settings)
        }
    return {argument: files for argument, files in found.items() if files}


def class_folder(out: Path, class_data: Path | None) -> Path:
    """Where the class images of a run of stage2 are, of which it draws those that are missing."""
    return class_data or Path(out) / "class_images"


def changed_inputs(then: Mapping[str, Files], now: Mapping[str, Files]) -> tuple[list[str], list[str]]:
    """What a run that is resumed reads otherwise than it began with: changes, and images that were added.

    An argument that came later is neither, nor are class images that the run itself has drawn.
    """
    changes: list[str] = []
    added: list[str] = []
    for argument, before in then.items():
        after = now.get(argument, {})
        for name in sorted({**before, **after}):
            old, new = before.get(name), after.get(name)
            if old is None:
                if argument == "class_data" and CLASS_IMAGE.fullmatch(name):
                    continue
                # What a command makes something of, one by one, is called so; a mask more changes all others.
                (added if argument == "images" else changes).append(f"{argument}: {name} added")
            elif new is None:
                changes.append(f"{argument}: {name} removed")
            elif old["sha256"] != new["sha256"]:
                changes.append(f"{argument}: {name} replaced")
            elif old.get("caption") != new.get("caption"):
                changes.append(f"{argument}: {name} has another caption")
    return changes, added


def load_inputs(folder: Path) -> dict[str, Files] | None:
    """What the run in `folder` recorded; None for a run from before there was a record."""
    path = folder / INPUTS_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _paths(settings: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, str, Path]]:
    """(argument, field, path) of everything that exists, also in mappings of options."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{inside}{name}.")
        if name not in _IMAGES | _WEIGHTS | _FILES:
            continue
        several = isinstance(value, list | tuple)
        for item in value if several else (value,):
            if isinstance(item, Path) or (isinstance(item, str) and item != "demo"):
                path = next((Path(text) for text in (str(item), str(item).partition("=")[2]) if _is_there(text)), None)
                if path is not None:
                    yield f"{inside}{name} {item}" if several else f"{inside}{name}", name, path


def _is_there(text: str) -> bool:
    return bool(text) and (os.path.exists(text) or names_archives(Path(text)))


def _files(name: str, path: Path, settings: Mapping[str, Any]) -> Iterator[tuple[str, Path, str | None]]:
    """(name, file, caption) of each file below an input."""
    if name in _IMAGES and names_archives(path):
        with contextlib.suppress(ValueError, OSError):
            yield from ((archive.name, archive, None) for archive in find_archives(path))
    elif name in _IMAGES:
        prompt = settings.get("prompt") if name not in _OWN_CAPTIONS else None
        for record in _records(path, prompt, name in _CAPTIONED):
            yield record.name, record.path, record.caption
    elif path.is_file():
        yield path.name, path, None
    elif name in _WEIGHTS:
        # A run's other files say when and where it ran.
        is_run = (path / RUN_CONFIG).exists()
        for file in sorted(path.glob("*.safetensors") if is_run else path.rglob("*")):
            if file.suffix in _OF_WEIGHTS and not file.name.startswith(".") and file.is_file():
                yield file.relative_to(path).as_posix(), file, None


def _records(folder: Path, prompt: str | None, captioned: bool) -> list[ImageRecord]:
    modes: list[Literal["optional", "ignore"]] = ["optional", "ignore"] if captioned else ["ignore"]
    for captions in modes:
        # Captions that can't be read are no reason not to look at the images.
        with contextlib.suppress(ValueError, OSError):
            return list_images(folder, prompt=prompt, captions=captions)
    return []


def _described(file: Path, caption: str | None, earlier: dict[str, Any] | None) -> dict[str, Any]:
    try:
        status = file.stat()
        # Whoever changes a file can set its time of modification back, but not that of the change.
        stat = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
        same = earlier is not None and earlier["stat"] == stat
        found = {"sha256": earlier["sha256"] if same and earlier else _digest(file, *stat), "stat": stat}
    except OSError:
        # An image that skip_bad passes over.
        found = {"sha256": "unreadable", "stat": None}
    return (
        found
        if caption is None
        else {**found, "caption": hashlib.sha256(caption.encode("utf-8", "surrogatepass")).hexdigest()}
    )


@lru_cache(maxsize=100_000)
def _digest(file: Path, *stat: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
