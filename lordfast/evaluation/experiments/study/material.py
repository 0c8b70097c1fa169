"""The pictures of a study: those of an identity, those of other people, and mixtures of clean and attacked ones."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from lordfast.data import ImageRecord, list_images, load_image, make_faces, make_landscapes, save_png
from lordfast.data.procedural import write_folder_once
from lordfast.evaluation.experiments.study.design import Dataset
from lordfast.evaluation.experiments.subjects import Replicate, draw_pictures, split_pictures


def prepare(
    folder: Path,
    dataset: Dataset,
    replicate: Replicate,
    records: list[ImageRecord] | None,
    *,
    side: int,
    images: int,
    reference: int,
) -> None:
    """Write ``train`` and ``reference`` of a replicate: drawn, or dealt out of `records`."""
    if records is None:
        draw_pictures(replicate, folder, landscape=dataset.landscape, images=images, reference=reference)
    else:
        split_pictures(replicate, records, folder, images=images, reference=reference, side=side)


def draw_others(folder: Path, dataset: Dataset, count: int, seed: int) -> None:
    """Draw people or places for Stage 1, each another one, and none that a study asks about."""
    draw = make_landscapes if dataset.landscape else make_faces
    write_folder_once(folder, lambda: draw(count, seed))


def mix(clean: Path, attacked: Path, folder: Path, proportion: float, seed: int) -> Path:
    """Fill `folder` with as many pictures as `clean` has, a share of them from `attacked`; returns it."""
    names = [record.name for record in list_images(clean, captions="ignore")]
    chosen = attacked_names(names, proportion, seed)
    for name in names:
        if not (folder / name).exists():
            save_png(load_image((attacked if name in chosen else clean) / name), folder / name)
    return folder


def attacked_names(names: Sequence[str], proportion: float, seed: int) -> set[str]:
    """Which pictures are attacked: a share of exactly `proportion`, and for a smaller one some of the same."""
    shuffled = sorted(names)
    random.Random(seed).shuffle(shuffled)
    return set(shuffled[: round(proportion * len(shuffled))])
