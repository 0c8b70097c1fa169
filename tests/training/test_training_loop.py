"""The loop on a toy: data order, accumulation, clipping, schedules, bits after a resume, signals, failures."""

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from lordfast.training.loop import TrainingConfig, check_training, total_steps
from lordfast.training.seeds import derived_generator

SCHEDULES = ["constant", "constant_with_warmup", "linear", "cosine", "polynomial"]


def _weights(objective: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in objective.named_parameters()}


def _same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = _weights(a), _weights(b)
    return all(torch.equal(first[name], second[name]) for name in first)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_example_comes_once_an_epoch_in_a_new_order(toy: Any) -> None:
    _, batches, result = toy(steps=10, batch_size=2)
    first, second = batches.drawn[:10], batches.drawn[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second and first != list(range(10))
    assert result["steps"] == 10


def test_epochs_decide_the_number_of_steps(toy: Any) -> None:
    _, batches, result = toy(steps=999, epochs=3, batch_size=4)
    # 30 examples in batches of 4: the last one begins the next epoch.
    assert result["steps"] == 8
    assert min(Counter(batches.drawn).values()) == 3
    config = TrainingConfig(out=Path("x"), epochs=3, batch_size=4, accumulate=2)
    assert total_steps(config, 10, processes=3) == 2


def test_accumulation_draws_the_same_examples_and_gives_the_same_weights(toy: Any, tmp_path: Path) -> None:
    whole, drawn_whole, _ = toy("whole", batch_size=4)
    split, drawn_split, _ = toy("split", batch_size=2, accumulate=2)
    assert drawn_whole.drawn == drawn_split.drawn
    for name, value in _weights(whole).items():
        torch.testing.assert_close(_weights(split)[name], value, rtol=1e-5, atol=1e-6)
    # Adam does not see the gradient's scale, its norm does.
    for a, b in zip(_rows(tmp_path / "whole"), _rows(tmp_path / "split"), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    one, _, _ = toy(batch_size=2)
    assert not torch.allclose(one.net[0].weight, whole.net[0].weight, rtol=1e-3)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(toy: Any) -> None:
    a, b, c = toy()[0], toy()[0], toy(seed=1)[0]
    assert _same(a, b)
    assert not _same(a, c)


def test_only_what_requires_a_gradient_moves(toy: Any, tmp_path: Path) -> None:
    objective, _, _ = toy("run")
    assert objective.frozen.tolist() == [1.0, 1.0]
    from lordfast.training.checkpoint import latest_checkpoint, load_checkpoint

    found = latest_checkpoint(tmp_path / "run" / "checkpoints")
    assert found is not None and "frozen" not in load_checkpoint(found)[1]


def test_clipping_bounds_the_step_that_sgd_would_take(
    toy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat(gradients).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    toy("clipped", clip_norm=0.01, steps=3)
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)
    logged = [row["grad_norm"] for row in _rows(tmp_path / "clipped")]
    assert min(logged) > 0.1  # what is logged is the norm before clipping
    norms.clear()
    toy("free", clip_norm=0, steps=3)
    assert norms == pytest.approx([row["grad_norm"] for row in _rows(tmp_path / "free")])


def test_the_loop_is_adamw_on_the_mean_loss(toy: Any) -> None:
    objective, batches, _ = toy(steps=4, lr=1e-2, weight_decay=0.3, clip_norm=0.5)
    plain = toy.Objective()
    optimizer = torch.optim.AdamW([p for p in plain.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.3)
    drawn = iter(batches.drawn)
    for step in range(4):
        indices = [next(drawn) for _ in range(4)]
        generators = [derived_generator(0, "draw", step, slot) for slot in range(4)]
        optimizer.zero_grad()
        plain(**batches(indices, generators))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(plain.net.parameters(), 0.5)
        optimizer.step()
    for name, value in _weights(plain).items():
        torch.testing.assert_close(_weights(objective)[name], value)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_learning_rates_follow_the_schedule(toy: Any, tmp_path: Path, schedule: str) -> None:
    warmup = 0 if schedule == "constant" else 2
    toy("run", lr_schedule=schedule, warmup_steps=warmup, steps=6, lr=1.0e-3)
    rates = [row["lr"] * 1e3 for row in _rows(tmp_path / "run")]
    falling = [1 - k / 4 for k in range(4)]
    expected = {
        "constant": [1.0] * 6,
        "constant_with_warmup": [0, 0.5, 1, 1, 1, 1],
        "linear": [0, 0.5, *falling],
        "cosine": [0, 0.5, *[0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]],
        "polynomial": [0, 0.5, *[1e-4 + (1 - 1e-4) * share for share in falling]],
    }
    assert rates == pytest.approx(expected[schedule], abs=1e-6)


def test_a_nan_loss_stops_before_the_weights_take_it(toy: Any, tmp_path: Path) -> None:
    class Breaks(toy.Batches):  # type: ignore[misc, name-defined]
        calls = 0

        def __call__(self, indices: Any, generators: Any) -> dict[str, Any]:
            self.calls += 1
            batch = super().__call__(indices, generators)
            return batch | {"y": batch["y"] * (float("nan") if self.calls == 3 else 1)}

    objective = toy.Objective()
    with pytest.raises(ValueError, match=r"loss: became nan at step 3"):
        toy("run", objective=objective, batches=Breaks())
    assert all(value.isfinite().all() for value in objective.parameters())
    assert len(_rows(tmp_path / "run")) == 2


def test_an_infinite_gradient_stops_too(toy: Any) -> None:
    objective = toy.Objective()
    objective.net[0].weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(ValueError, match="grad_norm: became (nan|inf) at step 1"):
        toy(objective=objective, clip_norm=0)
    assert all(value.isfinite().all() for value in objective.parameters())


def test_on_step_counts_from_one_and_knows_the_last(toy: Any) -> None:
    seen: list[tuple[int, bool]] = []
    toy(steps=3, on_step=lambda step, last: seen.append((step, last)))
    assert seen == [(1, False), (2, False), (3, True)]


def test_metrics_hold_a_row_a_step_with_every_metric_of_the_objective(toy: Any, tmp_path: Path) -> None:
    toy("run", steps=3, accumulate=2)
    rows = _rows(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2, 3]
    for row in rows:
        assert row["doubled"] == pytest.approx(2 * row["loss"])
        assert row["lr"] == 1e-2 and row["grad_norm"] > 0


def test_an_update_that_breaks_the_weights_is_never_saved(toy: Any, tmp_path: Path) -> None:
    # The loss of the last step is fine: it was taken before the update.
    with pytest.raises(ValueError, match="step 1: its update made weights NaN or infinite, such as net"):
        toy("run", steps=1, lr=1e38, weight_decay=10.0)
    assert not list((tmp_path / "run").rglob("step-*"))


def test_what_a_launcher_left_in_the_environment_changes_nothing(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = toy("plain", accumulate=2)[0]
    variables = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_USE_MEGATRON_LM": "true",
        "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
        "ACCELERATE_TORCH_DEVICE": "meta",
        "ACCELERATE_FP8_BACKEND": "TE",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    launched = toy("launched", accumulate=2)[0]
    for name, value in plain.named_parameters():
        assert torch.equal(dict(launched.named_parameters())[name], value)
    assert {name: os.environ[name] for name in variables} == variables
    recorded = json.loads((tmp_path / "launched" / "environment.json").read_text())["variables"]
    assert recorded.items() >= variables.items()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"batch_size": -1}, "batch_size: expected at least 1, got -1"),
        ({"lr": float("nan")}, "lr: expected a finite number, got nan"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"keep_checkpoints": 0}, "keep_checkpoints"),
        ({"warmup_steps": 5}, "warmup_steps: lr_schedule constant has no warm-up"),
        ({"lr_schedule": "step"}, "lr_schedule: expected one of constant"),
    ],
)
def test_settings_no_loop_can_run_with(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_training(TrainingConfig(out=Path("x"), **settings))
