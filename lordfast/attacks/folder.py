"""Attack a folder of images: resumable, names kept, 8-bit PNGs that obey the budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lordfast.attacks.budget import Budget, parse_budget
from lordfast.attacks.engine import AttackLoss, PgdSettings, perturb, probe_loss
from lordfast.attacks.pgd import pgd_loss
from lordfast.data import ImageRecord, load_image, load_images, output_names
from lordfast.diffusion import LatentDiffusion, TensorCache, load_model
from lordfast.diffusion.cache import cached_text
from lordfast.training.config import RunConfig, check_choices
from lordfast.training.examples import list_folder, report_bad
from lordfast.training.interrupt import Interrupted, StopOnSignal
from lordfast.training.progress import progress
from lordfast.training.results import save_result
from lordfast.training.run import RunFolder

ATTACKS = ("pgd",)


@dataclass(kw_only=True)
class PgdOptions:
    """The numbers of a PGD attack. Mixed into every config that runs one."""

    eps: str = "8/255"
    """Budget in [0, 1] pixels: 8/255 is 8 grey levels; for l2, of the whole image's norm, so choose one of order 1."""
    step_size: str = "1/255"
    """Step in [0, 1] pixels."""
    attack_steps: int = 40
    """Iterations."""
    norm: Literal["linf", "l2"] = "linf"
    """Shape of the budget."""
    draws: int = 1
    """Noise and timestep draws averaged per iteration."""
    random_start: bool = True
    """Start at a random point within the budget."""
    targeted: bool = False
    """Pull the noise prediction towards a picture instead of pushing the loss up."""
    target: Path | None = None
    """That picture; a built-in high-contrast pattern when left out."""
    low_memory: bool = False
    """Two-pass gradient, one draw at a time: about half the memory, one more encode."""
    attack_latent_sample: bool = False
    """Attack samples of the VAE's posterior instead of its mean."""

    def settings(self, seed: int) -> PgdSettings:
        """Parsed and checked settings.

        Raises:
            ValueError: a budget that is negative, not a number, or (linf) above 1 or too small for any 8-bit image to
                change; steps or draws out of range.
        """
        budget = Budget(parse_budget(self.eps), parse_budget(self.step_size, "step_size"), self.norm)
        if budget.eps > 0 and budget.norm == "linf" and budget.grey_levels == 0:
            raise ValueError(
                f"eps: {self.eps} is less than one grey level, 1/255, so no saved 8-bit image could change; expected "
                "0, or 1/255 or more"
            )
        return PgdSettings(
            budget=budget,
            steps=self.attack_steps,
            draws=self.draws,
            random_start=self.random_start,
            latent_sample=self.attack_latent_sample,
            low_memory=self.low_memory,
            seed=seed,
        )


@dataclass(kw_only=True)
class AttackConfig(PgdOptions, RunConfig):
    """Perturb a folder of images so that fine-tuning on them fails."""

    model: str
    """The model whose fine-tuning is attacked: a diffusers folder, a hub id, or demo."""
    images: Path
    """Folder of images, JPEG, PNG and others, of any size and mode."""
    prompt: str | None = None
    """One caption for all images; else name.txt, metadata.jsonl, or the empty prompt."""
    resolution: int | None = None
    """Side of the square, centre-cropped results; the model's own when left out."""
    batch_size: int = 8
    """Images per forward."""
    skip_bad: bool = False
    """Go on without images that can't be read, naming each."""
    cache_dir: Path | None = None
    """Where text embeddings are kept; default: $LORDFAST_CACHE or ~/.cache/lordfast."""


Job = tuple[ImageRecord, str, np.ndarray | Callable[[], np.ndarray]]
"""An image to attack: its record, the name of the result, and its uint8 pixels (H, W, 3) or what reads them."""


def attack_images(
    model: LatentDiffusion,
    jobs: Sequence[Job],
    loss: AttackLoss,
    settings: PgdSettings,
    folder: Path,
    *,
    batch_size: int,
    cache: TensorCache,
    log: Callable[[dict[str, Any]], None] | None = None,
    show: bool = True,
) -> None:
    """Attack (record, output name, uint8 image) jobs and write the PNGs, with captions beside them, into `folder`.

    Outputs that exist are kept: a batch runs again only if one of its files is missing, in the same composition, so a
    resumed folder equals an uninterrupted one bit for bit.

    Args:
        log: called with a row of losses and distances per image, before the image is written; the losses cost 16
            predictions per image, which are not made without it.

    Raises:
        Interrupted: SIGINT or SIGTERM; everything finished is saved.
        ValueError: a batch does not fit into the device's memory; an output that exists is another image's.
    """
    batches = [jobs[i : i + batch_size] for i in range(0, len(jobs), batch_size)]
    with StopOnSignal() as stop, progress("attacking", len(jobs) * max(settings.steps, 1), show=show) as advance:
        for number, batch in enumerate(batches):
            size = len(batch)
            images = [image() if callable(image) else image for _, _, image in batch]
            if _is_done(folder, batch):
                _check_kept(folder, batch, images, settings)
                advance(size * max(settings.steps, 1))
                continue
            text = cached_text(model, [record.caption or "" for record, _, _ in batch], cache)
            try:
                attacked = perturb(model, images, text, loss, settings, lambda _, size=size: advance(size))  # type: ignore[misc]
            except torch.OutOfMemoryError as error:
                raise ValueError(
                    f"batch_size: {size} images of side {len(images[0])} don't fit into the memory of {model.device}; "
                    "try a smaller one, low_memory, or dtype bf16"
                ) from error
            if log is not None:
                before, after = (probe_loss(model, group, text, loss) for group in (images, attacked))
                for i, (record, output, _) in enumerate(batch):
                    row = {"step": number * batch_size + i + 1, "image": record.name, "output": output}
                    row |= {"loss_clean": before[i], "loss_attacked": after[i]}
                    log(row | _distance(images[i], attacked[i]))
            for (record, output, _), image in zip(batch, attacked, strict=True):
                save_result(record, image, folder / output)
            if stop.requested and number + 1 < len(batches):
                raise Interrupted(f"after {number + 1} of {len(batches)} batches")


