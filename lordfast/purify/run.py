"""Purify a folder of images: resumable, names, sizes, captions and transparency kept."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.image import peak_signal_noise_ratio

from lordfast.data import ImageRecord, load_layers, output_names
from lordfast.data.images import Layers, fit_layers, on_white, parse_resolution
from lordfast.pixels import Uint8Image
from lordfast.purify.config import BatchPurifier, PurifyConfig
from lordfast.purify.registry import PURIFIERS
from lordfast.training.config import check_choices
from lordfast.training.examples import check_readable, list_folder
from lordfast.training.interrupt import Interrupted, StopOnSignal
from lordfast.training.progress import progress
from lordfast.training.results import check_outputs, memory_advice, save_result
from lordfast.training.run import RunFolder


@dataclass(frozen=True)
class _Job:
    step: int
    record: ImageRecord
    output: str
    size: tuple[int, int]


def run_purify(name: str, config: PurifyConfig) -> dict[str, Any]:
    """Purify ``config.images`` into ``config.out`` with the purifier `name`; returns what summary.json holds.

    A purifier is given what is seen: an image with transparency is put on white, and the change goes back into its
    colours. Images of one size share a forward. Outputs that exist are kept: a batch runs again only if one of its
    files is missing, in the same composition, so a resumed folder equals an uninterrupted one bit for bit.

    Raises:
        ValueError: an unknown purifier, an option out of range, an unusable folder, image or model; nothing is
            written then. While it runs: a batch does not fit into the device's memory; the images changed since an
            interrupted run began.
        TypeError: a config of another purifier.
        FileNotFoundError, NotADirectoryError: ``config.images`` is missing or is a file.
        Interrupted: on Ctrl-C, with every finished image saved.
    """
    if name not in PURIFIERS:
        raise ValueError(f"purifier: expected one of {', '.join(PURIFIERS)}, got {name!r}")
    purifier = PURIFIERS[name]
    if type(config) is not purifier.config:
        raise TypeError(f"config: {name} takes a {purifier.config.__name__}, got a {type(config).__name__}")
    if config.batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {config.batch_size}")
    if config.resolution is not None:
        parse_resolution(config.resolution)
    check_choices(config)
    records = list_folder(config.images, "images", skip_bad=config.skip_bad)
    command = f"purify {name}"
    finished = RunFolder.inspect(config, command, grows=True)
    if finished is not None:
        return finished
    batch_purifier = purifier.build(config)
    jobs = _readable(records, config)

    run = RunFolder.open(config, command, grows=True)
    started = time.perf_counter()
    _purify(run, batch_purifier, _batches(jobs, config.batch_size), config.resolution)
    rows = run.rows()
    changed = [row["psnr"] for row in rows if row["psnr"] is not None]
    return run.finish(
        {
            "purifier": name,
            "images": len(jobs),
            "skipped": len(records) - len(jobs),
            "unchanged": len(rows) - len(changed),
            "psnr": fmean(changed) if changed else None,
            "seconds": round(time.perf_counter() - started, 2),
        }
    )


def _read(record: ImageRecord, resolution: int | None) -> Layers:
    layers = load_layers(record.path)
    return layers if resolution is None else fit_layers(layers, resolution)


def _readable(records: Sequence[ImageRecord], config: PurifyConfig) -> list[_Job]:
    """The images that can be read: each is decoded once and let go, to be read again when its turn comes."""
    places = {record.name: place for place, record in enumerate(records)}
    outputs = output_names(records)

    def size(record: ImageRecord) -> tuple[int, int]:
        height, width = _read(record, config.resolution)[0].shape[:2]
        return height, width

    return [
        _Job(places[record.name] + 1, record, outputs[places[record.name]], found)
        for record, found in check_readable(records, size, skip_bad=config.skip_bad)
    ]


def _batches(jobs: Sequence[_Job], batch_size: int) -> list[list[_Job]]:
    """Batches of images of one size, the same whatever has been done already."""
    batches = []
    for _, group in groupby(sorted(jobs, key=lambda job: job.size), key=lambda job: job.size):
        same = list(group)
        batches += [same[i : i + batch_size] for i in range(0, len(same), batch_size)]
    return batches


def _purify(run: RunFolder, purifier: BatchPurifier, batches: Sequence[list[_Job]], resolution: int | None) -> None:
    logged = {row["output"]: row for row in run.rows()}
    check_outputs(logged.values(), {job.record.name: job.output for batch in batches for job in batch})
    done = {
        number
        for number, batch in enumerate(batches)
        if all(job.output in logged and (run.path / job.output).exists() for job in batch)
    }
    kept = {job.output: job.step for number in done for job in batches[number]}
    run.keep(lambda row: row["output"] in kept, lambda row: kept[row["output"]])
    total = sum(map(len, batches)) * purifier.ticks
    with StopOnSignal() as stop, progress("purifying", total) as advance:
        for number, batch in enumerate(batches):
            if number in done:
                advance(len(batch) * purifier.ticks)
                continue
            read = [_read(job.record, resolution) for job in batch]
            seen = [on_white(*layers) for layers in read]
            height, width = batch[0].size
            images = f"{len(batch)} images of {width} x {height} pixels"
            with memory_advice(images, "the device", "a --tile or --resolution, or dtype bf16"):
                purified = purifier.apply(seen, partial(advance, len(batch)))
            results = [_changed(*each) for each in zip(read, seen, purified, strict=True)]
            for job, image, result in zip(batch, seen, results, strict=True):
                row = {"step": job.step, "image": job.record.name, "output": job.output}
                run.log(row | {"psnr": _psnr(on_white(*result), image)})
            for job, result in zip(batch, results, strict=True):
                save_result(job.record, _picture(*result), run.path / job.output)
            if stop.requested and number + 1 < len(batches):
                raise Interrupted(f"after {number + 1} of {len(batches)} batches")


def _changed(layers: Layers, seen: Uint8Image, purified: Uint8Image) -> Layers:
    """`layers`, whose colours change by what `purified` changes of `seen`; where alpha is 255 they are `purified`."""
    colours, alpha = layers
    if alpha is None:
        return purified, None
    change = purified.astype(int) - seen
    moved = (colours + change).clip(0, 255).astype(np.uint8)
    # Colours that nobody sees stay as they are.
    return np.where(alpha[..., None] > 0, moved, colours), alpha


def _picture(colours: Uint8Image, alpha: Uint8Image | None) -> Image.Image:
    return Image.fromarray(colours if alpha is None else np.dstack([colours, alpha]))


def _psnr(image: Uint8Image, reference: Uint8Image) -> float | None:
    """In dB; None for identical images, whose PSNR is infinite."""
    if np.array_equal(image, reference):
        return None
    ours, theirs = (torch.from_numpy(pixels.astype(np.float64)) for pixels in (image, reference))
    return float(peak_signal_noise_ratio(ours, theirs, data_range=255.0))
