"""A folder of images with captions: listing it, reading it lazily at a resolution, naming the results."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from lordfast.data.captions import METADATA_NAME, read_captions, require_captions
from lordfast.data.images import BadImageError, Crop, Uint8Image, fit_layers, load_layers, on_white, parse_resolution

IMAGE_EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})

# Sub-folders that runs create beside their images. A data set may have some of the same name, so they only count
# beside a run's config.
RUN_CONFIG = "config.yaml"
IGNORED_FOLDERS = frozenset({"checkpoints", "validation", "preview", "tensorboard"})


@dataclass(frozen=True)
class ImageRecord:
    """One image file: where it is, its POSIX path relative to the listed folder (with extension), and its caption."""

    path: Path
    name: str
    caption: str | None = None


def list_images(
    folder: str | Path,
    *,
    prompt: str | None = None,
    captions: Literal["optional", "required", "ignore"] = "optional",
) -> list[ImageRecord]:
    """List the images of a folder and of its sub-folders, sorted by name.

    Other files and hidden files and folders are ignored; so are, in a run's output folder, the sub-folders in which
    it keeps other pictures than its results. An image's caption is ``prompt`` if given; else the text of ``name.txt``
    beside it; else its "text" in a ``metadata.jsonl`` of its folder or of one above it.

    Args:
        folder: the image folder.
        prompt: one caption for all images.
        captions: "optional" leaves missing ones ``None``; "required" raises if one is missing; "ignore" does not look.

    Raises:
        FileNotFoundError, NotADirectoryError: ``folder`` is missing or is a file.
        ValueError: no image in it, captions missing though required, or malformed metadata.
    """
    folder = Path(folder)
    if captions not in ("optional", "required", "ignore"):
        raise ValueError(f'captions: expected "optional", "required" or "ignore", got {captions!r}')
    if not folder.exists():
        raise FileNotFoundError(f"image folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"expected a folder of images, got the file {folder}")

    names, metadata_folders = _scan(folder)
    if not names:
        extensions = " ".join(sorted(IMAGE_EXTENSIONS))
        raise ValueError(f"no images in {folder}: looked for files that end in {extensions}, also in sub-folders")

    found: dict[str, str | None] = dict.fromkeys(names, prompt)
    if prompt is None and captions != "ignore":
        found = read_captions(folder, names, metadata_folders)
        if captions == "required":
            require_captions(folder, found)
    return [ImageRecord(folder / name, name, found[name]) for name in names]


def _scan(folder: Path) -> tuple[list[str], list[str]]:
    """Return the sorted image names and the sub-folders with metadata, both as relative POSIX paths."""
    names: list[str] = []
    metadata_folders: list[str] = []
    visited: set[str] = set()
    for base, subfolders, files in os.walk(folder, followlinks=True):
        # Linked folders are common in data sets; a link to a parent must not send us round for ever.
        real = os.path.realpath(base)
        if real in visited:
            subfolders.clear()
            continue
        visited.add(real)
        ignored = IGNORED_FOLDERS if RUN_CONFIG in files else frozenset()
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in ignored)
        relative = Path(base).relative_to(folder)
        for file in files:
            if file == METADATA_NAME:
                metadata_folders.append(relative.as_posix())
            elif not file.startswith(".") and Path(file).suffix.lower() in IMAGE_EXTENSIONS:
                names.append((relative / file).as_posix())
    return sorted(names), metadata_folders


def load_images(
    records: Sequence[ImageRecord],
    resolution: int | tuple[int, int],
    *,
    crop: Crop = "center",
    seed: int = 0,
    variants: int = 1,
    skip_bad: bool = False,
    on_bad: Callable[[ImageRecord, BadImageError], None] | None = None,
) -> Iterator[tuple[ImageRecord, Uint8Image]]:
    """Read images lazily, in the records' order, each brought to ``resolution`` by `fit_image`, then put on white.

    Args:
        records: from `list_images`.
        resolution: pixels, an integer or (height, width).
        crop: "center" or "random".
        seed: variant k of an image draws from a generator seeded by (seed, the image's name, k): it does not depend on
            the other images or on their order.
        variants: how often each image is yielded, one after the other; the file is decoded once.
        skip_bad: go on after an unreadable image instead of raising.
        on_bad: called with (record, error) for every image that ``skip_bad`` skips.

    Yields:
        (record, uint8 (height, width, 3)).

    Raises:
        BadImageError: an unreadable image, without ``skip_bad``.
        ValueError: at the end, if ``skip_bad`` skipped every image.
    """
    parse_resolution(resolution)
    if variants < 1:
        raise ValueError(f"variants: expected at least 1, got {variants}")
    if crop not in ("center", "random"):
        raise ValueError(f'crop: expected "center" or "random", got {crop!r}')

    # The generator is a function of its own so that wrong arguments raise here and not at the first image.
    def images() -> Iterator[tuple[ImageRecord, Uint8Image]]:
        first_error: BadImageError | None = None
        usable = 0
        for record in records:
            try:
                layers = load_layers(record.path)
            except BadImageError as error:
                if not skip_bad:
                    raise
                first_error = first_error or error
                if on_bad is not None:
                    on_bad(record, error)
                continue
            usable += 1
            for variant in range(variants):
                rng = _variant_rng(seed, record.name, variant)
                yield record, on_white(*fit_layers(layers, resolution, crop=crop, rng=rng))
        if usable == 0 and first_error is not None:
            raise ValueError(f"none of the {len(records)} images could be read; the first: {first_error}")

    return images()


def _variant_rng(seed: int, name: str, variant: int) -> np.random.Generator:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    words = np.frombuffer(digest[:16], dtype="<u4")
    return np.random.default_rng([seed, variant, *(int(word) for word in words)])


def output_names(records: Iterable[ImageRecord]) -> list[str]:
    """Name the PNG that each image becomes: sub-folder and stem are kept ("sub/a.jpg" -> "sub/a.png").

    Where that would put two images into one file, those that are not ".png" keep their extension as well
    ("a.jpg.png"), with a number if even that is taken. All names differ, also on file systems that ignore case
    (unless two ".png" inputs differ by case only), and depend only on the set of input names.
    """
    names = [record.name for record in records]
    if len(set(names)) != len(names):
        repeated = next(name for name, count in Counter(names).items() if count > 1)
        raise ValueError(f'records: expected every image once, "{repeated}" comes more than once')

    wishes = {name: str(PurePosixPath(name).with_suffix(".png")) for name in names}
    claims = Counter(wish.casefold() for wish in wishes.values())
    chosen = {name: name for name in names if name == wishes[name]}
    chosen.update({name: wish for name, wish in wishes.items() if claims[wish.casefold()] == 1})
    taken = {name.casefold() for name in chosen.values()}
    for name in sorted(set(names) - set(chosen)):
        candidate, number = f"{name}.png", 1
        while candidate.casefold() in taken:
            candidate, number = f"{name}-{number}.png", number + 1
        chosen[name] = candidate
        taken.add(candidate.casefold())
    return [chosen[name] for name in names]