def _is_done(folder: Path, batch: Sequence[Job]) -> bool:
    return all((folder / output).exists() for _, output, _ in batch)


def _check_kept(folder: Path, batch: Sequence[Job], images: Sequence[np.ndarray], settings: PgdSettings) -> None:
    """Raise ValueError unless what an earlier session left is within the budget around today's images."""
    for (record, output, _), image in zip(batch, images, strict=True):
        kept = load_image(folder / output)
        # The budget leaves alone what obeys it, and nothing else.
        if kept.shape != image.shape or not np.array_equal(settings.budget.quantise(kept.astype(float), image), kept):
            raise ValueError(
                f"resume: {folder / output} is no perturbation of {record.path}: the images changed since the run "
                "began; expected the same images, or --overwrite"
            )


def _distance(original: np.ndarray, attacked: np.ndarray) -> dict[str, float]:
    """The largest change in grey levels, and the L2 norm of all changes in [0, 1] pixels."""
    change = attacked.astype(np.float64) - original
    return {"largest_change": int(np.abs(change).max()), "l2_change": float(np.linalg.norm(change) / 255)}


def run_attack(name: str, config: AttackConfig) -> dict[str, Any]:
    """Attack ``config.images`` into ``config.out``; returns what summary.json holds.

    Raises:
        ValueError: an unknown attack, a bad budget, an unusable folder or image; nothing is written then.
        FileNotFoundError, NotADirectoryError: ``config.images`` is missing or is a file.
        Interrupted: on Ctrl-C, with every finished image saved.
    """
    if name not in ATTACKS:
        raise ValueError(f"attack: expected one of {', '.join(ATTACKS)}, got {name!r}")
    if config.batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {config.batch_size}")
    check_choices(config)
    settings = config.settings(config.seed)
    records = list_folder(config.images, "images", prompt=config.prompt)
    command = f"attack {name}"
    finished = RunFolder.inspect(config, command)
    if finished is not None:
        return finished
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    side = model.check_resolution(config.resolution)
    loss = pgd_loss(model, targeted=config.targeted, target=config.target, resolution=side)
    outputs = dict(zip((record.name for record in records), output_names(records), strict=True))
    usable = _readable(records, side, config.skip_bad)
    # Read again when their turn comes, so that a large folder does not have to fit into memory.
    jobs: list[Job] = [(record, outputs[record.name], partial(_read, record, side)) for record in usable]

    run = RunFolder.open(config, command)
    _keep_rows(run, jobs, config.batch_size)
    started = time.perf_counter()
    cache = TensorCache(config.cache_dir)
    attack_images(model, jobs, loss, settings, run.path, batch_size=config.batch_size, cache=cache, log=run.log)
    rows = run.rows()
    return run.finish(
        {
            "attack": name,
            "images": len(jobs),
            "skipped": len(records) - len(jobs),
            "eps": settings.budget.eps,
            "eps_grey_levels": settings.budget.eps * 255,
            "norm": settings.budget.norm,
            "resolution": side,
            "unchanged": sum(row["largest_change"] == 0 for row in rows),
            "loss_clean": float(np.mean([row["loss_clean"] for row in rows])),
            "loss_attacked": float(np.mean([row["loss_attacked"] for row in rows])),
            "seconds": round(time.perf_counter() - started, 2),
        }
    )


def _read(record: ImageRecord, side: int) -> np.ndarray:
    return next(load_images([record], side))[1]


def _readable(records: Sequence[ImageRecord], side: int, skip_bad: bool) -> list[ImageRecord]:
    """The records whose images can be read: each is decoded once and let go."""
    usable = []
    with progress("checking images", len(records)) as advance:
        for record, _ in load_images(records, side, skip_bad=skip_bad, on_bad=report_bad):
            usable.append(record)
            advance()
    return usable


def _keep_rows(run: RunFolder, jobs: Sequence[Job], batch_size: int) -> None:
    """Drop the rows of batches that are not finished: they are attacked, and logged, again."""
    batches = [jobs[i : i + batch_size] for i in range(0, len(jobs), batch_size)]
    done = {output for batch in batches if _is_done(run.path, batch) for _, output, _ in batch}
    run.keep(lambda row: row["output"] in done)
