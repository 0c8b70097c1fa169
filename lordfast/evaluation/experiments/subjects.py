"""Who or what the pictures of an experiment show: drawn people and places, or the sub-folders of a folder of images."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from lordfast.data import DrawnSubject, ImageRecord, list_images, load_images, output_names, save_png
from lordfast.data.procedural import write_folder_once
from lordfast.training.seeds import derive_seed


@dataclass(frozen=True)
class Replicate:
    """One repetition: pictures of one identity, split, attacked, trained on and drawn from seeds of its own.

    Attributes:
        identity: its number, from 0.
        number: of the repetition with this identity, from 0.
        label: of the identity: a folder's name, or its number.
        seed: the experiment's.
        dataset: that the identity is of, where an experiment has several.
    """

    identity: int
    number: int
    label: str
    seed: int
    dataset: str | None = None

    @property
    def name(self) -> str:
        start = "" if self.dataset is None else f"{self.dataset}/"
        return f"{start}identity-{self.identity}/seed-{self.number}"

    @property
    def seeds(self) -> tuple[object, ...]:
        """What every seed of this replicate is derived from."""
        dataset = () if self.dataset is None else (self.dataset,)
        return (self.seed, *dataset, self.identity, self.number)

    def derive(self, *parts: object) -> int:
        """A seed for something of this replicate."""
        return derive_seed(*self.seeds, *parts)


def replicates(identities: int, seeds: int, labels: list[str], seed: int) -> list[Replicate]:
    """All of them. Every identity once, then every identity with its second seed: half of them are a fair half."""
    return [Replicate(i, s, labels[i], seed) for s in range(seeds) for i in range(identities)]


def draw_pictures(replicate: Replicate, folder: Path, *, landscape: bool, images: int, reference: int) -> str:
    """Draw ``train`` and ``reference`` into `folder`; returns the prompt of the subject.

    The reference pictures of an identity are the same in all its replicates, the training pictures are not.
    """
    subject = DrawnSubject.of(derive_seed(replicate.seed, "identity", replicate.identity), landscape=landscape)
    seed = derive_seed(replicate.seed, "reference", replicate.identity)
    write_folder_once(folder / "train", lambda: subject.draw(images, replicate.derive("train")))
    write_folder_once(folder / "reference", lambda: subject.draw(reference, seed))
    return subject.prompt


def list_subjects(data: Path, identities: int, images: int, first: int = 0) -> dict[str, list[ImageRecord]]:
    """`identities` sub-folders of `data`, by name and from the `first` on, with their images.

    Raises:
        FileNotFoundError, NotADirectoryError: `data` is missing or a file.
        ValueError: fewer sub-folders, or one with fewer than `images` + 2 images: two are the least to measure against.
    """
    if not data.exists():
        raise FileNotFoundError(f"data: folder {data} does not exist")
    if not data.is_dir():
        raise NotADirectoryError(f"data: expected a folder with a sub-folder per identity, got the file {data}")
    folders = sorted(path for path in data.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(folders) < first + identities:
        expected = f"expected at most {len(folders)}, the sub-folders of {data}"
        raise ValueError(f"identities: {expected}, got {identities}{f' from number {first} on' if first else ''}")
    found = {}
    for folder in folders[first : first + identities]:
        try:
            found[folder.name] = list_images(folder, captions="ignore")
        except ValueError as error:
            raise ValueError(f"data: {error}") from error
        if len(found[folder.name]) < images + 2:
            raise ValueError(
                f"data: expected {images} images to train on and at least 2 to measure against in {folder}, got "
                f"{len(found[folder.name])}"
            )
    return found


def split_pictures(
    replicate: Replicate, records: list[ImageRecord], folder: Path, *, images: int, reference: int, side: int
) -> None:
    """Write `images` of the records as ``train`` and up to `reference` of the others as ``reference``.

    Which, depends on the replicate's seed and on the set of names alone. All are brought to `side` pixels here, so that
    every condition sees the same ones.
    """
    shuffled = sorted(records, key=lambda record: record.name)
    random.Random(replicate.derive("split")).shuffle(shuffled)
    names = dict(zip((record.name for record in records), output_names(records), strict=True))
    for part, chosen in (("train", shuffled[:images]), ("reference", shuffled[images : images + reference])):
        for record, image in load_images(chosen, side):
            save_png(image, folder / part / names[record.name])
