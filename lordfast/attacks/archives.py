"""Attack webdataset archives: each becomes one of the same name and samples, a unit of work that is done or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lordfast.attacks.engine import PgdSettings
from lordfast.attacks.folder import Job, Log, Results, attack_frames, batches_of
from lordfast.attacks.frames import Frame, Size, open_frame
from lordfast.attacks.protocol import AttackLoss
from lordfast.data import BadImageError, ImageRecord
from lordfast.data.archives import Sample, read_samples, write_archive
from lordfast.data.captions import shortened
from lordfast.data.images import names_image, png_bytes
from lordfast.data.notices import notice
from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.cache import NoCache, cached_text
from lordfast.files import replacing
from lordfast.training.examples import report_bad, report_cut
from lordfast.training.interrupt import Interrupted
from lordfast.training.progress import progress
from lordfast.training.team import Others, Team

WINDOW = 8
"""Batches whose images are in memory at once, so that those of one shape come into one batch."""


@dataclass(frozen=True)
class Reading:
    """How a sample's image is read.

    Attributes:
        size, side: as of `open_frame`.
        prompt: one caption for all images; None takes each one's .txt.
        skip_bad: go on without images that can't be read.
    """

    size: Size
    side: int
    prompt: str | None
    skip_bad: bool


def attack_archives(
    model: LatentDiffusion,
    archives: Sequence[tuple[int, Path]],
    loss: AttackLoss,
    settings: PgdSettings,
    folder: Path,
    reading: Reading,
    *,
    batch_size: int,
    log: Log,
    show: bool = True,
    team: Team | None = None,
) -> None:
    """Attack `archives`, each with its number, into archives of the same names in `folder`.

    What has not exactly one image, a sample or another file, goes over as it is. What exists is kept. The processes of
    a team share whole archives out. Of an archive a few batches are in memory at a time, whatever its size; its images'
    rows go to ``metrics/NAME.jsonl``, their sums to `log`.

    Raises:
        Interrupted: SIGINT or SIGTERM; finished archives are there, the one in hand begins anew.
        ValueError: an archive can't be read; it has no image, or one that can't be read, without ``skip_bad``; a batch
            does not fit into the device's memory.
    """
    team = team or Team()
    there = set(team.on_main(lambda: [number for number, path in archives if (folder / path.name).exists()]))
    to_do = [(number, path) for number, path in archives if number not in there]
    results = Results(model, loss, settings, folder, batch_size, None)
    with progress("archives", len(archives), start=len(there), show=show and team.is_main) as tell:
        others = Others(team, to_do, lambda item: (folder / item[1].name).exists(), lambda item: tell())
        with team.together(folder, others.look) as stopping:
            done = 0

            def check() -> None:
                others.look()
                if stopping():
                    raise Interrupted(f"after {len(there) + others.seen + done} of {len(archives)} archives")

            for number, path in team.share(to_do):
                check()
                _One(results, reading, folder, path, tell).attack(number, check, log)
                done += 1
                tell()


@dataclass
class _One:
    """One archive."""

    results: Results
    reading: Reading
    folder: Path
    path: Path
    tell: Callable[..., Any]
    skipped: int = 0
    without_image: int = 0
    captions: list[str | None] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def attack(self, number: int, check: Callable[[], None], log: Log) -> None:
        """Write the attacked archive; `check` is called before each batch and may raise."""
        sums: dict[str, float] = {"images": 0, "unchanged": 0, "loss_clean": 0.0, "loss_attacked": 0.0}
        rows_path = self.folder / "metrics" / f"{self.path.stem}.jsonl"
        with write_archive(self.folder / self.path.name) as writer, replacing(rows_path) as rows:
            with rows.open("x", encoding="utf-8") as file:
                for samples in self._windows():
                    for sample, row in self._attacked(samples, check):
                        writer.add(sample)
                        if row is None:
                            continue
                        file.write(json.dumps(row) + "\n")
                        sums["images"] += 1
                        sums["unchanged"] += row["largest_change"] == 0
                        for name in ("loss_clean", "loss_attacked"):
                            sums[name] += row[name]
                    self.tell(0, f"{self.path.name}: {sums['images']:.0f} images")
            report_cut(self.results.model, self.captions, f"captions in {self.path.name}")
            images = sums["images"]
            if self.left:
                notice(
                    f"{self.path}: {len(self.left)} images are not attacked, being none or not the only one of a "
                    f"sample: {shortened(self.left)}"
                )
            if mute := self.captions.count(None):
                notice(
                    f"{self.path}: {mute} of {images:.0f} images have no caption: attacked under the empty "
                    "prompt; --prompt gives one"
                )
            if not images and not self.reading.skip_bad:
                raise ValueError(
                    f"images: {self.path} holds no image; expected samples of which one member is KEY.png or the like"
                )
            means = {name: sums[name] / images if images else None for name in ("loss_clean", "loss_attacked")}
            # Before the archive is there, which says that it is done.
            counts = {"skipped": self.skipped, "without_image": self.without_image}
            log({"step": number, "output": self.path.name, **sums, **counts, **means})

    def _windows(self) -> Iterator[list[tuple[int, Sample]]]:
        """The samples and their places among those with an image, some batches at a time."""
        places = count(1)
        samples = (
            (next(places) if sample.image is not None else 0, sample) for sample in read_samples(self.path, loose=True)
        )
        while window := list(islice(samples, WINDOW * self.results.batch_size)):
            yield window

    def _attacked(
        self, samples: Sequence[tuple[int, Sample]], check: Callable[[], None]
    ) -> Iterator[tuple[Sample, dict[str, Any] | None]]:
        """The samples, in order: the attacked ones, each with its row, and those without an image."""
        model = self.results.model
        found = [(sample, self._open(place, sample) if place else None, place) for place, sample in samples]
        opened = [(sample, *one) for sample, one, _ in found if one is not None]
        self.captions += [job.record.caption for _, job, _ in opened]
        attacked: dict[int, tuple[np.ndarray, dict[str, Any]]] = {}
        frames = {job.step: frame for _, job, frame in opened}
        for batch in batches_of(
            sorted((job for _, job, _ in opened), key=lambda job: job.shape), self.results.batch_size
        ):
            check()
            text = cached_text(model, [caption for job in batch for caption in job.captions], NoCache())
            mine = [frames[job.step] for job in batch]
            levels = attack_frames(
                model, mine, text, self.results.loss, self.results.settings, self.results.batch_size, lambda _: None
            )
            rows: list[dict[str, Any]] = []
            made = Results(**{**vars(self.results), "log": rows.append}).merge(batch, mine, levels, text)
            attacked |= {job.step: (image, row) for job, image, row in zip(batch, made, rows, strict=True)}
        for sample, one, place in found:
            if one is not None:
                image, row = attacked[one[0].step]
                yield sample.with_png(png_bytes(Image.fromarray(image))), row
            elif not place:
                self.without_image += not sample.is_loose
                # macOS leaves ._NAME, which is no image, beside the files of foreign disks.
                self.left += [name for name in sample.names if names_image(name) and "/._" not in f"/{name}"]
                yield sample, None

    def _open(self, place: int, sample: Sample) -> tuple[Job, Frame] | None:
        name = f"{sample.key}.{sample.image}"
        try:
            caption = self.reading.prompt if self.reading.prompt is not None else sample.caption
        except ValueError as error:
            raise ValueError(f"images: {self.path}: {error}") from None
        record = ImageRecord(self.path / name, name, caption)
        try:
            content = sample.members[str(sample.image)]
            multiple = self.results.model.side_multiple
            frame = open_frame(record.path, self.reading.size, self.reading.side, multiple, content)
        except BadImageError as error:
            if not self.reading.skip_bad:
                raise
            report_bad(record, error)
            self.skipped += 1
            return None
        shape = (frame.views[0].shape[0], frame.views[0].shape[1])
        return Job(record, f"{sample.key}.png", lambda: frame, len(frame.views), shape, place), frame
