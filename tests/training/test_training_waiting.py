"""No step makes the host wait for the device, batches are made ahead, and numbers come a step late but all come."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lordfast.training import step as steps
from lordfast.training.ahead import made_ahead
from lordfast.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from lordfast.training.interrupt import Interrupted
from lordfast.training.later import Later

# AdamW's kernel for CPUs reads its step counters and its flag, which live on the host there.
_ADAMW = "torch/optim"
_DATA_THREAD = "concurrent/futures/thread.py"


@pytest.fixture
def watched_steps(host_reads: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[], AbstractContextManager[list[str]]]:
    """Collects every read of a value inside `Worker.step`."""
    step = steps.Worker.step

    @contextmanager
    def watch() -> Iterator[list[str]]:
        found: list[str] = []

        def watched(self: Any, *args: Any) -> Any:
            with host_reads(_ADAMW, _DATA_THREAD) as mine:
                row = step(self, *args)
            found.extend(mine)
            return row

        with monkeypatch.context() as patch:
            patch.setattr(steps.Worker, "step", watched)
            yield found

    return watch


def test_a_step_reads_no_value(toy: Any, watched_steps: Any) -> None:
    with watched_steps() as found:
        toy(steps=3, accumulate=2)
    assert found == []


READS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda t: t.item(),
    "float": float,
    "bool": bool,
    "tolist": lambda t: t.tolist(),
    "cpu": lambda t: t.cpu(),
    "numpy": lambda t: t.detach().numpy(),
    "mask": lambda t: t[None][torch.ones(1, dtype=torch.bool)],
    "select": lambda t: t.masked_select(t > 0),
    "unique": lambda t: t.unique(),
    "nonzero": lambda t: t[None].nonzero(),
    "equal": lambda t: torch.equal(t, t + 1),
}


@pytest.mark.parametrize("how", READS)
def test_a_planted_read_is_found(toy: Any, watched_steps: Any, how: str) -> None:
    class Reads(toy.Objective):  # type: ignore[misc, name-defined]
        def forward(self, **batch: Any) -> dict[str, Tensor]:
            out = super().forward(**batch)
            READS[how](out["loss"])
            return out

    with watched_steps() as found:
        toy(objective=Reads(), steps=2)
    assert len(found) >= 2


def test_a_checkpoint_of_the_unfused_optimizer_goes_on(toy: Any, interrupt_after: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        toy("old", on_step=interrupt_after(1))
    found = latest_checkpoint(tmp_path / "old" / "checkpoints")
    assert found is not None
    step, weights, state = load_checkpoint(found)
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = None
    save_checkpoint(tmp_path / "old" / "checkpoints", step, weights, state, keep=1)
    resumed, _, _ = toy("old", resume=True)
    straight, _, _ = toy("straight")
    assert all(map(torch.equal, resumed.parameters(), straight.parameters()))


def test_a_row_is_read_when_the_next_step_has_been_handed_in(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    step, read = steps.Worker.step, steps.Row.read
    monkeypatch.setattr(steps.Worker, "step", lambda self, k, *a: events.append(f"step {k + 1}") or step(self, k, *a))
    monkeypatch.setattr(steps.Row, "read", lambda self: events.append(f"read {self.step}") or read(self))
    toy(steps=3)
    assert events == ["step 1", "step 2", "read 1", "step 3", "read 2", "read 3"]


def test_after_a_bad_step_no_update_is_taken(toy: Any) -> None:
    """Neither that of the bad step, nor that of the next, which has been handed in before the loss was read."""

    class Breaks(toy.Batches):  # type: ignore[misc, name-defined]
        calls = 0

        def __call__(self, indices: Any, generators: Any) -> dict[str, Any]:
            self.calls += 1
            batch = super().__call__(indices, generators)
            return batch | {"y": batch["y"] * (float("nan") if self.calls == 3 else 1)}

    broken, whole = toy.Objective(), toy.Objective()
    with pytest.raises(ValueError, match="loss: became nan at step 3"):
        toy(objective=broken, batches=Breaks(), steps=6)
    toy(objective=whole, steps=2)
    for a, b in zip(broken.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)


def test_later_gives_what_went_in() -> None:
    values = {"a": torch.tensor(1.5, requires_grad=True), "b": torch.tensor([2], dtype=torch.int64)}
    assert Later(values).read() == {"a": 1.5, "b": 2.0}


def test_values_are_made_one_ahead_in_another_thread_and_in_order() -> None:
    made: list[int] = []
    threads: set[int] = set()
    started = threading.Semaphore(0)

    def make(key: int) -> int:
        threads.add(threading.get_ident())
        made.append(key)
        started.release()
        return key * 10

    values = made_ahead(make, range(5))
    for _ in range(2):  # the first that is asked for, and the one after it
        if not made:
            assert next(values) == 0
        started.acquire()
    assert made == [0, 1]
    assert list(values) == [10, 20, 30, 40]
    assert threading.get_ident() not in threads


def test_an_error_comes_where_its_value_would_have_come() -> None:
    def make(key: int) -> float:
        return 1 / key

    values = made_ahead(make, [2, 1, 0, 4])
    assert [next(values), next(values)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_closing_ends_the_thread() -> None:
    values = made_ahead(lambda key: key, range(1000))
    next(values)
    values.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lordfast-data")]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_never_waits_within_a_step(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = steps.Worker.step

    def strict(self: Any, *args: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return step(self, *args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(steps.Worker, "step", strict)
    toy(steps=3, device="cuda")
