"""A folder of images into folders of pairs, resumable to the same bits: what inpainting and super-resolution share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image

from lordfast.data import ImageRecord, image_grid, load_image, load_layers, output_names, save_png
from lordfast.data.captions import METADATA_NAME
from lordfast.data.images import Layers, fit_layers, on_white, parse_resolution
from lordfast.files import write_atomic
from lordfast.pixels import Uint8Image
from lordfast.training.config import RunConfig, check_choices
from lordfast.training.examples import check_readable, list_folder
from lordfast.training.interrupt import Interrupted, StopOnSignal
from lordfast.training.progress import progress
from lordfast.training.results import images_changed
from lordfast.training.run import RunFolder
from lordfast.training.seeds import derive_seed

PREVIEWED = 8
THUMBNAIL = 160


@dataclass(kw_only=True)
class PairsConfig(RunConfig):
    """What both kinds of pairs are made of. No model runs: --device and --dtype change nothing."""

    images: Path
    """Folder of images, JPEG, PNG and others, of any size and mode."""
    prompt: str | None = None
    """One caption for all images; else name.txt, metadata.jsonl or the like, or none."""
    resolution: int | None = None
    """Side of square pictures; each image's own size when left out."""
    crop: Literal["center", "random"] = "center"
    """Which square of an image, with --resolution."""
    variants: int = 1
    """Pairs that are made of each image, into sub-folders 1, 2, ... where there are several."""
    skip_bad: bool = False
    """Go on without images that can't be read, naming each."""


@dataclass(frozen=True)
class Kind:
    """A kind of pairs.

    Attributes:
        command: as which it was called.
        folders: field of metadata.jsonl -> folder, the pictures that captions go with first, as ``file_name``.
        make: the pictures of one pair, by those fields, and more fields of its row, from an image and a generator that
            is seeded for this pair.
        check: raises a ValueError for an image of which no pair can be made, before anything is written.
    """

    command: str
    folders: Mapping[str, str]
    make: Callable[[Uint8Image, np.random.Generator], tuple[dict[str, Uint8Image | Image.Image], dict[str, Any]]]
    check: Callable[[Uint8Image, np.random.Generator], Any]


@dataclass(frozen=True)
class _Job:
    step: int
    record: ImageRecord
    variant: int
    paths: dict[str, str]


def run_pairs(config: PairsConfig, kind: Kind) -> dict[str, Any]:
    """Write the pairs of every image of ``config.images`` into ``config.out``; returns what summary.json holds.

    The run folder gets the pictures as FOLDER/NAME.png (FOLDER/VARIANT/NAME.png for several variants), captions as
    NAME.txt beside those of the first folder, and metadata.jsonl with a row per pair. What is drawn for a pair depends
    on the seed, the image's name and the variant alone.

    Raises:
        ValueError, OSError: unusable settings, folder or image, or images that changed since an interrupted run began;
            nothing is written then.
        Interrupted: on Ctrl-C, with every finished pair saved.
    """
    _check(config)
    records = list_folder(config.images, "images", prompt=config.prompt, skip_bad=config.skip_bad)
    finished = RunFolder.inspect(config, kind.command, grows=True)
    if finished is not None:
        return finished
    outputs = dict(zip((record.name for record in records), output_names(records), strict=True))

    def check(record: ImageRecord) -> None:
        image = load_layers(record.path)
        for variant in range(1, config.variants + 1):
            try:
                kind.check(_cut(image, record, variant, config), _rng(config, kind.command, record, variant))
            except ValueError as error:
                raise ValueError(f"{error} ({record.path})") from error

    usable = [record for record, _ in check_readable(records, check, skip_bad=config.skip_bad)]
    skipped = [str(record.path) for record in records if record not in usable]
    jobs = list(_jobs(usable, outputs, config.variants, kind))
    run = RunFolder.open(config, kind.command, grows=True)
    started = time.perf_counter()
    rows = _make_all(run, jobs, config, kind)
    lines = [json.dumps({k: v for k, v in row.items() if k != "step"}, ensure_ascii=False) for row in rows]
    write_atomic(run.path / METADATA_NAME, "".join(f"{line}\n" for line in lines))
    save_png(_preview(run.path, rows, kind), run.path / "preview" / "grid.png")
    counted = {"images": len(usable), "skipped": skipped, "pairs": len(rows)}
    return run.finish({**counted, "seconds": round(time.perf_counter() - started, 2)})


