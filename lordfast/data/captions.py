"""Captions of an image folder: text files beside the images, and metadata files (the imagefolder convention)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lordfast.data.notices import notice_of_all

METADATA_NAME = "metadata.jsonl"
CAPTION_COLUMNS = ("text", "caption", "prompt")
CAPTION_EXTENSIONS = (".txt", ".caption")
# Of two of one folder that name the same image the first here counts.
_METADATA_NAMES = (METADATA_NAME, "metadata.csv", "metadata.parquet")


def read_captions(folder: Path, names: Collection[str], files: Collection[str]) -> dict[str, str | None]:
    """Find the caption of every image; ``None`` where there is none or only white space.

    For ``a.png`` the first of these counts: ``a.txt``, ``a.caption``, ``a.png.txt``, ``a.png.caption``; then, of the
    nearest folder from the image's own upwards that has a caption for it, ``metadata.jsonl``, ``metadata.csv``,
    ``metadata.parquet`` (which needs pyarrow), with an image in ``file_name``, relative to the metadata's own folder,
    and its caption in the first column of ``text``, ``caption`` and ``prompt`` that is not empty. Upper and lower case
    make no difference in these names and columns, unless two files differ by it alone.

    Args:
        folder: the image folder.
        names: the images' POSIX paths relative to ``folder``.
        files: those of all files.

    Raises:
        ValueError: malformed metadata (with its line number), metadata for a missing file, or text that is not UTF-8.
    """
    metadata = [PurePosixPath(file) for file in files if PurePosixPath(file).name.lower() in _METADATA_NAMES]
    # What comes later replaces what came before.
    metadata.sort(key=lambda path: (len(path.parts), -_METADATA_NAMES.index(path.name.lower()), path))
    from_metadata: dict[str, str] = {}
    for path in metadata:
        from_metadata.update(_read_metadata(folder, path, set(names)))
    beside = [file for file in files if PurePosixPath(file).suffix.lower() in CAPTION_EXTENSIONS]
    folded = {file.casefold(): file for file in sorted(beside, reverse=True)}
    exact = set(beside)
    stems = {str(PurePosixPath(name).with_suffix("")) for name in names}
    found: dict[str, str | None] = {}
    for name in names:
        # a.jpg.txt belongs to a.jpg.png, if there is one.
        bases = [str(PurePosixPath(name).with_suffix("")), *([name] if name not in stems else [])]
        candidates = [base + extension for base in bases for extension in CAPTION_EXTENSIONS]
        texts = (
            clean_caption(_read_text(folder / (file if file in exact else folded[file.casefold()])))
            for file in candidates
            if file.casefold() in folded
        )
        found[name] = next((text for text in texts if text), None) or from_metadata.get(name)
    return found


def require_captions(folder: Path, captions: Mapping[str, str | None]) -> None:
    """Raise a ValueError that names the first images without a caption and says how to give one."""
    missing = [name for name, caption in captions.items() if caption is None]
    if not missing:
        return
    sidecar = PurePosixPath(missing[0]).with_suffix(".txt")
    raise ValueError(
        f"{len(missing)} of {len(captions)} images in {folder} have no caption: {shortened(missing)}. "
        f"Give one prompt for all images, or a text file beside each image (e.g. {sidecar}), or a {METADATA_NAME} "
        f'with lines such as {{"file_name": "{missing[0]}", "text": "..."}}'
    )


def shortened(names: Collection[str]) -> str:
    """The first three of some names, for a message."""
    return ", ".join(list(names)[:3]) + (", ..." if len(names) > 3 else "")


def clean_caption(text: str) -> str | None:
    """A caption on one line, None if nothing of it is left."""
    return " ".join(text.splitlines()).strip() or None


def caption_of(row: Mapping[str, Any], where: str) -> str | None:
    """The caption in a row of metadata: the first of `CAPTION_COLUMNS` that is not empty; of several texts, the first.

    Raises:
        ValueError: it is no text.
    """
    columns = {name.lower(): (name, value) for name, value in reversed(list(row.items())) if isinstance(name, str)}
    for column in CAPTION_COLUMNS:
        name, value = columns.get(column, (column, None))
        if isinstance(value, list | tuple):
            value = value[0] if value else None
        if value is None:
            continue
        if not isinstance(value, str):
            raise ValueError(f'{where}: expected "{name}" to be a string, got {type(value).__name__}')
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError(f'{where}: expected "{name}" to be text, got half of a surrogate pair in {value!r}')
        if caption := clean_caption(value):
            return caption
    return None


def _read_text(path: Path) -> str:
    try:
        # utf-8-sig: editors on Windows put a byte-order mark in front, which is no part of the caption. Not
        # read_text: it makes line ends of those within a CSV file's cells.
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def _read_metadata(folder: Path, file: PurePosixPath, names: set[str]) -> dict[str, str]:
    captions: dict[str, str] = {}
    seen: dict[str, int] = {}
    for number, where, row in _rows(folder / file):
        named = next((value for key, value in row.items() if key is not None and key.lower() == "file_name"), None)
        if not isinstance(named, str):
            raise ValueError(f'{where}: expected an object with a string "file_name", got {str(row)[:80]}')
        name = str(file.parent / named)
        if name not in names:
            reason = "which is no image of this folder" if (folder / name).exists() else "which does not exist"
            raise ValueError(f'{where}: names "{named}", {reason}')
        if name in seen:
            raise ValueError(f'{where}: names "{named}" again, first on line {seen[name]}')
        seen[name] = number
        caption = caption_of(row, where)
        if caption is not None:
            captions[name] = caption
    return captions


def _rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The rows of a metadata file: line or row number, where that is, and the row."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        try:
            from pyarrow import ArrowException, parquet
        except ImportError:
            notice_of_all(f"{path} is not read: it needs the package pyarrow; its captions count as missing")
            return
        try:
            rows = parquet.read_table(path).to_pylist()
        except (ArrowException, OSError) as error:
            raise ValueError(f"{path} is no readable parquet file: {error}") from error
        for number, row in enumerate(rows, start=1):
            yield number, f"{path}, row {number}", row
    elif kind == ".csv":
        reader = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
        try:
            for row in reader:
                yield reader.line_num, f"{path}, line {reader.line_num}", row
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: not valid CSV: {error}") from None
    else:
        # Not splitlines(): JSON strings may hold raw U+2028 and the like, which it takes for line ends.
        for number, line in enumerate(_read_text(path).split("\n"), start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not valid JSON: {error}") from None
            if not isinstance(row, dict):
                raise ValueError(f'{where}: expected an object with a string "file_name", got {line.strip()[:80]}')
            yield number, where, row
