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
from PIL import Image

from lordfast.data.captions import CAPTION_EXTENSIONS, read_captions, require_captions, shortened
from lordfast.data.images import (
    BadImageError,
    Crop,
    Uint8Image,
    fit_layers,
    load_layers,
    names_image,
    names_readable,
    on_white,
    parse_resolution,
)
from lordfast.data.notices import notice_of_all

# Sub-folders that runs create beside their images. A data set may have some of the same name, so they only count
# beside a run's config.
RUN_CONFIG = "config.yaml"
IGNORED_FOLDERS = frozenset({"checkpoints", "validation", "preview", "tensorboard"})

# Files that are passed over, but may well hold pictures that somebody wants used.
_CONTAINERS = ".pdf .zip .tar .tgz .gz .7z .rar .mp4 .mov .m4v .avi .mkv .webm .mpg .mpeg .3gp .wmv .flv .mts .fli .flc"
CONTAINER_EXTENSIONS = frozenset(_CONTAINERS.split())
# What says so at its beginning is an image under whatever name.
_SNIFFED = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF")


class NoImagesError(ValueError):
    """A folder without images."""


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
    skip_bad: bool = False,
) -> list[ImageRecord]:
    """List the images of a folder and of its sub-folders, sorted by name.

    An image is a file that ends as one, such as ``.png``. Not listed are hidden files and folders, in a run's output
    folder the sub-folders in which it keeps other pictures than its results, and all other files. The log names those
    of them that are images or may hold some: hidden ones, images under other endings, videos, archives.

    An image's caption is ``prompt`` if given, else what `read_captions` finds. The log says how many images have none
    where others have one.

    Args:
        folder: the image folder.
        prompt: one caption for all images.
        captions: "optional" leaves missing ones ``None``; "required" raises if one is missing; "ignore" does not look.
        skip_bad: also list images of formats that are not read, such as HEIC; `load_image` refuses them one by one.

    Raises:
        FileNotFoundError, NotADirectoryError: ``folder`` is missing or is a file.
        NoImagesError: no image in it.
        ValueError: images of formats that are not read, without ``skip_bad``; captions missing though required;
            malformed metadata.
    """
    folder = Path(folder)
    if captions not in ("optional", "required", "ignore"):
        raise ValueError(f'captions: expected "optional", "required" or "ignore", got {captions!r}')
    if not folder.exists():
        raise FileNotFoundError(f"image folder {folder} does not exist")
    if not folder.is_dir():
        raise NotADirectoryError(f"expected a folder of images, got the file {folder}")

    files, passed = scan_folder(folder)
    if passed:
        notice_of_all(f"{folder}: not used, though they may hold images: {shortened(passed)} ({len(passed)} in all)")
    names = [file for file in files if names_image(file)]
    if not names:
        raise NoImagesError(
            f"no images in {folder}: looked for .png, .jpg and the other formats that Pillow reads, also in sub-folders"
        )
    unread = [name for name in names if not names_readable(name)]
    if unread and not skip_bad:
        raise ValueError(
            f"the format of {len(unread)} of {len(names)} images in {folder} can't be read: {shortened(unread)}; "
            "convert them to PNG or JPEG, or move them away (skip_bad goes on without them)"
        )

    found: dict[str, str | None] = dict.fromkeys(names, prompt)
    if prompt is None and captions != "ignore":
        found = read_captions(folder, names, files)
        if captions == "required":
            require_captions(folder, found)
        mute = [name for name, caption in found.items() if caption is None]
        if 0 < len(mute) < len(names):
            notice_of_all(
                f"{len(mute)} of {len(names)} images in {folder} have no caption, so an empty one: {shortened(mute)}"
            )
    return [ImageRecord(folder / name, name, found[name]) for name in names]


def scan_folder(folder: Path) -> tuple[list[str], list[str]]:
    """The visible files, and of all others and of them what may hold images though it isn't named as one.

    Both are sorted POSIX paths relative to `folder`; a sub-folder that is passed over ends in a slash.
    """
    found: list[str] = []
    passed: list[str] = []
    visited: set[str] = set()

    def fail(error: OSError) -> None:
        # Without it a sub-folder that may not be read is passed over.
        raise error

    for base, subfolders, files in os.walk(folder, followlinks=True, onerror=fail):
        relative = Path(base).relative_to(folder)
        # Linked folders are common in data sets; a link to a parent must not send us round for ever.
        real = os.path.realpath(base)
        if real in visited:
            subfolders.clear()
            if not Path(os.path.realpath(Path(base).parent)).is_relative_to(real):
                passed.append(f"{relative.as_posix()}/")
            continue
        visited.add(real)
        ignored = IGNORED_FOLDERS if RUN_CONFIG in files else frozenset()
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name not in ignored)
        for file in files:
            name = (relative / file).as_posix()
            if not file.startswith("."):
                found.append(name)
                if not names_image(file) and _may_hold_images(Path(base, file)):
                    passed.append(name)
            # macOS leaves ._NAME, which is no image, beside the files of foreign disks.
            elif names_image(file) and not file.startswith("._"):
                passed.append(name)
    return sorted(found), sorted(passed)


def _may_hold_images(path: Path) -> bool:
    extension = path.suffix.lower()
    if extension in CONTAINER_EXTENSIONS or extension in CAPTION_EXTENSIONS:
        return extension in CONTAINER_EXTENSIONS
    try:
        with Image.open(path, formats=_SNIFFED):
            return True
    except Exception:
        # Whatever Pillow makes of a file of another kind.
        return False


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
    # An image of a format that is not read becomes no PNG.
    claims = Counter(wish.casefold() for name, wish in wishes.items() if names_readable(name))
    chosen = {name: name for name in names if name == wishes[name]}
    chosen.update(
        {name: wish for name, wish in wishes.items() if claims[wish.casefold()] == 1 and names_readable(name)}
    )
    taken = {name.casefold() for name in chosen.values()}
    for name in sorted(set(names) - set(chosen)):
        candidate, number = f"{name}.png", 1
        while candidate.casefold() in taken:
            candidate, number = f"{name}-{number}.png", number + 1
        chosen[name] = candidate
        taken.add(candidate.casefold())
    return [chosen[name] for name in names]
