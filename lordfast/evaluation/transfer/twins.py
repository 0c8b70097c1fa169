"""Originals and their attacked twins, image by image, and the random signs that each attack has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lordfast.data import load_image, output_names
from lordfast.data.images import load_fitted
from lordfast.evaluation.inputs import open_folder
from lordfast.evaluation.pairs import match_keys
from lordfast.evaluation.transfer.config import SIGNS
from lordfast.pixels import Uint8Image, check_image
from lordfast.training.progress import progress
from lordfast.training.seeds import derive_seed

SUSPICIOUS = 64
"""Grey levels above which a change is hardly an attack, rather another picture or another crop."""


@dataclass(frozen=True)
class Row:
    """A row of the matrix.

    Attributes:
        name: also of its folder of outputs.
        like: for random signs, the attacks whose size they have; empty for an attack.
        largest: the largest change of each image, in grey levels.
    """

    name: str
    largest: list[int]
    like: list[str] = field(default_factory=list)


@dataclass
class Twins:
    """Images that every folder has.

    Attributes:
        names: of the PNGs that become of them, which differ.
        captions: of the originals.
        rows: the attacks in the order given, then the random signs.
        warnings: what was left out, and what looks wrong.
        skipped: paths that could not be read.
    """

    names: list[str]
    captions: list[str | None]
    rows: list[Row]
    seed: int
    originals: list[Path]
    attacked: dict[str, list[Path]]
    warnings: list[str]
    skipped: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def original(self, index: int) -> Uint8Image:
        """The original as an attack cuts its input: centre-cropped to its twins' size, then put on white."""
        like = load_image(next(iter(self.attacked.values()))[index])
        return load_fitted(self.originals[index], like.shape[:2])

    def version(self, row: Row, index: int) -> Uint8Image:
        """What `row` makes of image `index`: uint8 (H, W, 3)."""
        if not row.like:
            return load_image(self.attacked[row.name][index])
        rng = np.random.default_rng(derive_seed(self.seed, "signs", self.names[index]))
        return random_signs(self.original(index), row.largest[index], rng)

    def description(self, row: Row) -> dict[str, Any]:
        """The row as matrix.json has it."""
        kind = {"kind": "random signs", "like": row.like} if row.like else {"kind": "attack"}
        return {"name": row.name, **kind, "largest_change": max(row.largest)}


def random_signs(image: Uint8Image, levels: int, rng: np.random.Generator) -> Uint8Image:
    """Add or subtract `levels` grey levels from every value, each with probability 1/2, and clip to [0, 255].

    The largest change is exactly `levels` wherever any value can change by so much.

    Args:
        image: uint8 (H, W, 3).
        levels: 0 to 255.

    Raises:
        TypeError, ValueError: no uint8 image, or levels out of range.
    """
    check_image(image)
    if not 0 <= levels <= 255:
        raise ValueError(f"levels: expected 0 to 255, got {levels}")
    change = rng.choice(np.array([-levels, levels]), image.shape)
    made = (image + change).clip(0, 255)
    if np.abs(made - image).max() < levels:
        # Every value was clipped, as in a black or white picture by unlucky signs: the opposite ones are not.
        made = (image - change).clip(0, 255)
    return made.astype(np.uint8)


def open_twins(
    originals: Path,
    attacked: Mapping[str, Path],
    *,
    prompt: str | None,
    baseline: bool,
    skip_bad: bool,
    seed: int,
) -> Twins:
    """Match and decode everything once.

    Raises:
        FileNotFoundError, NotADirectoryError: a folder is missing or a file.
        ValueError: a folder without images, an unreadable image (without `skip_bad`), no image that all folders have,
            or twins of one image that differ in size.
    """
    ours = open_folder(originals, "originals", skip_bad=skip_bad, prompt=prompt)
    theirs = {name: open_folder(folder, f"attacked: {name}", skip_bad=skip_bad) for name, folder in attacked.items()}
    twin_of = {
        name: dict(zip(match_keys(folder.records), folder.records, strict=True)) for name, folder in theirs.items()
    }
    # Named before any is left out, so that a name does not depend on what the attacked folders hold.
    named = zip(match_keys(ours.records), output_names(ours.records), ours.records, strict=True)
    shared = [(key, output, record) for key, output, record in named if all(key in twins for twins in twin_of.values())]
    if not shared:
        examples = f"{ours.records[0].name} there and {next(iter(theirs.values())).records[0].name} here"
        raise ValueError(
            f"attacked: no image of {originals} has a twin of its name (extensions aside) in "
            f"{', '.join(map(str, attacked.values()))}, for instance {examples}"
        )
    twins = Twins(
        names=[output for _, output, _ in shared],
        captions=[record.caption for _, _, record in shared],
        rows=[],
        seed=seed,
        originals=[record.path for _, _, record in shared],
        attacked={name: [found[key].path for key, _, _ in shared] for name, found in twin_of.items()},
        warnings=_left_out(len(ours), len(shared), {name: len(folder) for name, folder in theirs.items()}),
        skipped=[path for folder in (ours, *theirs.values()) for path in folder.skipped],
    )
    largest = _compare(twins)
    twins.rows += [Row(name, levels) for name, levels in largest.items()]
    if baseline:
        twins.rows += _baselines(largest)
    twins.warnings += _doubts(largest)
    return twins


def _left_out(originals: int, shared: int, attacked: Mapping[str, int]) -> list[str]:
    if originals == shared and all(count == shared for count in attacked.values()):
        return []
    folders = ", ".join(f"{count} in {name}" for name, count in attacked.items())
    return [f"only the {shared} images that all folders have are compared: {originals} are original, {folders}"]


def _compare(twins: Twins) -> dict[str, list[int]]:
    """The largest change of each image by each attack."""
    found: dict[str, list[int]] = {name: [] for name in twins.attacked}
    with progress("comparing originals and attacked images", len(twins)) as advance:
        for index in range(len(twins)):
            images = {name: load_image(paths[index]) for name, paths in twins.attacked.items()}
            sizes = {name: image.shape[:2] for name, image in images.items()}
            if len(set(sizes.values())) > 1:
                shown = ", ".join(f"{height} x {width} in {name}" for name, (height, width) in sizes.items())
                raise ValueError(f"attacked: expected twins of one size, got {twins.names[index]} as {shown}")
            original = twins.original(index)
            for name, image in images.items():
                found[name].append(int(np.abs(image.astype(int) - original).max()))
            advance()
    return found


def _baselines(largest: Mapping[str, Sequence[int]]) -> list[Row]:
    """Random signs for every size of attack; attacks of the same size in every image share them."""
    sizes: dict[tuple[int, ...], list[str]] = {}
    for name, levels in largest.items():
        sizes.setdefault(tuple(levels), []).append(name)
    alone = len(sizes) == 1
    return [Row(SIGNS if alone else f"{SIGNS}-as-{names[0]}", list(levels), names) for levels, names in sizes.items()]


def _doubts(largest: Mapping[str, Sequence[int]]) -> list[str]:
    found = []
    for name, levels in largest.items():
        if max(levels) > SUSPICIOUS:
            found.append(
                f"{name} changes an image by {max(levels)} grey levels: are its images versions of the originals, and "
                "cut in the same way?"
            )
        if not all(levels):
            found.append(f"{name} leaves {sum(not level for level in levels)} of {len(levels)} images as they were")
    return found
