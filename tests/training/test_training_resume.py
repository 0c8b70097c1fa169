"""Bits after an interruption: the toy trained straight through and in two parts."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lordfast.training.interrupt import Interrupted, StopOnSignal

SCHEDULES = ["constant", "constant_with_warmup", "linear", "cosine", "polynomial"]


def _weights(objective: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in objective.named_parameters()}


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = _weights(a), _weights(b)
    return all(torch.equal(first[name], second[name]) for name in first)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_resumed_run_ends_bit_equal(
    toy: Any, interrupt_after: Any, tmp_path: Path, schedule: str, dropout: float
) -> None:
    settings = {"lr_schedule": schedule, "warmup_steps": 0 if schedule == "constant" else 3, "steps": 7}
    straight, _, whole = toy("straight", objective=toy.Objective(dropout), **settings)
    with pytest.raises(Interrupted) as caught:
        toy("broken", objective=toy.Objective(dropout), on_step=interrupt_after(2), **settings)
    assert caught.value.done == "after step 3 of 7"
    torch.manual_seed(99)
    resumed, batches, result = toy("broken", objective=toy.Objective(dropout), resume=True, **settings)
    assert len(batches.drawn) == 4 * 4  # steps 4 to 7 only
    assert _same(straight, resumed)
    assert (tmp_path / "straight/metrics.jsonl").read_bytes() == (tmp_path / "broken/metrics.jsonl").read_bytes()
    assert result["loss"] == whole["loss"]


def test_a_killed_run_goes_on_from_its_last_checkpoint(toy: Any, tmp_path: Path) -> None:
    def die(step: int, last: bool) -> None:
        if step == 5:
            raise MemoryError

    straight, _, _ = toy("straight", checkpoint_every=3)
    with pytest.raises(MemoryError):
        toy("broken", checkpoint_every=3, on_step=die)
    assert len(_rows(tmp_path / "broken")) == 4  # of step 5 nobody has read the row yet
    resumed, batches, _ = toy("broken", checkpoint_every=3, resume=True)
    assert len(batches.drawn) == 3 * 4
    assert _same(straight, resumed)
    assert (tmp_path / "straight/metrics.jsonl").read_bytes() == (tmp_path / "broken/metrics.jsonl").read_bytes()


def test_resume_refuses_other_data_and_other_weights(toy: Any, interrupt_after: Any) -> None:
    with pytest.raises(Interrupted):
        toy("run", on_step=interrupt_after(1))
    with pytest.raises(ValueError, match=r"trained with examples 10, now it is 11"):
        toy("run", resume=True, batches=toy.Batches(11))
    other = toy.Objective()
    other.frozen.requires_grad_(True)
    with pytest.raises(ValueError, match="other weights than this run trains, such as frozen"):
        toy("run", resume=True, objective=other)


def test_a_finished_run_that_is_resumed_trains_nothing(toy: Any, tmp_path: Path) -> None:
    first, _, before = toy("run")
    again, batches, after = toy("run", resume=True)
    assert batches.drawn == [] and _same(first, again)
    assert after["loss"] == before["loss"]
    assert len(_rows(tmp_path / "run")) == 6


def test_a_second_ctrl_c_does_not_wait(toy: Any) -> None:
    def twice(step: int, last: bool) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)  # ignored in a job that a shell started in the background
    with pytest.raises(KeyboardInterrupt):
        toy("run", on_step=twice)
    assert signal.getsignal(signal.SIGINT) is before


def test_the_first_request_is_acknowledged_once(capfd: pytest.CaptureFixture[str]) -> None:
    with StopOnSignal():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert capfd.readouterr().err.count("Stopping at the next safe point") == 1


def test_sigterm_after_ctrl_c_and_the_launcher_s_copies_are_no_second_request(monkeypatch: pytest.MonkeyPatch) -> None:
    with StopOnSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.requested
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with StopOnSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert stop.requested


def test_ctrl_c_in_the_last_step_finishes_the_run(toy: Any, interrupt_after: Any) -> None:
    assert toy("run", steps=2, on_step=interrupt_after(2))[2]["steps"] == 2


def test_tensorboard_holds_the_curves_also_of_an_interrupted_run(
    toy: Any, interrupt_after: Any, tmp_path: Path
) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(Interrupted):
        toy("run", tensorboard=True, on_step=interrupt_after(2))
    toy("run", tensorboard=True, resume=True)
    toy("quiet", tensorboard=False)
    board = events.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    found = {event.step: event.value for event in board.Scalars("loss")}
    assert found == pytest.approx({row["step"]: row["loss"] for row in _rows(tmp_path / "run")})
    assert len(board.Scalars("loss")) == 6
    assert not (tmp_path / "quiet" / "tensorboard").exists()
