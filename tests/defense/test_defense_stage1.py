"""Stage 1 on the embedded model: perturbations, training, saving, and the bits of a resumed run."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lordfast.adapter import load_lord
from lordfast.adapter.save_load import read_lord
from lordfast.data import list_images, load_image, save_png
from lordfast.defense import stage1 as module
from lordfast.defense.stage1 import Stage1Config, inject, run_stage1
from lordfast.diffusion import load_model
from lordfast.training.interrupt import Interrupted
from lordfast.training.run import RunFolder


@pytest.fixture
def stage1(tmp_path: Path, faces: Path) -> Callable[..., Stage1Config]:
    def make(folder: str = "stage1", **settings: Any) -> Stage1Config:
        defaults = {
            "out": tmp_path / folder,
            "model": "demo",
            "data": faces,
            "steps": 2,
            "batch_size": 2,
            "attack_steps": 2,
            "attack_batch_size": 2,
            "lr": 1e-3,
            "device": "cpu",
            "tensorboard": False,
        }
        return Stage1Config(**(defaults | settings))

    return make


def _bytes(folder: Path) -> list[bytes]:
    paths = [folder / "lord.safetensors", folder / "metrics.jsonl", *sorted((folder / "perturbed").glob("*.png"))]
    return [path.read_bytes() for path in paths]


def test_a_resumed_run_ends_bit_equal(
    stage1: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faces: Path
) -> None:
    run_stage1(stage1("straight", steps=3))
    config = stage1("broken", steps=3)

    # First Ctrl-C: while perturbing. Second: while training.
    def press_in_attack(image: np.ndarray, path: Path) -> None:
        save_png(image, path)
        signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after 1 of 2 batches"):
        patch.setattr(
            "lordfast.training.results.save_png",
            lambda i, p: press_in_attack(i, p) if p.name == "000000.png" else save_png(i, p),
        )
        run_stage1(config)
    assert len(list((config.out / "perturbed").glob("*.png"))) == 2
    config.resume = True
    log = RunFolder.log

    def press_in_training(self: RunFolder, row: dict[str, Any]) -> None:
        log(self, row)
        if row["step"] == 1:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step 2 of 3"):
        patch.setattr(RunFolder, "log", press_in_training)
        run_stage1(config)
    assert not (config.out / "lord.safetensors").exists()
    summary = run_stage1(config)
    assert _bytes(tmp_path / "straight") == _bytes(tmp_path / "broken")
    assert len(_bytes(tmp_path / "broken")) == 2 + 4
    assert summary["steps"] == 3 and summary["examples"] == 4
    assert run_stage1(config) == summary


def test_perturbed_images_obey_the_budget_and_keep_their_captions(stage1: Any, faces: Path) -> None:
    config = stage1(eps="3/255", step_size="4/255", attack_steps=2)
    run_stage1(config)
    clean = list_images(faces)
    perturbed = list_images(config.out / "perturbed")
    assert len(perturbed) == len(clean) == 4
    for before, after in zip(clean, perturbed, strict=True):
        change = np.abs(load_image(after.path).astype(int) - load_image(before.path).astype(int))
        assert 1 <= change.max() <= 3
        assert after.caption == before.caption
    rows = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert all(row.keys() >= {"loss", "ldm_clean", "ldm_perturbed", "detection", "lr"} for row in rows)


def test_only_lord_moves_and_what_is_saved_is_what_was_trained(
    stage1: Any, monkeypatch: pytest.MonkeyPatch, demo_model: Any, tmp_path: Path
) -> None:
    models: list[Any] = []
    start: dict[str, torch.Tensor] = {}

    def keep(model: Any, config: Stage1Config) -> None:
        inject(model, config)
        models.append(model)
        start.update({name: value.detach().clone() for name, value in model.unet.named_parameters()})

    monkeypatch.setattr(module, "inject", keep)
    run_stage1(stage1(steps=3, weight_decay=0.3))
    base = demo_model.unet.state_dict()
    now = models[0].unet.state_dict()
    plain = {name.replace(".base_layer", ""): value for name, value in now.items() if ".lord_" not in name}
    assert plain.keys() == base.keys()
    assert all(torch.equal(plain[name], base[name]) for name in base)
    trained = {n: p for n, p in models[0].unet.named_parameters() if p.requires_grad}
    assert trained and all(".lord_" in name and value.dtype == torch.float32 for name, value in trained.items())
    still = [name for name, value in trained.items() if torch.equal(value, start[name])]
    assert still == []
    config, saved = read_lord(tmp_path / "stage1")
    assert (config.r, config.lord_alpha, config.gate_granularity) == (4, 32, "token")
    assert len(saved) == len(trained)
    assert sorted(float(v.double().sum()) for v in saved.values()) == sorted(
        float(v.detach().double().sum()) for v in trained.values()
    )


def test_the_gate_s_choices_reach_the_file(stage1: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[dict[str, str]] = []
    objective = module.DefenseObjective
    monkeypatch.setattr(module, "DefenseObjective", lambda *args, **how: losses.append(how) or objective(*args, **how))
    gate = {
        "gate_granularity": "sample",
        "gate_hidden": 3,
        "gate_input": "input",
        "gate_norm": "rms",
        "gate_timestep": True,
        "gate_temperature": 2.0,
    }
    det = {"det_layers": "pooled", "det_tokens": "sample", "det_timesteps": "low"}
    run_stage1(stage1(**gate, **det, rank=2, target_modules=("to_q",), steps=1))
    config, saved = read_lord(tmp_path / "stage1")
    assert {name: getattr(config, name) for name in gate} == gate and config.r == 2
    assert all(".to_q." in name for name in saved)
    # A new embedding's weights are zero, and one step has moved them.
    assert all(value.any() for name, value in saved.items() if name.endswith("lord_wt"))
    (how,) = losses
    assert how.items() >= det.items()


def test_gradient_checkpointing_gives_the_same_lord(stage1: Any, tmp_path: Path) -> None:
    run_stage1(stage1("plain"))
    run_stage1(stage1("recomputed", gradient_checkpointing=True))
    plain, recomputed = (load_file(tmp_path / name / "lord.safetensors") for name in ("plain", "recomputed"))
    for key, value in plain.items():
        torch.testing.assert_close(recomputed[key], value, rtol=1e-4, atol=1e-6)


def test_bf16_trains_fp32_weights_that_move(stage1: Any, tmp_path: Path) -> None:
    run_stage1(stage1(dtype="bf16", lr=1e-5))
    saved = load_file(tmp_path / "stage1" / "lord.safetensors")
    branch = torch.cat([value.flatten() for name, value in saved.items() if name.endswith(".lord_B")])
    assert branch.dtype == torch.float32 and branch.count_nonzero() > 0.95 * branch.numel()


def test_twins_of_other_images_are_not_trained_on(stage1: Any, faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = stage1()

    def stop(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(module, "train", stop)
        run_stage1(config)
    first, second = sorted(faces.glob("*.png"))[:2]
    pixels = load_image(first), load_image(second)
    save_png(pixels[1], first)
    save_png(pixels[0], second)
    config.resume = True
    with pytest.raises(ValueError, match=r"data: 00000\.png replaced; data: 00001\.png replaced"):
        run_stage1(config)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"eps": "-1/255"}, "eps: expected pixels in .*, got '-1/255'"),
        ({"eps": "8"}, "eps: 8 is above 1"),
        ({"eps": "eight"}, "eps: expected pixels in .*, got 'eight'"),
        ({"step_size": "1/0"}, "step_size: expected pixels"),
        ({"attack_steps": -1}, "steps: expected at least 0, got -1"),
        ({"lambda_adv": -1.0}, "lambda_adv: expected 0 or more, got -1"),
        ({"lambda_det": float("nan")}, "lambda_det: expected a finite number, got nan"),
        ({"rank": 0}, "rank: expected at least 1, got 0"),
        ({"lord_alpha": 0.0}, "lord_alpha must be positive"),
        ({"gate_hidden": 0}, "gate_hidden must be at least 1"),
        ({"gate_granularity": "pixel"}, "gate_granularity: expected one of token, sample, got 'pixel'"),
        ({"target_modules": ("to_x",)}, "target_modules: .* got 'to_x'"),
        ({"attack_batch_size": 0}, "attack_batch_size"),
        ({"data": Path("/nowhere")}, "data: image folder /nowhere does not exist"),
        ({"target": Path("/nowhere.png"), "targeted": True}, "/nowhere.png: no such file"),
        ({"dtype": "fp16"}, "fp16 training needs a GPU"),
    ],
)
def test_bad_settings_are_named_and_nothing_is_written(
    stage1: Any, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        run_stage1(stage1(**settings))
    assert not (tmp_path / "stage1").exists()


def test_missing_captions_are_an_error_and_one_prompt_is_enough(stage1: Any, faces: Path, tmp_path: Path) -> None:
    victim = sorted(faces.glob("*.txt"))[0]
    victim.unlink()
    with pytest.raises(ValueError, match=f"data: .*{victim.stem}"):
        run_stage1(stage1())
    assert not (tmp_path / "stage1").exists()
    assert run_stage1(stage1(prompt="a photo of a person", steps=1))["examples"] == 4


def test_one_branch_trains_a_and_b_alone(stage1: Any, demo_model: Any) -> None:
    """The baseline is a plain low-rank update of the weights: y = W x + s B A x."""
    config = stage1(one_branch=True, steps=3)
    inject(demo_model, config)
    start = {name: value.clone() for name, value in demo_model.unet.state_dict().items() if ".lord_" in name}
    run_stage1(config)
    lord, tensors = read_lord(config.out)
    for name, value in tensors.items():
        layer, short = name.rsplit(".", 1)
        moved = not torch.equal(value, start[f"{layer}.{short}.lord"])
        assert moved == (short in ("lord_A", "lord_B")), name

    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    defended = load_model("demo", device="cpu")
    bare = defended.unet.get_submodule(layer).weight.detach().clone()
    load_lord(defended.unet, config.out)
    x = torch.randn(2, 5, bare.shape[1], generator=torch.Generator().manual_seed(0))
    merged = bare + lord.scaling * tensors[f"{layer}.lord_B"] @ tensors[f"{layer}.lord_A"]
    torch.testing.assert_close(defended.unet.get_submodule(layer)(x), x @ merged.T)


def test_twins_are_not_looked_for_where_the_run_writes(stage1: Any, faces: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="out: .* lies inside the perturbed"):
        run_stage1(stage1(perturbed=(tmp_path,)))
    assert not (tmp_path / "stage1").exists()


def test_several_processes_can_not_refresh(stage1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "make_accelerator", lambda *_: SimpleNamespace(num_processes=2))
    config = stage1(refresh_every=2)
    with pytest.raises(ValueError, match="refresh_every: expected one process, got 2"):
        run_stage1(config)
    assert not config.out.exists()


def test_without_its_clean_branch_a_lord_s_shut_gate_changes_nothing(stage1: Any, demo_model: Any) -> None:
    inject(demo_model, stage1(clean_branch=False, gate_input="down", target_modules=("to_q",)))
    trained = {n.split(".lord_")[1].split(".")[0] for n, p in demo_model.unet.named_parameters() if p.requires_grad}
    assert trained == {"A", "B_adv", "w1", "b1", "w2", "b2"}
    assert not any(p.any() for name, p in demo_model.unet.named_parameters() if ".lord_B." in name)
    for settings, came in (({}, "gate_input branch"), ({"one_branch": True, "gate_input": "down"}, "one_branch")):
        with pytest.raises(ValueError, match=f"clean_branch: .* than {came}"):
            module.check(stage1(clean_branch=False, **settings))


def test_a_budget_that_changes_no_image_is_refused(stage1: Any) -> None:
    with pytest.raises(ValueError, match=r"eps: within 8/255 \(l2\) no image changed"):
        run_stage1(stage1(norm="l2"))


def test_targets_that_read_the_text_only_are_refused_before_anything_is_written(stage1: Any) -> None:
    config = stage1(target_modules=("attn2.to_k", "attn2.to_v"))
    with pytest.raises(ValueError, match="target_modules: attn2.to_k, attn2.to_v read the text only"):
        run_stage1(config)
    assert not config.out.exists()
    config.one_branch = True
    assert run_stage1(config)["steps"] == 2
    assert "detection" not in (config.out / "metrics.jsonl").read_text()
