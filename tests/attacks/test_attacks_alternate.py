"""Alternating attacks: what is trained, on which images, how often, what is put back and what persists."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lordfast.attacks.alternate import Moment, check_schedule, run_schedule
from lordfast.attacks.protocol import Perturb, Phase, Recall, Remember, Train
from lordfast.attacks.registry import ATTACKS
from lordfast.training.interrupt import Interrupted

COMMON: dict[str, Any] = {"model": "demo", "images": Path("."), "out": Path(".")}


class Recorder:
    """A surrogate whose weight is the list of what it was trained on, as a number; training appends a digit."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.weight = 1

    def train(self, pixels: Sequence[Tensor], steps: int, phase: int) -> None:
        # The images' mean tells how often they were perturbed: each image step adds 1.
        self.events.append(("train", steps, [int(image.mean()) for image in pixels], phase))
        self.weight = 10 * self.weight + steps

    def state(self) -> dict[str, Tensor]:
        return {"weight": torch.tensor(self.weight)}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.weight = int(state["weight"])
        self.events.append(("restore", self.weight))

    def text(self, captions: Sequence[str]) -> dict[str, Tensor]:
        return {}

    def precision(self) -> Any:
        return nullcontext()


class Stop(Exception):
    pass


ORIGINALS = [torch.zeros(2, 3, 2, 2), torch.zeros(1, 3, 2, 2)]


def run(
    phases: Sequence[Phase], moment: Moment | None = None, stop_after: int | None = None
) -> tuple[Recorder, list[Tensor], list[Moment]]:
    """The recorder, the images at the end, and every moment that could be saved."""
    surrogate, moments = Recorder(), []

    def perturb(batch: int, x: Tensor, steps: int, phase: int) -> Tensor:
        surrogate.events.append(("perturb", batch, steps, surrogate.weight, phase))
        return x + steps

    def save(finished: int, make: Any) -> None:
        moments.append(make())
        assert finished == moments[-1].phase
        if len(moments) == stop_after:
            raise Stop

    start = moment or Moment(0, 0, ORIGINALS, surrogate.state())
    try:
        end = run_schedule(phases, start, ORIGINALS, surrogate, perturb, save)
    except Stop:
        end = []
    return surrogate, end, moments


def test_aspl() -> None:
    config = ATTACKS["aspl"].config(**COMMON, rounds=2, train_steps=3, attack_steps=6)
    surrogate, end, _ = run(ATTACKS["aspl"].schedule(config))
    assert surrogate.events == [
        ("restore", 1),
        # The copy is trained on the clean images, attacked and dropped.
        ("train", 3, [0, 0, 0], 1),
        ("perturb", 0, 6, 13, 2),
        ("perturb", 1, 6, 13, 2),
        ("restore", 1),
        # What persists is trained on the perturbed images.
        ("train", 3, [6, 6, 6], 4),
        ("train", 3, [0, 0, 0], 6),
        ("perturb", 0, 6, 133, 7),
        ("perturb", 1, 6, 133, 7),
        ("restore", 13),
        ("train", 3, [12, 12, 12], 9),
    ]
    assert surrogate.weight == 133
    assert [int(batch.mean()) for batch in end] == [12, 12]


@pytest.mark.parametrize("name", ["ace", "ace-plus"])
def test_ace(name: str) -> None:
    config = ATTACKS[name].config(**COMMON, rounds=3, train_steps=2, attack_steps=4)
    surrogate, end, _ = run(ATTACKS[name].schedule(config))
    assert surrogate.events == [
        ("restore", 1),
        ("perturb", 0, 4, 1, 0),
        ("perturb", 1, 4, 1, 0),
        ("train", 2, [4, 4, 4], 1),
        ("perturb", 0, 4, 12, 2),
        ("perturb", 1, 4, 12, 2),
        ("train", 2, [8, 8, 8], 3),
        ("perturb", 0, 4, 122, 4),
        ("perturb", 1, 4, 122, 4),
        ("train", 2, [12, 12, 12], 5),
    ]
    assert surrogate.weight == 1222, "nothing is put back"
    assert [int(batch.mean()) for batch in end] == [12, 12]


def test_fsmg() -> None:
    config = ATTACKS["fsmg"].config(**COMMON, train_steps=7, attack_steps=5)
    surrogate, _, _ = run(ATTACKS["fsmg"].schedule(config))
    assert surrogate.events == [
        ("restore", 1),
        ("train", 7, [0, 0, 0], 0),
        ("perturb", 0, 5, 17, 1),
        ("perturb", 1, 5, 17, 1),
    ]


@pytest.mark.parametrize("name", ["aspl", "ace", "fsmg"])
def test_any_moment_leads_to_the_same_end(name: str) -> None:
    fields = {"rounds": 2, "train_steps": 3, "attack_steps": 6}
    if name == "fsmg":
        del fields["rounds"]
    phases = ATTACKS[name].schedule(ATTACKS[name].config(**COMMON, **fields))
    whole, end, moments = run(phases)
    for count in range(1, len(moments)):
        _, _, before = run(phases, stop_after=count)
        assert len(before) == count
        again, images, after = run(phases, before[-1])
        assert len(after) == len(moments) - count
        # First it takes the saved weights; then it does exactly what was still to come.
        left = len(again.events) - 1
        assert again.events[1:] == whole.events[len(whole.events) - left :]
        assert again.weight == whole.weight
        assert all(map(torch.equal, images, end))


def test_a_moment_is_not_changed_by_what_follows() -> None:
    _, _, moments = run([Perturb(1), Perturb(1)])
    assert [[int(batch.mean()) for batch in moment.current] for moment in moments] == [[1, 0], [1, 1], [2, 1], [2, 2]]
    assert [(moment.phase, moment.batch) for moment in moments] == [(0, 1), (1, 0), (1, 1), (2, 0)]


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ([Recall()], "phase 1 recalls weights that no earlier phase remembered"),
        ([Remember(), Recall(), Recall()], "phase 3 recalls"),
        ([Perturb(-1)], "steps: expected 0 or more in phase 1"),
        ([Train("clean", -2)], "steps: expected 0 or more in phase 1"),
    ],
)
def test_schedules_that_make_no_sense(phases: list[Phase], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_schedule(phases)
    with pytest.raises(ValueError, match=message):
        run(phases)


def test_training_that_is_interrupted_begins_again() -> None:
    phases = [Perturb(1), Train("perturbed", 2), Perturb(1)]
    whole, end, _ = run(phases)

    class Halted(Recorder):
        def train(self, pixels: Sequence[Tensor], steps: int, phase: int) -> None:
            self.weight = 99
            raise Interrupted("after step 1 of 2")

    moments: list[Moment] = []
    halted = Halted()
    with pytest.raises(Interrupted, match="after step 1 of 2"):
        run_schedule(
            phases,
            Moment(0, 0, ORIGINALS, halted.state()),
            ORIGINALS,
            halted,
            lambda batch, x, steps, phase: x + steps,
            lambda finished, make: moments.append(make()),
        )
    assert (moments[-1].phase, moments[-1].batch) == (1, 0)
    assert int(moments[-1].weights["weight"]) == 1, "the weights from before the phase"
    again, images, _ = run(phases, moments[-1])
    assert again.weight == whole.weight and all(map(torch.equal, images, end))
