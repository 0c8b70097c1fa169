"""Twins that are made again as the training goes on: on which model, within which budget, and to the same bits."""

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lordfast.adapter import LordConfig
from lordfast.attacks.budget import Budget
from lordfast.attacks.engine import PgdSettings, perturb
from lordfast.attacks.pgd import LdmLoss
from lordfast.data import list_images, load_image, save_png
from lordfast.defense import adversaries as adversaries_module
from lordfast.defense.adversaries import assignment
from lordfast.defense.stage1 import Stage1Config, run_stage1
from lordfast.defense.twins import Refreshing, check_refresh
from lordfast.training.interrupt import Interrupted

# Four images one by one: an epoch is four steps, and the second is reached.
WORDS = ("pgd,eps=2/255", "pgd,eps=6/255,targeted=true")


@pytest.fixture
def stage1(tmp_path: Path, faces: Path) -> Callable[..., Stage1Config]:
    def make(folder: str, **settings: Any) -> Stage1Config:
        defaults: dict[str, Any] = {
            "out": tmp_path / folder,
            "model": "demo",
            "data": faces,
            "target_modules": ("to_q",),
            "steps": 6,
            "batch_size": 1,
            "attack_steps": 1,
            "step_size": "8/255",
            "attack_batch_size": 1,
            "lr": 1e-2,
            "device": "cpu",
            "tensorboard": False,
            "refresh_every": 1,
        }
        return Stage1Config(**(defaults | settings))

    return make