def _check(config: PairsConfig) -> None:
    check_choices(config)
    if config.variants < 1:
        raise ValueError(f"variants: expected at least 1, got {config.variants}")
    if config.resolution is not None:
        parse_resolution(config.resolution)
    elif config.crop == "random":
        raise ValueError("crop: random needs a resolution to cut to, got none")


def _jobs(usable: Sequence[ImageRecord], outputs: Mapping[str, str], variants: int, kind: Kind) -> Iterator[_Job]:
    for number, record in enumerate(usable):
        for variant in range(1, variants + 1):
            # A sub-folder and not a suffix: no image of any name can collide with another's variant.
            name = outputs[record.name] if variants == 1 else f"{variant}/{outputs[record.name]}"
            paths = {field: f"{folder}/{name}" for field, folder in kind.folders.items()}
            yield _Job(number * variants + variant, record, variant, paths)


def _rng(config: PairsConfig, purpose: str, record: ImageRecord, variant: int) -> np.random.Generator:
    return np.random.default_rng(derive_seed(config.seed, purpose, record.name, variant))


def _cut(image: Layers, record: ImageRecord, variant: int, config: PairsConfig) -> Uint8Image:
    if config.resolution is not None:
        image = fit_layers(image, config.resolution, crop=config.crop, rng=_rng(config, "crop", record, variant))
    return on_white(*image)


def _make_all(run: RunFolder, jobs: list[_Job], config: PairsConfig, kind: Kind) -> list[dict[str, Any]]:
    """Make the pairs that are not there yet; the rows of all, in order."""
    _check_kept(run, jobs)
    steps = {job.paths["file_name"]: job.step for job in jobs}
    kept = run.keep(
        lambda row: all((run.path / row[field]).exists() for field in kind.folders), lambda row: steps[row["file_name"]]
    )
    rows = {row["step"]: row for row in kept}
    left = [job for job in jobs if job.step not in rows]
    with StopOnSignal() as stop, progress("pairs", len(jobs), start=len(rows)) as advance:
        for job in left:
            image = _cut(load_layers(job.record.path), job.record, job.variant, config)
            pictures, more = kind.make(image, _rng(config, kind.command, job.record, job.variant))
            for field, picture in pictures.items():
                save_png(picture, run.path / job.paths[field])
            if job.record.caption:
                beside = PurePosixPath(job.paths["file_name"]).with_suffix(".txt")
                write_atomic(run.path / beside, job.record.caption)
            row = {"step": job.step, **job.paths, "text": job.record.caption, "source": job.record.name}
            rows[job.step] = {**row, "variant": job.variant, **more}
            # After its files: a pair with a row is a finished one.
            run.log(rows[job.step])
            advance()
            if stop.requested and len(rows) < len(jobs):
                raise Interrupted(f"after {len(rows)} of {len(jobs)} pairs")
    return [rows[job.step] for job in jobs]


def _check_kept(run: RunFolder, jobs: Sequence[_Job]) -> None:
    """Raise ValueError where images that were added beside others change what a pair is called."""
    expected = {job.paths["file_name"]: job for job in jobs}
    for row in run.rows():
        job = expected.get(row["file_name"])
        if job is None or job.record.name != row["source"]:
            raise images_changed(f"{row['file_name']} was made of {row['source']}, which has another name now")


def _preview(run: Path, rows: list[dict[str, Any]], kind: Kind) -> Image.Image:
    shown = []
    for row in rows[:PREVIEWED]:
        pictures = [Image.fromarray(load_image(run / row[field])) for field in kind.folders]
        # All as large as the first: a low-resolution twin shows its pixels.
        same = [picture.resize(pictures[0].size, Image.Resampling.NEAREST) for picture in pictures]
        for picture in same:
            picture.thumbnail((THUMBNAIL, THUMBNAIL))
        shown.append([np.array(picture) for picture in same])
    return image_grid(shown, column_labels=list(kind.folders.values()))
