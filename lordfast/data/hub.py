"""Rows of a Hugging Face dataset, streamed: image, caption and identity, whatever the columns are called."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from lordfast.data.captions import CAPTION_COLUMNS, CAPTION_EXTENSIONS, clean_caption, shortened
from lordfast.data.folder import scan_folder
from lordfast.data.images import BadImageError, Layers, load_layers, names_image, names_readable
from lordfast.data.notices import notice_of_all

_HUB_ID = re.compile(r"([\w-][\w.-]*/)?[\w-][\w.-]*")


@dataclass(kw_only=True)
class DatasetRequest:
    """Which images of which dataset."""

    source: str
    """Hub id such as Ryan-sjtu/celebahq-caption, a folder of images or of parquet files, or a .parquet file."""
    split: str = "train"
    """Split of the dataset."""
    subset: str | None = None
    """Configuration of the dataset, where it has several."""
    revision: str | None = None
    """Commit, tag or branch of a dataset on the hub; the newest commit when left out."""
    n: int | None = None
    """At most so many images; all when left out. No more of the dataset is read than that takes."""
    per_identity: int | None = None
    """At most so many images of one identity."""
    choose: Literal["first", "random"] = "first"
    """The first images, or random ones: the dataset's files in random order, and of their images any in --buffer."""
    buffer: int = 1000
    """With random: how many images, from the first on, each next one is drawn from. More are read, and more random."""
    seed: int = 0
    """Of the random choice."""
    image_column: str | None = None
    """Column of images; the first one when left out."""
    caption_column: str | None = None
    """Column of captions; text, caption or prompt, whichever there is first, when left out."""
    identity_column: str | None = None
    """Column that says who it is: a sub-folder for each; all in one folder when left out."""
    skip_bad: bool = False
    """Go on without images that can't be read."""


@dataclass(frozen=True)
class Columns:
    """Of a dataset: where the image, the caption and the identity are; the latter two may be missing."""

    image: str
    caption: str | None = None
    identity: str | None = None


@dataclass(frozen=True)
class DatasetRow:
    """One row of a dataset, its image still encoded.

    Attributes:
        number: its place among the chosen rows, from 0.
        where: for errors.
        image: the content of the image file, or its address; None where the row has no image.
        caption: None where there is none.
        identity: None where there is none, or where none was asked for.
    """

    number: int
    where: str
    image: bytes | str | None
    caption: str | None
    identity: str | None

    def layers(self) -> Layers:
        """The decoded image, as `load_layers` has it.

        Raises:
            BadImageError: there is none, or it can't be read.
        """
        if self.image is None:
            raise BadImageError(self.where, "the row has no image")
        return load_layers(self.where, _read(self.image, self.where))


def _read(image: bytes | str, where: str) -> bytes:
    if isinstance(image, bytes):
        return image
    import fsspec

    try:
        # Addresses may be files on the hub or members of archives there; a local name may look like one.
        if Path(image).is_file():
            return Path(image).read_bytes()
        with fsspec.open(image, "rb") as stream:
            return stream.read()
    except (ValueError, OSError) as error:
        raise BadImageError(where, f"{type(error).__name__}: {error}") from error


def check_request(request: DatasetRequest) -> None:
    """Raise a ValueError or TypeError for settings that no dataset can fulfil; nothing is read."""
    if not _is_local(request.source) and not _HUB_ID.fullmatch(request.source):
        raise ValueError(
            f"source: {request.source!r} does not exist; expected a hub id such as owner/name, a folder or a .parquet "
            "file"
        )
    if request.choose not in ("first", "random"):
        raise ValueError(f"choose: expected first or random, got {request.choose!r}")
    for name in ("n", "per_identity", "buffer"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise ValueError(f"{name.replace('_', '-')}: expected at least 1, got {value}")
    if not 0 <= request.seed < 2**63:
        raise ValueError(f"seed: expected a whole number from 0 to 2^63 - 1, got {request.seed}")
    if request.per_identity is not None and request.identity_column is None:
        raise ValueError("per-identity: needs an identity-column, got none")


def _is_local(source: str) -> bool:
    return Path(source).expanduser().exists()


def newest_commit(request: DatasetRequest) -> str | None:
    """The commit on the hub that `request` means now; None for local files, or where the hub does not answer."""
    if _is_local(request.source):
        return None
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(request.source, revision=request.revision).sha
    except Exception:
        # Whatever it is: reading the rows runs into it too, and says it better.
        return None


def read_rows(request: DatasetRequest, commit: str | None = None) -> tuple[Columns, Iterator[DatasetRow]]:
    """The columns that are used, and the chosen rows one after the other, more than `n` if the caller goes on.

    Equal requests give equal rows as long as the dataset is the same.

    Args:
        commit: read this one, whatever ``request.revision`` means by now.

    Raises:
        ValueError: ``datasets`` is not installed; no such split, subset or column; no column of images; damaged files.
        OSError: no such dataset, or the hub does not answer.
    """
    datasets = _library()
    dataset = _guarded(request.source, lambda: _load(datasets, request, commit))
    features = dict(dataset.features or {})
    columns = find_columns(request, features, datasets.Image)
    wanted = [name for name in (columns.image, columns.caption, columns.identity) if name is not None]
    # Encoded images: it is load_layers that knows what to do with alpha, EXIF and 16 bits, and a buffer holds more.
    dataset = dataset.select_columns(wanted).cast_column(columns.image, datasets.Image(decode=False))
    stream = _shuffled(dataset, request) if request.choose == "random" else dataset
    label = features[columns.identity] if columns.identity is not None else None

    def rows() -> Iterator[DatasetRow]:
        found = _guarded(request.source, lambda: iter(stream))
        number = 0
        while (row := _guarded(request.source, lambda: next(found, None))) is not None:
            yield _row(request, row, number, columns, label)
            number += 1

    return columns, rows()


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"reading a dataset needs the package datasets ({error}): pip install 'lordfast[datasets]'"
        ) from error
    return datasets


