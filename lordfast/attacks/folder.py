"""Attack the images of a folder batch by batch: names kept, 8-bit PNGs that obey the budget, nothing done twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from lordfast.attacks.budget import Budget
from lordfast.attacks.engine import PgdSettings, perturb, probe_loss
from lordfast.attacks.frames import Frame
from lordfast.attacks.protocol import AttackLoss
from lordfast.data import ImageRecord
from lordfast.data.images import load_layers
from lordfast.diffusion import LatentDiffusion, TensorCache
from lordfast.diffusion.cache import cached_text
from lordfast.diffusion.model import Text
from lordfast.training.interrupt import Interrupted
from lordfast.training.progress import progress
from lordfast.training.results import images_changed, memory_advice, save_result
from lordfast.training.team import Others, Team

T = TypeVar("T")
Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """An image to attack.

    Attributes:
        output: name of the result in the output folder.
        open: reads it.
        views: how many views it has.
        shape: height and width of each view.
        step: its place among the folder's images, from 1.
    """

    record: ImageRecord
    output: str
    open: Callable[[], Frame]
    views: int
    shape: tuple[int, int]
    step: int = 1

    @classmethod
    def of(cls, record: ImageRecord, output: str, image: np.ndarray) -> Job:
        """An image in memory that has the size the model takes."""
        return cls(record, output, lambda: Frame.of(image), 1, (image.shape[0], image.shape[1]))

    @property
    def captions(self) -> list[str]:
        """The caption of each view."""
        return [self.record.caption or ""] * self.views


def batches_of(jobs: Sequence[Job], batch_size: int) -> list[list[Job]]:
    """Jobs in order, cut where the views' shape changes and where more than `batch_size` views would come together."""
    batches: list[list[Job]] = []
    views = 0
    for job in jobs:
        if not batches or job.shape != batches[-1][-1].shape or views + job.views > batch_size:
            batches.append([])
            views = 0
        batches[-1].append(job)
        views += job.views
    return batches


def is_done(folder: Path, batch: Sequence[Job]) -> bool:
    """Whether the results of all of `batch` are there."""
    return all((folder / job.output).exists() for job in batch)


def check_kept(folder: Path, batch: Sequence[Job], budget: Budget) -> None:
    """Raise ValueError unless what an earlier session left is within the budget around today's images."""
    for job in batch:
        colours, alpha = load_layers(folder / job.output)
        if not job.open().holds(colours, alpha, budget):
            raise images_changed(f"{folder / job.output} is no perturbation of {job.record.path}")


def attack_images(
    model: LatentDiffusion,
    jobs: Sequence[Job],
    loss: AttackLoss,
    settings: PgdSettings,
    folder: Path,
    *,
    batch_size: int,
    cache: TensorCache,
    log: Log | None = None,
    show: bool = True,
    team: Team | None = None,
) -> None:
    """Attack `jobs` and write the PNGs, with captions beside them, into `folder`.

    Outputs that exist are kept: a batch runs again only if one of its files is missing, in the same composition, so a
    resumed folder equals an uninterrupted one bit for bit. The processes of a team, each of which calls this with the
    same jobs, share whole batches out: the results don't depend on how many they are either.

    Args:
        batch_size: views per forward.
        log: as in `Results`; each process of a team logs what it has made.

    Raises:
        Interrupted: SIGINT or SIGTERM; everything finished is saved.
        ValueError: a batch does not fit into the device's memory; an output that exists is another image's.
    """
    team = team or Team()
    batches = batches_of(jobs, batch_size)
    # One process looks: what the others write meanwhile must not change who does what.
    left = set(team.on_main(lambda: [i for i, batch in enumerate(batches) if not is_done(folder, batch)]))
    kept = [batch for i, batch in enumerate(batches) if i not in left]
    to_do = [batches[i] for i in sorted(left)]
    steps = max(settings.steps, 1)
    total = sum(job.views for job in jobs) * steps
    results = Results(model, loss, settings, folder, batch_size, log)
    with progress("attacking", total, show=show and team.is_main) as advance:
        others = Others(team, to_do, lambda batch: is_done(folder, batch), lambda batch: advance(_views(batch) * steps))
        with team.together(folder, others.look) as stopping:
            for batch in team.share(kept):
                check_kept(folder, batch, settings.budget)
            advance(sum(map(_views, kept)) * steps)
            mine = team.share(to_do)
            for number, batch in enumerate(mine):
                frames = [job.open() for job in batch]
                text = cached_text(model, [caption for job in batch for caption in job.captions], cache)

                def step(views: int) -> None:
                    advance(views)
                    others.look()

                levels = attack_frames(model, frames, text, loss, settings, batch_size, step)
                results.write(batch, frames, levels, text)
                if stopping() and number + 1 < len(mine):
                    before = len(kept) + others.seen + number + 1
                    raise Interrupted(f"after {before} of {len(batches)} batches")


