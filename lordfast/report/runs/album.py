"""Pictures of a run as thumbnails, as many as a page of a bounded size can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lordfast.data import BadImageError, list_images, load_image
from lordfast.data.images import Uint8Image, load_fitted
from lordfast.report.blocks import Gallery, Picture, PictureRow
from lordfast.report.difference import amplified, factor_for
from lordfast.report.page import image_uri

BUDGET = 3_000_000
"""Bytes that the pictures of a page may take."""

SIDE = 256
"""The longer side of a thumbnail: sharp on a phone, where a card shows three beside each other."""


@dataclass
class Album:
    """Makes thumbnails until the page is full.

    Attributes:
        budget: bytes of all pictures together, as the page embeds them.
        used: by those that were made.
        left_out: pictures that did not fit any more.
    """

    budget: int = BUDGET
    used: int = 0
    left_out: int = 0

    def row(self, title: str, pictures: Sequence[Picture], caption: str = "") -> PictureRow | None:
        """`pictures`, which are thumbnails, beside each other; None where not all of them fit."""
        return PictureRow(title, pictures, caption) if self._take(pictures) else None

    def strip(self, title: str, pictures: Sequence[Picture], caption: str = "") -> PictureRow | None:
        """Those of `pictures` that fit; None where none does."""
        fitting = [picture for picture in pictures if self._take([picture])]
        return PictureRow(title, fitting, caption) if fitting else None

    def _take(self, pictures: Sequence[Picture]) -> bool:
        size = sum(len(image_uri(picture.image)) for picture in pictures)
        if self.used + size > self.budget:
            self.left_out += len(pictures)
            return False
        self.used += size
        return True


def thumbnail(image: Uint8Image, side: int = SIDE, average: bool = True) -> Uint8Image:
    """`image`, uint8 (H, W, 3), scaled down where its longer side is more than `side`.

    Args:
        average: take the mean of neighbours; without it, every so manieth pixel, which keeps an amplified change as
            strong as it is.
    """
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = tuple(max(1, round(length * scale)) for length in (image.shape[1], image.shape[0]))
    how = Image.Resampling.LANCZOS if average else Image.Resampling.NEAREST
    return np.array(Image.fromarray(image).resize((size[0], size[1]), how))


def pictures_of(folder: Path, alt: str, most: int, captions: bool = False) -> tuple[list[Picture], int]:
    """Thumbnails of the first images of a folder, and how many images there are; those that are damaged count only.

    Args:
        captions: write the files' names under them.
    """
    try:
        records = list_images(folder, captions="ignore", skip_bad=True)
    except (OSError, ValueError):
        return [], 0
    found = []
    for record in records[:most]:
        try:
            image = thumbnail(load_image(record.path))
        except BadImageError:
            continue
        found.append(Picture(image, f"{alt}, {record.name}", record.name if captions else ""))
    return found, len(records)


@dataclass(frozen=True)
class Change:
    """A picture before and after: where they are, and what the picture is called."""

    before: Path
    after: Path
    name: str


def changes(
    album: Album, pairs: Sequence[Change], words: tuple[str, str], cards: int = 3
) -> tuple[Gallery | None, int, list[str]]:
    """Before, after and the amplified change of each pair, as one gallery.

    Args:
        words: what a picture is before and after, such as "clean" and "attacked".

    Returns:
        The gallery, None where nothing could be shown; the factor of the change; and why pairs are missing.
    """
    loaded, missing = [], []
    for pair in pairs:
        try:
            after = load_image(pair.after)
            # As the command cut its input: the centre, at the result's size.
            loaded.append((pair, load_fitted(pair.before, (after.shape[0], after.shape[1])), after))
        except BadImageError as error:
            missing.append(str(error))
    factor = factor_for([(before, after) for _, before, after in loaded])
    rows = []
    for pair, before, after in loaded:
        change = amplified(before, after, factor)
        row = album.row(
            pair.name,
            [
                Picture(thumbnail(before), f"{words[0]} image {pair.name}", words[0]),
                Picture(thumbnail(after), f"{words[1]} image {pair.name}", words[1]),
                Picture(thumbnail(change, average=False), f"what changed in {pair.name}", f"change × {factor}"),
            ],
            "unchanged" if (ratio := psnr(before, after)) is None else f"PSNR {ratio:.1f} dB",
        )
        rows += [row] if row is not None else []
    return (Gallery(rows, across=3, cards=cards) if rows else None), factor, missing


def psnr(before: Uint8Image, after: Uint8Image) -> float | None:
    """Peak signal-to-noise ratio in dB of two uint8 images; None where they are the same."""
    square = float(np.square(after.astype(float) - before).mean())
    return None if square == 0 else 10 * float(np.log10(255**2 / square))
