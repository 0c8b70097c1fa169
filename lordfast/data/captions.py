"""Captions of an image folder: ``name.txt`` beside the image, or a ``metadata.jsonl`` (the imagefolder convention)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

METADATA_NAME = "metadata.jsonl"


def read_captions(folder: Path, names: Collection[str], metadata_folders: Collection[str]) -> dict[str, str | None]:
    """Find the caption of every image; ``None`` where there is none or only white space.

    Args:
        folder: the image folder.
        names: the images' POSIX paths relative to ``folder``.
        metadata_folders: relative POSIX paths ("." for ``folder`` itself) of the folders that hold a metadata.jsonl.
            Its ``file_name`` is relative to its own folder. Where two name the same image, the nearer one counts.

    Returns:
        name -> caption. A ``name.txt`` beside the image goes before metadata.jsonl.

    Raises:
        ValueError: malformed metadata (with its line number), metadata for a missing file, or text that is not UTF-8.
    """
    from_metadata: dict[str, str] = {}
    for base in sorted(metadata_folders, key=lambda base: len(PurePosixPath(base).parts)):
        from_metadata.update(_read_metadata(folder, base, set(names)))
    return {name: _read_sidecar(folder / name) or from_metadata.get(name) for name in names}


def require_captions(folder: Path, captions: Mapping[str, str | None]) -> None:
    """Raise a ValueError that names the first images without a caption and says how to give one."""
    missing = [name for name, caption in captions.items() if caption is None]
    if not missing:
        return
    shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    sidecar = PurePosixPath(missing[0]).with_suffix(".txt")
    raise ValueError(
        f"{len(missing)} of {len(captions)} images in {folder} have no caption: {shown}. "
        f"Give one prompt for all images, or a text file beside each image (e.g. {sidecar}), or a {METADATA_NAME} "
        f'with lines such as {{"file_name": "{missing[0]}", "text": "..."}}'
    )


def _read_text(path: Path) -> str:
    try:
        # utf-8-sig: editors on Windows put a byte-order mark in front, which is no part of the caption.
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def _read_sidecar(image_path: Path) -> str | None:
    path = image_path.with_suffix(".txt")
    if not path.is_file():
        return None
    return clean_caption(_read_text(path))


def clean_caption(text: str) -> str | None:
    """A caption on one line, None if nothing of it is left."""
    return " ".join(text.splitlines()).strip() or None


def _read_metadata(folder: Path, base: str, names: set[str]) -> dict[str, str]:
    path = folder / base / METADATA_NAME
    captions: dict[str, str] = {}
    seen: dict[str, int] = {}
    # Not splitlines(): JSON strings may hold raw U+2028 and the like, which it takes for line ends.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where}: not valid JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
            raise ValueError(f'{where}: expected an object with a string "file_name", got {line.strip()[:80]}')
        name = str(PurePosixPath(base) / row["file_name"])
        if name not in names:
            reason = "which is no image of this folder" if (folder / name).exists() else "which does not exist"
            raise ValueError(f'{where}: names "{row["file_name"]}", {reason}')
        if name in seen:
            raise ValueError(f'{where}: names "{row["file_name"]}" again, first on line {seen[name]}')
        seen[name] = number
        text = row.get("text")
        if text is None:
            continue
        if not isinstance(text, str):
            raise ValueError(f'{where}: expected "text" to be a string, got {type(text).__name__}')
        caption = clean_caption(text)
        if caption is not None:
            captions[name] = caption
    return captions
