"""What an evaluation reads: folders of images, checked before anything is written, and the images in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lordfast.data import ImageRecord, load_image
from lordfast.training.examples import check_readable, list_folder


@dataclass
class ImageFolder:
    """A folder whose images can all be decoded.

    Attributes:
        records: the images, sorted by name.
        skipped: paths of those that can't be read, where that is allowed.
    """

    records: list[ImageRecord]
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.records)

    def first_side(self) -> int:
        """The shorter side of the first image, in pixels."""
        return min(load_image(self.records[0].path).shape[:2])


def open_folder(folder: Path, argument: str, *, skip_bad: bool, prompt: str | None = None) -> ImageFolder:
    """List `folder` and decode every image once, so that a bad one is found before hours of work and not after.

    Raises:
        FileNotFoundError, NotADirectoryError: `folder` is missing or a file.
        ValueError: no images in it; an image that can't be read, without `skip_bad`, or none that can.
    """
    records = list_folder(folder, argument, prompt=prompt, skip_bad=skip_bad)
    usable = check_readable(records, _decode, skip_bad=skip_bad, argument=argument)
    found = {record.name for record, _ in usable}
    return ImageFolder(
        [record for record, _ in usable], [str(record.path) for record in records if record.name not in found]
    )


def _decode(record: ImageRecord) -> None:
    load_image(record.path)
