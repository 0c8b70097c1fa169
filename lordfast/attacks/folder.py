"""Attack a folder of images: resumable, names kept, 8-bit PNGs that obey the budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lordfast.attacks.budget import Budget, parse_budget
from lordfast.attacks.engine import AttackLoss, PgdSettings, perturb, probe_loss
from lordfast.attacks.pgd import pgd_loss
from lordfast.data import ImageRecord, list_images, load_images, output_names, save_png
from lordfast.data.atomic import write_atomic
from lordfast.diffusion import LatentDiffusion, TensorCache, load_model
from lordfast.diffusion.cache import cached_text
from lordfast.training.config import RunConfig
from lordfast.training.examples import report_bad
from lordfast.training.interrupt import Interrupted, StopOnSignal
from lordfast.training.progress import progress
from lordfast.training.run import RunFolder

ATTACKS = ("pgd",)


@dataclass(kw_only=True)
class PgdOptions:
    """The numbers of a PGD attack. Mixed into every config that runs one."""

    eps: str = "8/255"
    """Budget in [0, 1] pixels: 8/255 is 8 grey levels; for l2, of the whole image's norm."""
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
            ValueError: a budget that is negative, not a number, or (linf) above 1; steps or draws out of range.
        """
        return PgdSettings(
            budget=Budget(parse_budget(self.eps), parse_budget(self.step_size, "step_size"), self.norm),
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


@dataclass
class _Job:
    record: ImageRecord
    output: str
    image: np.ndarray


def attack_images(
    model: LatentDiffusion,
    jobs: Sequence[tuple[ImageRecord, str, np.ndarray]],
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

    Raises:
        Interrupted: SIGINT or SIGTERM; everything finished is saved.
    """
    batches = [[_Job(*job) for job in jobs[i : i + batch_size]] for i in range(0, len(jobs), batch_size)]
    with StopOnSignal() as stop, progress("attacking", len(jobs) * max(settings.steps, 1), show=show) as advance:
        for number, batch in enumerate(batches):
            if all((folder / job.output).exists() for job in batch):
                advance(len(batch) * max(settings.steps, 1))
                continue
            images = [job.image for job in batch]
            text = cached_text(model, [job.record.caption or "" for job in batch], cache)
            size = len(batch)
            attacked = perturb(model, images, text, loss, settings, lambda _, size=size: advance(size))  # type: ignore[misc]
            before = probe_loss(model, images, text, loss)
            after = probe_loss(model, attacked, text, loss)
            for i, (job, image) in enumerate(zip(batch, attacked, strict=True)):
                _save(job, image, folder)
                if log is not None:
                    change = np.abs(image.astype(int) - job.image.astype(int))
                    row = {"step": number * batch_size + i + 1, "image": job.record.name, "output": job.output}
                    row |= {"loss_clean": before[i], "loss_attacked": after[i], "largest_change": int(change.max())}
                    log(row)
            if stop.requested and number + 1 < len(batches):
                raise Interrupted(f"after {number + 1} of {len(batches)} batches")


def _save(job: _Job, image: np.ndarray, folder: Path) -> None:
    path = folder / job.output
    path.parent.mkdir(parents=True, exist_ok=True)
    if job.record.caption:
        write_atomic(path.with_suffix(".txt"), job.record.caption.encode())
    save_png(image, path)


def run_attack(name: str, config: AttackConfig) -> dict[str, Any]:
    """Attack ``config.images`` into ``config.out``; returns what summary.json holds.

    Raises:
        ValueError: an unknown attack, a bad budget, an unusable folder or image; nothing is written then.
        Interrupted: on Ctrl-C, with every finished image saved.
    """
    if name not in ATTACKS:
        raise ValueError(f"attack: expected one of {', '.join(ATTACKS)}, got {name!r}")
    if config.batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {config.batch_size}")
    settings = config.settings(config.seed)
    records = list_images(config.images, prompt=config.prompt)
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    side = model.check_resolution(config.resolution)
    loss = pgd_loss(model, targeted=config.targeted, target=config.target, resolution=side)
    outputs = dict(zip((record.name for record in records), output_names(records), strict=True))
    loaded = load_images(records, side, skip_bad=config.skip_bad, on_bad=report_bad)
    jobs = [(record, outputs[record.name], image) for record, image in loaded]

    run = RunFolder.open(config, f"attack {name}")
    finished = run.summary()
    if finished is not None:
        return finished
    run.rewind(_done_before(run, jobs, config.batch_size))
    started = time.perf_counter()
    cache = TensorCache(config.cache_dir)
    attack_images(model, jobs, loss, settings, run.path, batch_size=config.batch_size, cache=cache, log=run.log)
    return run.finish(
        {
            "attack": name,
            "images": len(jobs),
            "skipped": len(records) - len(jobs),
            "eps": settings.budget.eps,
            "eps_grey_levels": settings.budget.eps * 255,
            "norm": settings.budget.norm,
            "resolution": side,
            "seconds": round(time.perf_counter() - started, 2),
        }
    )


def _done_before(run: RunFolder, jobs: Sequence[tuple[ImageRecord, str, np.ndarray]], batch_size: int) -> int:
    for start in range(0, len(jobs), batch_size):
        if not all((run.path / output).exists() for _, output, _ in jobs[start : start + batch_size]):
            return start
    return len(jobs)
