"""Images that a run makes of images: written so that what exists is complete, and what goes wrong with all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lordfast.data import ImageRecord, save_png
from lordfast.files import write_atomic
from lordfast.pixels import Uint8Image


def save_result(record: ImageRecord, image: Uint8Image | Image.Image, path: Path) -> None:
    """Write what became of `record` to `path`, a PNG, with the record's caption, if it has one, beside it."""
    # The caption first: once the image is there, it counts as done.
    if record.caption:
        write_atomic(path.with_suffix(".txt"), record.caption)
    save_png(image, path)


def images_changed(what: str) -> ValueError:
    """The error for a run that is resumed over other images than it began with; `what` names the result in question."""
    return ValueError(
        f"resume: {what}: the images changed since the run began; expected the same images, or --overwrite"
    )


def check_outputs(rows: Iterable[dict[str, Any]], outputs: Mapping[str, str]) -> None:
    """Raise ValueError where an image's result is no longer called as in `rows`, for others were added beside it.

    Args:
        rows: of an earlier session, with ``image`` and ``output``.
        outputs: image -> what its result is called now.
    """
    for row in rows:
        if (now := outputs.get(row["image"], row["output"])) != row["output"]:
            raise images_changed(f"{row['image']} became {row['output']}, which would be {now} now, beside others")


@contextmanager
def memory_advice(images: str, device: object, advice: str) -> Iterator[None]:
    """Running out of memory becomes a ValueError that names the batch size and says what helps.

    Args:
        images: how many of which size: ``8 images of 512 x 512``.
        advice: what to try besides a smaller batch.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"batch_size: {images} don't fit into the memory of {device}; try a smaller one, {advice}"
        ) from error
