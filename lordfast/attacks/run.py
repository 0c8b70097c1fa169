"""``lordfast attack``: from a config to a run folder of attacked images."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lordfast.attacks.archives import Reading, attack_archives
from lordfast.attacks.engine import PgdSettings
from lordfast.attacks.folder import Job, attack_images, batches_of, is_done
from lordfast.attacks.frames import open_frame
from lordfast.attacks.options import AttackConfig
from lordfast.attacks.protocol import Attack, AttackLoss
from lordfast.attacks.registry import find_attack
from lordfast.attacks.share import Share
from lordfast.attacks.subject import attack_subject
from lordfast.attacks.summary import finish, finished_share
from lordfast.attacks.surrogate import FineTuned
from lordfast.data import ImageRecord, output_names
from lordfast.data.archives import find_archives, names_archives
from lordfast.data.notices import notice_of_all
from lordfast.diffusion import LatentDiffusion, TensorCache, resolve_device
from lordfast.training.config import check_choices
from lordfast.training.examples import check_readable, list_folder, report_cut
from lordfast.training.placement import check_placement, load_placed, recompute
from lordfast.training.processes import make_accelerator, on_main, open_run
from lordfast.training.results import check_outputs
from lordfast.training.run import RunFolder
from lordfast.training.speed import speed_up
from lordfast.training.team import Team


@dataclass(frozen=True)
class _Work:
    """What an attack needs, whatever its images are in."""

    attack: Attack
    config: Any
    model: LatentDiffusion
    loss: AttackLoss
    settings: PgdSettings
    side: int
    team: Team
    share: Share


def run_attack(name: str, config: AttackConfig) -> dict[str, Any]:
    """Attack ``config.images`` into ``config.out``; returns what summary.json holds.

    The processes that torchrun starts share whole batches out, which makes the results independent of how many they
    are. So does ``config.share``, among jobs that know nothing of each other: as long as all images have one shape and
    can be read, else batches differ and results by rounding.

    Raises:
        TypeError: a config of another attack.
        ValueError: an unknown attack, a bad budget, an unusable folder or image; nothing is written then.
        FileNotFoundError, NotADirectoryError: ``config.images`` is missing or is a file.
        Interrupted: on Ctrl-C, with everything finished saved.
    """
    attack = find_attack(name)
    share = _check(attack, config)
    settings = config.settings(config.seed)
    archives = _archives(config) if names_archives(config.images) else []
    records = [] if archives else _listed(config)
    # Nothing of it computes here: half precision is the model's own affair.
    accelerator = make_accelerator("fp32", resolve_device(config.device))
    command = f"attack {name}"
    # Images of a surrogate's training, or of a division into shares, depend on what else there is.
    grows = attack.schedule is None and share.count == 1
    finished = on_main(
        accelerator, lambda: RunFolder.inspect(config, command, grows) or finished_share(config.out, share)
    )
    if finished is not None:
        return finished
    whole = "surrogate unet" if getattr(config, "surrogate", None) == "unet" else None
    # Without a surrogate, processes have nothing of the model in common.
    processes = 1 if attack.schedule is None else accelerator.num_processes
    check_placement(config, compiled=config.compile, optimized=config.optimize, processes=processes, whole=whole)
    # The VAE is at work in every step, as is a text encoder that the surrogate trains.
    stay = ("vae", "text") if getattr(config, "surrogate_text_encoder", False) else ("vae",)
    placed = load_placed(config.model, config, accelerator.device, config.dtype, stay=stay)
    model = placed.model
    speed_up(model, config)
    if config.gradient_checkpointing:
        recompute(model)
    side = model.check_resolution(config.resolution)
    settings.timesteps(model)
    team = Team(accelerator, share.name)
    work = _Work(attack, config, model, attack.loss(config, model), settings, side, team, share)
    jobs = [] if archives else _jobs(work, records)
    report_cut(model, [job.record.caption for job in jobs])
    surrogate = None
    if attack.schedule is not None:
        captions = [caption for job in jobs for caption in job.captions]
        surrogate = FineTuned(model, config, config, captions, TensorCache(config.cache_dir))  # type: ignore[arg-type]
        placed.settle()

    run = open_run(config, command, accelerator, f"metrics{share.name.replace('-', '.', 1)}", grows)
    started = time.perf_counter()
    if archives:
        _attack_archives(work, archives, run)
        skipped = 0
    else:
        _attack_jobs(work, jobs, surrogate, run)
        skipped = len(share.of(records, config.batch_size)) - len(jobs)
    about = {
        "attack": name,
        "eps": settings.budget.eps,
        "eps_grey_levels": settings.budget.eps * 255,
        "norm": settings.budget.norm,
        "resolution": side,
    }
    seconds = round(time.perf_counter() - started, 2)
    summary = on_main(accelerator, lambda: finish(run, share, about, skipped, seconds))
    if team.is_main and share.count == 1:
        # Not before: what ends between the two goes on from the last moment instead of from nothing.
        shutil.rmtree(run.checkpoints, ignore_errors=True)
    return summary


def _attack_jobs(work: _Work, jobs: Sequence[Job], surrogate: FineTuned | None, run: RunFolder) -> None:
    config, team = work.config, work.team
    cache, size, log = TensorCache(config.cache_dir), config.batch_size, run.of_process(team.rank).log
    if work.attack.schedule is None or surrogate is None:
        batches = batches_of(jobs, size)

        def keep() -> None:
            # Batches that are not finished are attacked, and logged, again.
            done = {job.output for batch in batches if is_done(run.path, batch) for job in batch}
            place_of = {job.output: job.step for job in jobs}
            check_outputs(run.rows(), {job.record.name: job.output for job in jobs})
            run.keep(lambda row: row["output"] in done, lambda row: place_of[row["output"]])

        team.on_main(keep)
        attack_images(
            work.model, jobs, work.loss, work.settings, run.path, batch_size=size, cache=cache, log=log, team=team
        )
        return
    # All results are written at the end, so rows of an earlier session belong to results that come again.
    team.on_main(lambda: run.keep(lambda row: False))
    attack_subject(
        work.model,
        jobs,
        work.loss,
        work.attack.schedule(config),
        work.settings,
        surrogate,
        run.path,
        batch_size=size,
        resume=config.resume,
        log=log,
        team=team,
    )


def _attack_archives(work: _Work, archives: Sequence[tuple[int, Path]], run: RunFolder) -> None:
    config, team = work.config, work.team
    mine = work.share.of(archives)
    done = {path.name: number for number, path in mine if (run.path / path.name).exists()}
    team.on_main(lambda: run.keep(lambda row: row["output"] in done, lambda row: done[row["output"]]))
    reading = Reading(config.size, work.side, config.prompt, config.skip_bad)
    log = run.of_process(team.rank).log
    attack_archives(
        work.model, mine, work.loss, work.settings, run.path, reading, batch_size=config.batch_size, log=log, team=team
    )


def _check(attack: Attack, config: AttackConfig) -> Share:
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
    share = Share.parse(config.share)
    whole = f"{attack.name} trains a surrogate on all images together"
    if attack.schedule is not None and names_archives(config.images):
        raise ValueError(f"images: {whole}; expected a folder, got {config.images}")
    if attack.schedule is not None and share.count > 1:
        raise ValueError(f"share: {whole}; expected none, got {config.share}")
    if config.overwrite and share.count > 1:
        raise ValueError("overwrite, share: one share would delete the others; expected --resume")
    return share


def _listed(config: AttackConfig) -> list[ImageRecord]:
    records = list_folder(config.images, "images", prompt=config.prompt, skip_bad=config.skip_bad)
    if all(record.caption is None for record in records):
        notice_of_all(f"no image in {config.images} has a caption: attacked under the empty prompt; --prompt gives one")
    return records


def _archives(config: AttackConfig) -> list[tuple[int, Path]]:
    """The archives to attack, numbered from 1."""
    try:
        found = find_archives(config.images)
    except (ValueError, OSError) as error:
        raise type(error)(f"images: {error}") from error
    if any(path.parent.resolve() == config.out.resolve() for path in found):
        raise ValueError(f"out: {config.out} holds the archives themselves; expected another folder")
    return list(enumerate(found, start=1))


def _jobs(work: _Work, records: Sequence[ImageRecord]) -> list[Job]:
    """The images of this share that can be read, those with views of one shape next to each other."""
    config, model = work.config, work.model
    outputs = dict(zip((record.name for record in records), output_names(records), strict=True))
    places = {record.name: place for place, record in enumerate(records, start=1)}

    def job(record: ImageRecord) -> Job:
        read = partial(open_frame, record.path, config.size, work.side, model.side_multiple)
        views = read().views
        shape = (views[0].shape[0], views[0].shape[1])
        return Job(record, outputs[record.name], read, len(views), shape, places[record.name])

    mine = work.share.of(records, config.batch_size)
    part = work.share.count > 1
    found = [made for _, made in check_readable(mine, job, skip_bad=config.skip_bad, team=work.team, part=part)]
    return sorted(found, key=lambda job: job.shape)
