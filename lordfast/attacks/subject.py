"""Attack all images of a subject together with a surrogate that trains on them, saving every moment worth it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from lordfast.attacks.alternate import Moment, run_schedule
from lordfast.attacks.engine import PgdSettings, descend, generators_of, random_start, to_levels
from lordfast.attacks.folder import Job, Log, Results, advised, batches_of, chunks
from lordfast.attacks.protocol import AttackLoss, Perturb, Phase
from lordfast.attacks.surrogate import Surrogate
from lordfast.diffusion import LatentDiffusion, content_key
from lordfast.pixels import to_tensor
from lordfast.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from lordfast.training.interrupt import Interrupted, StopOnSignal
from lordfast.training.progress import progress
from lordfast.training.results import images_changed
from lordfast.training.team import Team

SHARE = 10
"""Saving takes at most one part in this many of the time."""


def attack_subject(
    model: LatentDiffusion,
    jobs: Sequence[Job],
    loss: AttackLoss,
    phases: Sequence[Phase],
    settings: PgdSettings,
    surrogate: Surrogate,
    folder: Path,
    *,
    batch_size: int,
    resume: bool,
    log: Log | None = None,
    show: bool = True,
    team: Team | None = None,
) -> None:
    """Run `phases` over all images of `jobs`, which are held in memory, and write the PNGs and captions into `folder`.

    Every image is perturbed from where its last phase left it, on noise that its pixels, the seed and the phase decide.
    Moments are saved in ``folder/checkpoints``, as often as saving takes at most a tenth of the time, and when the run
    is interrupted; a resumed run gives the same bits. The processes of a team, which all call this, share the batches
    out where images are perturbed, and each make every step of training; the bits don't depend on how many they are.

    Args:
        batch_size: views per forward.
        log: as in `Results`.

    Raises:
        Interrupted: SIGINT or SIGTERM; the moment is saved, of a phase of training the one before it.
        ValueError: a schedule that makes no sense; a batch that does not fit into memory; resumed with other images.
    """
    team = team or Team()
    groups = [(batch, [job.open() for job in batch]) for batch in batches_of(jobs, batch_size)]
    views: list[list[np.ndarray]] = []
    captions: list[list[str]] = []
    for batch, frames in groups:
        shown = [view for frame in frames for view in frame.views]
        named = [caption for job in batch for caption in job.captions]
        for chunk in chunks(len(shown), batch_size):
            views.append(shown[chunk])
            captions.append(named[chunk])
    originals = [to_tensor(group) for group in views]
    keeper = _Keeper(folder / "checkpoints", content_key(*(view for group in views for view in group)), len(views) + 1)
    moment = keeper.load() if resume else None
    if moment is None:
        current = [
            random_start(original, settings, generators_of(group, settings.seed))
            for original, group in zip(originals, views, strict=True)
        ]
        moment = Moment(0, 0, current, surrogate.state())

    def perturb(batch: int, x: Tensor, steps: int, phase: int) -> Tensor:
        size = len(x)
        text = {name: value.to(model.device) for name, value in surrogate.text(captions[batch]).items()}
        with surrogate.precision(), advised(model, views[batch]):
            x = descend(
                model,
                x.to(model.device, copy=True),
                originals[batch].to(model.device),
                text,
                loss,
                replace(settings, steps=steps),
                generators_of(views[batch], settings.seed, phase),
                lambda _: advance(size * team.size),
            )
        return x.cpu()

    count = sum(map(len, views))
    total = sum(phase.steps for phase in phases if isinstance(phase, Perturb)) * count
    done = _done(phases, moment, views)
    with StopOnSignal() as stop, progress("attacking", total, start=done, show=show and team.is_main) as advance:

        def save(finished: int, make: Callable[[], Moment]) -> None:
            asked = any(team.on_all(lambda: stop.requested))
            team.on_main(lambda: keeper.offer(make, at_once=asked))
            if asked and finished < len(phases):
                raise Interrupted(f"after {finished} of {len(phases)} phases")

        current = run_schedule(phases, moment, originals, surrogate, perturb, save, team)
        levels = [level for batch in current for level in to_levels(batch)]
        results = Results(model, loss, settings, folder, batch_size, log)
        each: list[list[np.ndarray]] = []
        for batch, _ in groups:
            count = sum(job.views for job in batch)
            each.append(levels[:count])
            levels = levels[count:]
        with team.together(folder):
            for (batch, frames), mine in team.share(list(zip(groups, each, strict=True))):
                text = surrogate.text([caption for job in batch for caption in job.captions])
                with surrogate.precision():
                    results.write(batch, frames, mine, text)


def _done(phases: Sequence[Phase], moment: Moment, views: Sequence[Sequence[np.ndarray]]) -> int:
    """Image steps that were made before `moment`."""
    count = sum(map(len, views))
    done = sum(phase.steps for phase in phases[: moment.phase] if isinstance(phase, Perturb)) * count
    if moment.batch:
        phase = phases[moment.phase]
        done += sum(map(len, views[: moment.batch])) * (phase.steps if isinstance(phase, Perturb) else 0)
    return done


class _Keeper:
    """Moments on disk.

    Args:
        images: a digest of all images: a moment of other ones is refused.
        places: more than the batches of a phase, so that phase and batch make one number.
    """

    def __init__(self, folder: Path, images: str, places: int) -> None:
        self._folder, self._images, self._places = folder, images, places
        self._not_before = 0.0

    def offer(self, make: Callable[[], Moment], at_once: bool) -> None:
        """Save what `make` gives, unless saving would take too much of the time and need not be at once."""
        if not at_once and time.monotonic() < self._not_before:
            return
        started = time.monotonic()
        moment = make()
        weights = {f"weights.{name}": value for name, value in moment.weights.items()}
        if moment.remembered is not None:
            weights |= {f"remembered.{name}": value for name, value in moment.remembered.items()}
        weights |= {f"current.{index:06d}": value for index, value in enumerate(moment.current)}
        state = {"images": self._images, "phase": moment.phase, "batch": moment.batch}
        save_checkpoint(self._folder, moment.phase * self._places + moment.batch, weights, state, keep=1)
        now = time.monotonic()
        self._not_before = now + (SHARE - 1) * (now - started)

    def load(self) -> Moment | None:
        """The newest moment, or None.

        Raises:
            ValueError: it belongs to other images.
        """
        found = latest_checkpoint(self._folder)
        if found is None:
            return None
        _, tensors, state = load_checkpoint(found)
        if state["images"] != self._images:
            raise images_changed(f"{found} was saved for other images")
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            parts.setdefault(kind, {})[rest] = value
        current = [parts["current"][index] for index in sorted(parts["current"])]
        return Moment(state["phase"], state["batch"], current, parts["weights"], parts.get("remembered"))
