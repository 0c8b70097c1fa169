"""A dataset, from the hub or local, as a folder of PNG images with captions: made once, then reused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lordfast.data.captions import METADATA_NAME
from lordfast.data.hub import Columns, DatasetRequest, DatasetRow, check_request, newest_commit, read_rows
from lordfast.data.images import BadImageError, on_white, save_png
from lordfast.files import default_cache_dir, sweep, write_atomic

RECORD_NAME = "dataset.json"


def materialise(
    request: DatasetRequest,
    folder: str | Path | None = None,
    *,
    overwrite: bool = False,
    on_image: Callable[[int], None] | None = None,
    on_bad: Callable[[BadImageError], None] | None = None,
) -> Path:
    """The folder that holds the images of `request`, as an absolute path; it is there whole or not at all.

    Images keep their size and are called after their place among the chosen rows: 000000.png, or IDENTITY/000000.png.
    Captions are in a metadata.jsonl beside the images, so that an identity's folder can stand alone; dataset.json says
    what the folder was made of, down to the commit. A folder that was made of the same is returned as it is, without a
    network. An interrupted call leaves its images in a hidden folder beside `folder`; the next one reads the same
    commit again and goes on after them. Of several processes that want the same folder one makes it, the others wait.

    Args:
        folder: to make; by default one in the ``datasets`` folder of the cache, named after all that decides what is
            in it. Files of a local source count with their sizes and times, so that a changed one is read again.
        overwrite: replace `folder` if it was made of another request.
        on_image: called with the number of images that are there, after each; what it raises interrupts the work.
        on_bad: called for each image that ``request.skip_bad`` passes over.

    Raises:
        ValueError, OSError: a request or a dataset of which no image can be had; an image that can't be read; `folder`
            is of another request, or of something else.
    """
    check_request(request)
    identity = _identity(request)
    folder = _default_folder(request, identity) if folder is None else Path(folder)
    # What a link leads to is made, not put in the link's place; and "." has a name of its own then.
    folder = folder.resolve()
    _check_place(folder, request)
    if _is_made(folder, identity, overwrite):
        return folder
    if os.path.ismount(folder):
        raise ValueError(f"out: {folder} is a mount point, which nothing can replace; expected a folder inside it")
    from filelock import FileLock

    folder.parent.mkdir(parents=True, exist_ok=True)
    guard = folder.with_name(f".{folder.name}.lock")
    with FileLock(guard):
        try:
            # Whoever held the guard may have made it.
            if not _is_made(folder, identity, overwrite):
                partial = folder.with_name(f".{folder.name}.part")
                _make(partial, request, identity, on_image or (lambda done: None), on_bad or (lambda error: None))
                if folder.exists():
                    shutil.rmtree(folder)
                partial.rename(folder)
        finally:
            # While it is held: those who wait look for it by name each time.
            guard.unlink(missing_ok=True)
    return folder


def _identity(request: DatasetRequest) -> dict[str, Any]:
    """What decides which images come out, as JSON values."""
    settings = dataclasses.asdict(request)
    fields = {field.name: settings[field.name] for field in dataclasses.fields(DatasetRequest)}
    fields.pop("skip_bad")
    if request.choose == "first":
        fields.pop("seed")
        fields.pop("buffer")
    source = Path(request.source).expanduser()
    if source.exists():
        fields |= {"source": str(source.resolve()), "files": _digest(_files(source))}
    return fields


def _files(source: Path) -> list[tuple[str, int, int]]:
    paths = [source] if source.is_file() else [Path(base, name) for base, _, names in os.walk(source) for name in names]
    stats = [(str(path.relative_to(source)), path.stat()) for path in sorted(paths)]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()


def _default_folder(request: DatasetRequest, identity: dict[str, Any]) -> Path:
    name = re.sub(r"[^\w.-]+", "-", request.source).strip("-.")[-60:]
    return default_cache_dir() / "datasets" / f"{name}-{_digest(identity)[:16]}"


def _check_place(folder: Path, request: DatasetRequest) -> None:
    source = Path(request.source).expanduser()
    if not source.exists():
        return
    source = source.resolve()
    if folder.is_relative_to(source) or source.is_relative_to(folder):
        raise ValueError(f"out: {folder} and the dataset {source} lie in each other; expected a folder elsewhere")


def _is_made(folder: Path, identity: dict[str, Any], overwrite: bool) -> bool:
    """Whether `folder` is there and made of the same; False where it may be made."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    record = _read_record(folder / RECORD_NAME)
    if record is None:
        raise ValueError(f"out: {folder} is there and was not made of a dataset; expected a new or an empty folder")
    before = record["request"]
    changed = [name for name in {**before, **identity} if before.get(name) != identity.get(name)]
    if changed and not overwrite:
        lines = "; ".join(f"{name}: {before.get(name)!r} -> {identity.get(name)!r}" for name in changed)
        raise ValueError(f"out: {folder} was made of another dataset ({lines}); --overwrite replaces it")
    return not changed


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("request"), dict) else None