def _files(folder: Path) -> dict[str, bytes]:
    paths = [folder / "lord.safetensors", folder / "metrics.jsonl", *sorted((folder / "perturbed").rglob("*.png"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_run_with_refreshes_resumes_to_the_same_bits_and_keeps_the_budgets(
    stage1: Any,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ctrl_c_at: Callable[[int], AbstractContextManager[None]],
) -> None:
    run_stage1(stage1("straight", steps=7, adversaries=WORDS))
    config = stage1("broken", steps=7, adversaries=WORDS)

    # First Ctrl-C: in the middle of the refresh, between whose images and the last regular checkpoint are four steps.
    def press(image: np.ndarray, path: Path) -> None:
        save_png(image, path)
        if path.parent.name == "epoch-001":
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after 1 of 2 batches"):
        patch.setattr("lordfast.training.results.save_png", press)
        run_stage1(config)
    assert len(list((config.out / "perturbed" / "epoch-001").glob("*.png"))) == 1
    config.resume = True
    # Second Ctrl-C: in the middle of the epoch after it.
    with ctrl_c_at(5), pytest.raises(Interrupted, match="after step 6 of 7"):
        run_stage1(config)
    run_stage1(config)
    straight, broken = _files(tmp_path / "straight"), _files(tmp_path / "broken")
    assert straight == broken and len(straight) == 2 + 4 + 4

    clean = [load_image(record.path).astype(int) for record in list_images(faces)]
    for refresh, name in enumerate(("epoch-000", "epoch-001")):
        whose = assignment(4, 2, config.seed, refresh)
        for i, which in enumerate(whose):
            change = np.abs(load_image(config.out / "perturbed" / name / f"{i:06d}.png") - clean[i]).max()
            assert change == (2, 6)[which]


def test_a_refresh_attacks_the_model_with_the_lord_of_that_moment(stage1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[dict[str, Tensor], Tensor]] = []

    class Recording(LdmLoss):
        def __call__(self, model: Any, inputs: Any) -> Tensor:
            lord = {n: p.detach().clone() for n, p in model.unet.named_parameters() if ".lord_" in n}
            seen.append((lord, inputs.noise.clone()))
            return super().__call__(model, inputs)

    monkeypatch.setattr(adversaries_module, "pgd_loss", lambda config: Recording())
    config = stage1("run", attack_batch_size=4)
    run_stage1(config)
    (at_first, noise), (later, other_noise) = seen
    assert at_first == {}
    # The checkpoint that a refresh leaves before it.
    saved = load_file(config.out / "checkpoints" / "step-00000004" / "weights.safetensors")
    saved = {name.removeprefix("unet."): value for name, value in saved.items()}
    assert later.keys() == saved.keys() and all(torch.equal(later[name], saved[name]) for name in saved)
    assert any(value.any() for name, value in later.items() if "lord_B." in name)
    assert not torch.equal(noise, other_noise)
    final = load_file(config.out / "lord.safetensors")
    assert any(not torch.equal(value, final[name.removesuffix(".lord")]) for name, value in later.items())


def test_an_attack_on_a_lord_in_training_takes_the_image_s_gradient_alone(demo_model: Any) -> None:
    unet = demo_model.unet
    with torch.random.fork_rng():
        unet.add_adapter(LordConfig(r=2, target_modules=["to_q"], init_weights=False), adapter_name="lord")

    def trained() -> set[str]:
        return {name for name, parameter in unet.named_parameters() if parameter.requires_grad}

    before = trained()
    calls = 0

    class Watched(LdmLoss):
        def __call__(self, model: Any, inputs: Any) -> Tensor:
            nonlocal calls
            calls += 1
            value = super().__call__(model, inputs)
            nodes = [value.grad_fn]
            seen = set(nodes)
            for node in nodes:
                new = {after for after, _ in node.next_functions if after is not None} - seen
                seen |= new
                nodes += new
            # The whole graph of the loss has one leaf, the image.
            leaves = [node.variable for node in nodes if hasattr(node, "variable")]
            assert [leaf.shape for leaf in leaves] == [inputs.original.shape]
            if calls == 3:
                raise RuntimeError("in the middle")
            return value

    settings = PgdSettings(budget=Budget(8 / 255, 4 / 255), steps=2)
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    arguments = (demo_model, [image], demo_model.embed(["a photo"]))
    found = perturb(*arguments, Watched(), settings)
    assert trained() == before and before
    with pytest.raises(RuntimeError, match="in the middle"):
        perturb(*arguments, Watched(), settings)
    assert trained() == before and all(parameter.grad is None for parameter in unet.parameters())
    unet.requires_grad_(False)
    np.testing.assert_array_equal(found, perturb(*arguments, LdmLoss(), settings))
    assert np.abs(found - image).max() > 4


def test_refreshes_that_never_come_are_refused_before_anything_is_written(stage1: Any) -> None:
    config = stage1("run", refresh_every=2)
    with pytest.raises(ValueError, match="refresh_every: expected at most 1, .*got 2 epochs, .* 6 steps on 4 examples"):
        run_stage1(config)
    assert not config.out.exists()
    # Ten examples by fours: the last of ten steps begins with example 36, the last of three epochs' 8 with 28.
    for settings, most in (({"steps": 10}, 3), ({"epochs": 3}, 2), ({"epochs": 1}, 0), ({"steps": 1}, 0)):
        settings |= {"batch_size": 2, "accumulate": 2}
        for every in range(most + 1):
            check_refresh(stage1("run", **{**settings, "refresh_every": every}), 10)
        with pytest.raises(ValueError, match=f"at most {most}" if most else "expected a longer run, or 0; got 1"):
            check_refresh(stage1("run", **{**settings, "refresh_every": most + 1}), 10)


class _Twins:
    """Stands for the twins: says which refreshes were asked for."""

    def __init__(self, kept: bool) -> None:
        self.kept, self.made = kept, []

    def are_kept(self, refresh: int) -> bool:
        return self.kept

    def folder(self, refresh: int) -> Path:
        return Path(f"epoch-{refresh}")

    def make(self, refresh: int) -> list[np.ndarray]:
        self.made.append(refresh)
        return []


def test_refreshes_come_at_the_first_step_of_an_epoch(stage1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lordfast.defense.twins.LatentStore", SimpleNamespace(of=lambda *_: "latents"))
    config = stage1("run", batch_size=2, accumulate=2, refresh_every=3)
    batches: Any = type("Ten", (), {"__len__": lambda self: 10, "perturbed": "first"})()
    settled: list[int] = []
    twins: Any = _Twins(kept=True)
    refreshing = Refreshing(twins, batches, None, config, lambda: settled.append(1))  # type: ignore[arg-type]
    # Four examples a step: epoch 3 begins with example 30, in step 7, whose first one is of epoch 2 still.
    assert [step for step in range(24) if refreshing.due(step)] == [8, 15, 23]
    refreshing(0)
    assert twins.made == [] and batches.perturbed == "first"
    for step in (8, 12, 15):
        refreshing(step)
    assert twins.made == [1, 1, 2] and batches.perturbed == "latents" and len(settled) == 3
    twins.kept = False
    refreshing(8)
    with pytest.raises(ValueError, match="resume: epoch-1 lacks twins, .* trained since"):
        refreshing(9)
