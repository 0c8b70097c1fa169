"""A schedule of phases on a surrogate: images and weights move in turn, and can be saved and gone on from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lordfast.attacks.protocol import Perturb, Phase, Recall, Remember, Train
from lordfast.attacks.surrogate import Surrogate
from lordfast.training.interrupt import Interrupted
from lordfast.training.team import Team


@dataclass
class Moment:
    """Everything that an interrupted schedule needs to go on bit for bit.

    Attributes:
        phase, batch: what comes next: the index of a phase and, while it perturbs, of a batch of images.
        current: the images as they are, a tensor (B, 3, H, W) in [-1, 1] for each batch, on the CPU.
        weights: the surrogate's state.
        remembered: the state that the next `Recall` puts back, if there is one.
    """

    phase: int
    batch: int
    current: list[Tensor]
    weights: dict[str, Tensor]
    remembered: dict[str, Tensor] | None = None


def check_schedule(phases: Sequence[Phase]) -> None:
    """Raise ValueError for negative numbers of steps, or a `Recall` of what was not remembered."""
    remembered = False
    for number, phase in enumerate(phases):
        if isinstance(phase, Perturb | Train) and phase.steps < 0:
            raise ValueError(f"steps: expected 0 or more in phase {number + 1} ({phase}), got {phase.steps}")
        if isinstance(phase, Recall) and not remembered:
            raise ValueError(f"schedule: phase {number + 1} recalls weights that no earlier phase remembered")
        remembered = isinstance(phase, Remember) or (remembered and not isinstance(phase, Recall))


def run_schedule(
    phases: Sequence[Phase],
    moment: Moment,
    originals: Sequence[Tensor],
    surrogate: Surrogate,
    perturb: Callable[[int, Tensor, int, int], Tensor],
    save: Callable[[int, Callable[[], Moment]], None],
    team: Team | None = None,
) -> list[Tensor]:
    """Run what is left of `phases` from `moment` on, whose weights the surrogate takes first.

    Args:
        originals: the clean images, batches like ``moment.current``.
        perturb: (batch index, its images, steps, phase index) -> the images after that many image steps.
        save: called with the number of finished phases and what makes the `Moment`, wherever one can be gone on from:
            after each batch, after each phase, and before a phase of training that was interrupted. What it raises
            ends the schedule.
        team: processes that run the schedule together: each perturbs its share of the batches, and all of them go
            through everything else.

    Returns:
        The perturbed images, batches like `originals`.
    """
    check_schedule(phases)
    surrogate.restore(moment.weights)
    remembered, current = moment.remembered, list(moment.current)
    team = team or Team()

    def saved(phase: int, batch: int = 0) -> None:
        save(phase, lambda: Moment(phase, batch, list(current), surrogate.state(), remembered))

    def several(first: int, steps: int, phase: int) -> list[Tensor]:
        """As many batches as there are processes, from `first` on, or what is left of them."""
        mine = first + team.rank
        found = team.on_all(lambda: perturb(mine, current[mine], steps, phase) if mine < len(current) else None)
        return [images for images in found if images is not None]

    for number in range(moment.phase, len(phases)):
        phase = phases[number]
        if isinstance(phase, Perturb):
            first = moment.batch if number == moment.phase else 0
            for batch in range(first, len(current), team.size):
                current[batch : batch + team.size] = several(batch, phase.steps, number)
                if batch + team.size < len(current):
                    saved(number, batch + team.size)
        elif isinstance(phase, Train):
            images = originals if phase.on == "clean" else current
            before = surrogate.state()
            try:
                surrogate.train([image for batch in images for image in torch.unbind(batch)], phase.steps, number)
            except Interrupted:
                surrogate.restore(before)
                saved(number)
                raise
        elif isinstance(phase, Remember):
            remembered = surrogate.state()
        elif remembered is not None:
            surrogate.restore(remembered)
            remembered = None
        saved(number + 1)
    return current