def attack_frames(
    model: LatentDiffusion,
    frames: Sequence[Frame],
    text: Text,
    loss: AttackLoss,
    settings: PgdSettings,
    batch_size: int,
    advance: Callable[[int], Any],
) -> list[np.ndarray]:
    """The perturbed views of all `frames`, float grey levels (h, w, 3), which `Frame.result` puts together.

    Args:
        text: the conditioning of each view.
        batch_size: views per forward.
        advance: called after each image step with how many views it was for.

    Raises:
        ValueError: a forward does not fit into the device's memory.
    """
    views = [view for frame in frames for view in frame.views]
    levels: list[np.ndarray] = []
    for chunk in chunks(len(views), batch_size):
        size = len(views[chunk])
        with advised(model, views[chunk]):
            found = perturb(
                model,
                views[chunk],
                rows(text, chunk),
                loss,
                settings,
                lambda _, size=size: advance(size),  # type: ignore[misc]
            )
        levels.extend(found)
    return levels


def _views(batch: Sequence[Job]) -> int:
    return sum(job.views for job in batch)


def chunks(count: int, size: int) -> list[slice]:
    """Slices of at most `size` that cover range(count)."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def rows(text: Text, chosen: slice) -> Text:
    """Some rows of a conditioning."""
    return {name: value[chosen] for name, value in text.items()}


def advised(model: LatentDiffusion, views: Sequence[np.ndarray]) -> AbstractContextManager[None]:
    """`memory_advice` for a forward of `views`."""
    height, width = views[0].shape[:2]
    return memory_advice(f"{len(views)} images of {width} x {height}", model.device, "low_memory, or dtype bf16")


@dataclass(frozen=True)
class Results:
    """Where attacked images go: measured with the model as it is, and written.

    Attributes:
        folder: of the PNGs and their captions.
        batch_size: views per forward.
        log: called with a row of losses and distances per image, before the image is written; the losses cost 16
            predictions per view, which are not made without it.
    """

    model: LatentDiffusion
    loss: AttackLoss
    settings: PgdSettings
    folder: Path
    batch_size: int
    log: Log | None

    def write(self, batch: Sequence[Job], frames: Sequence[Frame], levels: Sequence[np.ndarray], text: Text) -> None:
        """Write what `merge` gives, as PNGs with captions."""
        for job, result in zip(batch, self.merge(batch, frames, levels, text), strict=True):
            save_result(job.record, Image.fromarray(result), self.folder / job.output)

    def merge(
        self, batch: Sequence[Job], frames: Sequence[Frame], levels: Sequence[np.ndarray], text: Text
    ) -> list[np.ndarray]:
        """The attacked images of a batch, uint8 (H, W, 3 or 4), from its perturbed views; logged.

        Args:
            levels: all perturbed views, float grey levels (h, w, 3), in the frames' order.
            text: the conditioning of each view.
        """
        each = _per_frame(frames, levels)
        results = [frame.result(views, self.settings.budget) for frame, views in zip(frames, each, strict=True)]
        if self.log is not None:
            losses = self._losses(frames, results, text)
            for i, (job, frame, result) in enumerate(zip(batch, frames, results, strict=True)):
                row = {"step": job.step, "image": job.record.name, "output": job.output, **losses[i]}
                self.log(row | _distance(frame.colours, result[..., :3]))
        return results

    def _losses(self, frames: Sequence[Frame], results: Sequence[np.ndarray], text: Text) -> list[dict[str, float]]:
        """The attack's loss of each image, clean and attacked, the mean over its views."""
        clean = [view for frame in frames for view in frame.views]
        attacked = [view for frame, result in zip(frames, results, strict=True) for view in frame.views_of(result)]
        found: list[dict[str, float]] = [{} for _ in frames]
        for name, views in (("loss_clean", clean), ("loss_attacked", attacked)):
            losses: list[float] = []
            for chunk in chunks(len(views), self.batch_size):
                part = rows(text, chunk)
                losses += probe_loss(self.model, views[chunk], clean[chunk], part, self.loss, self.settings)
            for row, mine in zip(found, _per_frame(frames, losses), strict=True):
                row[name] = float(np.mean(mine))
        return found


def _per_frame(frames: Sequence[Frame], values: Sequence[T]) -> list[Sequence[T]]:
    """What belongs to the views of each frame, from what belongs to the views of all."""
    found, first = [], 0
    for frame in frames:
        found.append(values[first : first + len(frame.views)])
        first += len(frame.views)
    return found


def _distance(original: np.ndarray, attacked: np.ndarray) -> dict[str, float]:
    """The largest change in grey levels, and the L2 norm of all changes in [0, 1] pixels."""
    change = attacked.astype(np.float64) - original
    return {"largest_change": int(np.abs(change).max()), "l2_change": float(np.linalg.norm(change) / 255)}