def _make(
    partial: Path,
    request: DatasetRequest,
    identity: dict[str, Any],
    on_image: Callable[[int], None],
    on_bad: Callable[[BadImageError], None],
) -> None:
    record = _read_record(partial / RECORD_NAME)
    # What is there of a dataset on the hub, read when no commit was known, may be of another one than comes now.
    unknown = record is not None and record.get("commit") is None and "files" not in identity
    if record is None or record["request"] != identity or unknown:
        shutil.rmtree(partial, ignore_errors=True)
        record = {"request": identity, "commit": newest_commit(request)}
    columns, rows = read_rows(request, record["commit"])
    partial.mkdir(exist_ok=True)
    sweep(partial)
    # Before the first image: one that is there already is of this request and this commit.
    write_atomic(partial / RECORD_NAME, _json(record))
    lines: dict[str, list[dict[str, str]]] = {}
    identities: Counter[str] = Counter()
    skipped: list[str] = []
    done = 0
    for row in rows:
        if row.identity is not None and request.per_identity == identities[row.identity]:
            continue
        inside = "." if row.identity is None else identity_folder(row.identity)
        name = f"{row.number:06d}.png"
        try:
            _save(row, partial / inside / name, columns)
        except BadImageError as error:
            if not request.skip_bad:
                raise
            skipped.append(str(error))
            on_bad(error)
            continue
        done += 1
        lines.setdefault(inside, []).append(_line(row, name))
        identities.update([row.identity] if row.identity is not None else [])
        on_image(done)
        if done == request.n:
            break
    if not done:
        reason = f"none of its images can be read; the first: {skipped[0]}" if skipped else "it has no rows"
        raise ValueError(f"source: {request.source}, split {request.split}: {reason}")
    for inside, of_folder in lines.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in of_folder)
        write_atomic(partial / inside / METADATA_NAME, text)
    found = {"images": done, "identities": dict(identities), "skipped": skipped}
    used = {"columns": dataclasses.asdict(columns), "versions": {"datasets": version("datasets")}}
    write_atomic(partial / RECORD_NAME, _json({**record, **used, **found}))


def _save(row: DatasetRow, path: Path, columns: Columns) -> None:
    if columns.identity is not None and row.identity is None:
        raise BadImageError(row.where, f"column {columns.identity!r} does not say who it is")
    if not path.exists():
        save_png(on_white(*row.layers()), path)


def _line(row: DatasetRow, name: str) -> dict[str, str]:
    line = {"file_name": name}
    if row.caption is not None:
        line["text"] = row.caption
    if row.identity is not None:
        line["identity"] = row.identity
    return line


def identity_folder(identity: str) -> str:
    """A folder name for an identity: itself, if that is one; else what is left of it, and a digest that tells it apart.

    No two identities share a folder, on file systems that tell upper from lower case.
    """
    # A leading full stop would hide the folder, and a leading underscore marks names that were changed.
    if re.fullmatch(r"[^\W_][\w .-]{0,99}", identity) and not identity.endswith((" ", ".")):
        return identity
    kept = re.sub(r"[^\w.-]+", "_", identity).strip("._")[:60]
    return f"_{kept}_{_digest(identity)[:8]}"


def _json(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
