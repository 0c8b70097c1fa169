"""What a caller adds to the loop: work after each update, state that checkpoints keep, and AdamW's second decay."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lordfast.demo.pretrain.average import Average


class Log:
    """Remembers the weights' sum after every update, and keeps that in checkpoints."""

    def __init__(self, objective: torch.nn.Module) -> None:
        self.objective = objective
        self.sums: list[float] = []

    def note(self) -> None:
        self.sums.append(float(sum(p.double().sum() for p in self.objective.parameters())))

    def state_dict(self) -> dict[str, Any]:
        return {"sums": list(self.sums)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sums = list(state_dict["sums"])


def test_after_update_sees_each_steps_weights_and_comes_before_on_step(toy: Any) -> None:
    objective = toy.Objective()
    log, order = Log(objective), []

    def after() -> None:
        log.note()
        order.append("update")

    toy(objective=objective, after_update=after, on_step=lambda step, last: order.append(step), steps=3)
    assert order == ["update", 1, "update", 2, "update", 3]
    assert len(set(log.sums)) == 3
    log.note()
    assert log.sums[-1] == log.sums[-2]


def test_checkpoints_keep_extras_and_a_resumed_run_restores_them(toy: Any) -> None:
    class Stop(Exception):
        pass

    def halt(step: int, last: bool) -> None:
        if step == 5:
            raise Stop

    def fresh() -> tuple[Any, Log, Average]:
        objective = toy.Objective()
        return objective, Log(objective), Average(objective, 0.7)

    def run(folder: str, parts: tuple[Any, Log, Average], **more: Any) -> None:
        objective, log, average = parts

        def after() -> None:
            log.note()
            average.update()

        extras = {"log": log, "average": average}
        toy(folder, objective=objective, after_update=after, extras=extras, steps=9, checkpoint_every=2, **more)

    whole, cut, resumed = fresh(), fresh(), fresh()
    run("whole", whole)
    with pytest.raises(Stop):
        run("cut", cut, on_step=halt)
    # The checkpoint is step 4's; step 5 is done again.
    run("cut", resumed, resume=True)
    assert resumed[1].sums == whole[1].sums
    assert len(whole[1].sums) == 9
    with whole[2].applied(), resumed[2].applied():
        for one, other in zip(whole[0].parameters(), resumed[0].parameters(), strict=True):
            assert torch.equal(one, other)


def test_the_average_is_applied_and_taken_off_again(toy: Any) -> None:
    objective = toy.Objective()
    average = Average(objective, 0.7)
    trained = [p for p in objective.parameters() if p.requires_grad]
    expected, step = [p.detach().clone() for p in trained], 0

    def after() -> None:
        nonlocal step, expected
        average.update()
        step += 1
        # EMAModel's warm-up: (1 + n) / (10 + n) before the n-th update, at most the decay.
        decay = 0.0 if step == 1 else min(0.7, step / (9 + step))
        expected = [decay * old + (1 - decay) * new.detach() for old, new in zip(expected, trained, strict=True)]

    toy(objective=objective, after_update=after, steps=8)
    own = [p.detach().clone() for p in trained]
    with average.applied():
        for value, wanted, before in zip(trained, expected, own, strict=True):
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)
            assert not torch.equal(value, before)
    for value, before in zip(trained, own, strict=True):
        assert torch.equal(value, before)


def test_adam_beta2_is_that_of_adamw(toy: Any, tmp_path: Path) -> None:
    one, _, _ = toy(steps=5, adam_beta2=0.9, weight_decay=0.0, clip_norm=0.0)
    other, _, _ = toy(steps=5, adam_beta2=0.999, weight_decay=0.0, clip_norm=0.0)
    objective, batches = toy.Objective(), toy.Batches()
    recorded: list[Any] = []

    class Recording:
        def __len__(self) -> int:
            return len(batches)

        def __call__(self, indices: Any, generators: Any) -> Any:
            recorded.append(batches(indices, generators))
            return recorded[-1]

    toy(objective=toy.Objective(), batches=Recording(), steps=5)
    optimizer = torch.optim.AdamW(objective.net.parameters(), lr=1e-2, betas=(0.9, 0.9), weight_decay=0.0)
    for batch in recorded:
        optimizer.zero_grad()
        objective(**batch)["loss"].backward()
        optimizer.step()
    for mine, theirs, default in zip(one.parameters(), objective.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
        if mine.requires_grad:
            assert not torch.equal(mine, default)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1.0, "at least 0 and less than 1"), (-0.1, "at least 0"), (float("nan"), "a finite number")],
)
def test_adam_beta2_out_of_range(toy: Any, value: float, expected: str) -> None:
    with pytest.raises(ValueError, match=f"adam_beta2: expected {expected}"):
        toy(adam_beta2=value)
