"""Images that a run makes of images: written so that what exists is complete."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from lordfast.data import ImageRecord, save_png
from lordfast.files import write_atomic
from lordfast.pixels import Uint8Image


def save_result(record: ImageRecord, image: Uint8Image | Image.Image, path: Path) -> None:
    """Write what became of `record` to `path`, a PNG, with the record's caption, if it has one, beside it."""
    # The caption first: once the image is there, it counts as done.
    if record.caption:
        write_atomic(path.with_suffix(".txt"), record.caption.encode())
    save_png(image, path)
