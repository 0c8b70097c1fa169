"""``lordfast attack``: from a config to a run folder of attacked images."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from lordfast.attacks.folder import Job, attack_images, batches_of, is_done
from lordfast.attacks.frames import open_frame
from lordfast.attacks.options import AttackConfig
from lordfast.attacks.protocol import Attack
from lordfast.attacks.registry import find_attack
from lordfast.attacks.subject import attack_subject
from lordfast.attacks.surrogate import FineTuned
from lordfast.data import ImageRecord, output_names
from lordfast.diffusion import LatentDiffusion, TensorCache, load_model
from lordfast.training.config import check_choices
from lordfast.training.examples import check_readable, list_folder
from lordfast.training.run import RunFolder
from lordfast.training.speed import speed_up


def run_attack(name: str, config: AttackConfig) -> dict[str, Any]:
    """Attack ``config.images`` into ``config.out``; returns what summary.json holds.

    Raises:
        TypeError: a config of another attack.
        ValueError: an unknown attack, a bad budget, an unusable folder or image; nothing is written then.
        FileNotFoundError, NotADirectoryError: ``config.images`` is missing or is a file.
        Interrupted: on Ctrl-C, with everything finished saved.
    """
    attack = find_attack(name)
    _check(attack, config)
    settings = config.settings(config.seed)
    records = list_folder(config.images, "images", prompt=config.prompt)
    command = f"attack {name}"
    finished = RunFolder.inspect(config, command)
    if finished is not None:
        return finished
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    speed_up(model, config)
    side = model.check_resolution(config.resolution)
    settings.timesteps(model)
    loss = attack.loss(config, model)
    jobs = _jobs(model, config, records, side)
    cache = TensorCache(config.cache_dir)
    surrogate = None
    if attack.schedule is not None:
        captions = [caption for job in jobs for caption in job.captions]
        surrogate = FineTuned(model, config, config, captions, cache)  # type: ignore[arg-type]

    run = RunFolder.open(config, command)
    started = time.perf_counter()
    if attack.schedule is None or surrogate is None:
        _keep_rows(run, jobs, config.batch_size)
        attack_images(model, jobs, loss, settings, run.path, batch_size=config.batch_size, cache=cache, log=run.log)
    else:
        # All results are written at the end, so rows of an earlier session belong to results that come again.
        run.keep(lambda row: False)
        phases = attack.schedule(config)
        size, resume = config.batch_size, config.resume
        attack_subject(
            model, jobs, loss, phases, settings, surrogate, run.path, batch_size=size, resume=resume, log=run.log
        )
    rows = run.rows()
    summary = run.finish(
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
    # Not before: what ends between the two goes on from the last moment instead of from nothing.
    shutil.rmtree(run.checkpoints, ignore_errors=True)
    return summary


def _check(attack: Attack, config: AttackConfig) -> None:
    if not isinstance(config, attack.config):
        raise TypeError(
            f"config: attack {attack.name} expects a {attack.config.__name__}, got a {type(config).__name__}"
        )
    check_choices(config)
    for name in ("batch_size", "rounds"):
        if getattr(config, name, 1) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")
    for name in ("attack_steps", "train_steps"):
        if getattr(config, name, 0) < 0:
            raise ValueError(f"{name}: expected 0 or more, got {getattr(config, name)}")


def _jobs(model: LatentDiffusion, config: AttackConfig, records: Sequence[ImageRecord], side: int) -> list[Job]:
    """The images that can be read, those with views of one shape next to each other."""
    outputs = dict(zip((record.name for record in records), output_names(records), strict=True))

    def job(record: ImageRecord) -> Job:
        read = partial(open_frame, record.path, config.size, side, model.side_multiple)
        views = read().views
        return Job(record, outputs[record.name], read, len(views), (views[0].shape[0], views[0].shape[1]))

    found = [made for _, made in check_readable(records, job, skip_bad=config.skip_bad)]
    return sorted(found, key=lambda job: job.shape)


def _keep_rows(run: RunFolder, jobs: Sequence[Job], batch_size: int) -> None:
    """Drop the rows of batches that are not finished: they are attacked, and logged, again."""
    done = {job.output for batch in batches_of(jobs, batch_size) if is_done(run.path, batch) for job in batch}
    run.keep(lambda row: row["output"] in done)