def _load(datasets: Any, request: DatasetRequest, commit: str | None) -> Any:
    path = Path(request.source).expanduser()
    options: dict[str, Any] = {"split": request.split, "streaming": True}
    if path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(f"source: {path} is a file; expected a hub id, a folder or a .parquet file")
        return datasets.load_dataset("parquet", data_files={request.split: str(path)}, **options)
    if path.is_dir():
        _check_folder(path, request.skip_bad)
        return datasets.load_dataset(str(path), name=request.subset, **options)
    return datasets.load_dataset(request.source, name=request.subset, revision=commit or request.revision, **options)


def _check_folder(folder: Path, skip_bad: bool) -> None:
    """Raise a ValueError for images in `folder` that the package datasets passes over, or log them with `skip_bad`."""
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

    files, _ = scan_folder(folder)
    images = [name for name in files if names_image(name)]
    beside = {str(PurePosixPath(name).with_suffix(extension)) for name in images for extension in CAPTION_EXTENSIONS}
    if captions := sorted(beside & set(files)):
        notice_of_all(f"{folder}: captions are read from metadata files alone, not from {shortened(captions)}")
    left = [
        name
        for name in images
        if not names_readable(name) or PurePosixPath(name).suffix.lower() not in ImageFolder.EXTENSIONS
    ]
    if left:
        what = f"the package datasets does not read {len(left)} of {len(images)} images: {shortened(left)}"
        if not skip_bad:
            raise ValueError(f"{what}; convert them to PNG or JPEG, or move them away (skip_bad goes on without them)")
        notice_of_all(f"{folder}: {what}")


def _guarded(source: str, work: Callable[[], Any]) -> Any:
    """The result of `work`; whatever a network, an archive or a parquet file raises becomes a ValueError or OSError."""
    try:
        return work()
    except Exception as error:
        kind = OSError if isinstance(error, OSError) or not isinstance(error, ValueError) else ValueError
        raise kind(f"source: {source}: {error or type(error).__name__}") from error


def _shuffled(dataset: Any, request: DatasetRequest) -> Iterator[Any]:
    """The rows in random order, as far as a buffer makes it so.

    Not with the dataset's own ``shuffle``, whose order changes with the version of the library.
    """
    rng = np.random.default_rng(request.seed)
    shards = rng.permutation(dataset.n_shards)
    held: list[Any] = []
    for row in chain.from_iterable(dataset.shard(num_shards=len(shards), index=int(shard)) for shard in shards):
        if len(held) < request.buffer:
            held.append(row)
            continue
        place = int(rng.integers(len(held)))
        drawn, held[place] = held[place], row
        yield drawn
    yield from (held[int(place)] for place in rng.permutation(len(held)))


def find_columns(request: DatasetRequest, features: Mapping[str, Any], image_type: type) -> Columns:
    """Which of a dataset's columns are used; `features` are name -> type, and `image_type` is that of images.

    Raises:
        ValueError: there is none of a name that is asked for, or none of images.
    """
    asked = {"image": request.image_column, "caption": request.caption_column, "identity": request.identity_column}
    there = ", ".join(features) or "none that it declares"
    for what, name in asked.items():
        if name is not None and name not in features:
            raise ValueError(f"{what}-column: {request.source} has no column {name!r}; its columns: {there}")
    image = asked["image"] or next((name for name, kind in features.items() if isinstance(kind, image_type)), None)
    if image is None:
        raise ValueError(
            f"image-column: {request.source} has no column of images; its columns: {there}; name the one that holds "
            "image files"
        )
    caption = asked["caption"] or next((name for name in CAPTION_COLUMNS if name in features), None)
    return Columns(image, caption, asked["identity"])


def _row(request: DatasetRequest, row: Mapping[str, Any], number: int, columns: Columns, label: Any) -> DatasetRow:
    image = row[columns.image] or {}
    identity = None if columns.identity is None else row[columns.identity]
    # Classes are stored as numbers, of which a negative one stands for none.
    if hasattr(label, "int2str") and isinstance(identity, int):
        identity = label.int2str(identity) if identity >= 0 else None
    where = f"{number} of {request.source}"
    if image.get("path"):
        where += f" ({image['path']})"
    return DatasetRow(
        number,
        f"row {where}",
        image["bytes"] if image.get("bytes") is not None else image.get("path"),
        _caption(row, columns.caption, where),
        None if identity is None or not str(identity).strip() else str(identity),
    )


def _caption(row: Mapping[str, Any], column: str | None, where: str) -> str | None:
    value = None if column is None else row[column]
    # Several captions of one image: the first is as good as any, and the same every time.
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"caption-column: expected text in {column!r}, row {where} has a {type(value).__name__}")
    return clean_caption(value)
