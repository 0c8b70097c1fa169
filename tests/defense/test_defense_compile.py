"""--compile: whole blocks, each kind compiled once, with the gradients of the uncompiled model."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lordfast.adapter import LordConfig
from lordfast.attacks.budget import Budget
from lordfast.attacks.engine import PgdSettings, perturb
from lordfast.attacks.pgd import LdmLoss, PgdConfig
from lordfast.attacks.run import run_attack
from lordfast.data import make_faces
from lordfast.defense.objective import DefenseObjective
from lordfast.defense.stage1 import Stage1Config, run_stage1
from lordfast.diffusion.compiled import compile_blocks, compiled_graphs
from lordfast.diffusion.random_model import random_model
from lordfast.training import speed
from lordfast.training.generate import GenerateConfig, run_generate
from lordfast.training.stage2 import Stage2Config, run_stage2


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are made and guarded as ever, and then run as they are: what takes minutes is making code of them."""
    torch._dynamo.reset()
    monkeypatch.setattr(speed, "compile_blocks", partial(compile_blocks, backend="eager"))
    yield
    torch._dynamo.reset()


def test_every_command_takes_the_flags(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[str, ...]] = []
    optimized: list[str] = []
    monkeypatch.setattr(speed, "compile_blocks", lambda *parts: compiled.append(tuple(type(p).__name__ for p in parts)))
    optimize = speed.optimize
    monkeypatch.setattr(speed, "optimize", lambda model, attention: optimized.append(attention) or optimize(model))

    def run_all(**flags: Any) -> None:
        common: dict[str, Any] = {"model": "demo", "device": "cpu", "overwrite": True, **flags}
        few: dict[str, Any] = {"steps": 1, "batch_size": 1, "tensorboard": False}
        run_stage1(Stage1Config(out=tmp_path / "a", data=faces, attack_steps=1, lord_alpha=4.0, **few, **common))
        run_stage2(Stage2Config(out=tmp_path / "b", instance_data=faces, instance_prompt="a face", **few, **common))
        run_generate(GenerateConfig(out=tmp_path / "c", prompt="a face", n=1, steps=1, **common))
        run_attack("pgd", PgdConfig(images=faces, out=tmp_path / "d", attack_steps=0, **common))

    run_all()
    assert compiled == optimized == []
    run_all(compile=True, optimize=True)
    assert compiled == [("UNet2DConditionModel", "AutoencoderKL")] * 4 and optimized == ["sdpa"] * 4
    model = random_model("sd3-narrow", device="cpu")
    for flag, options in (("optimize", {"optimize": True}), ("attention", {"attention": "xformers"})):
        with pytest.raises(ValueError, match=f"{flag}: the attention of sd3-narrow's SD3Transformer2DModel can't be"):
            speed.speed_up(model, speed.SpeedOptions(**options))  # type: ignore[arg-type]
    assert optimized[4:] == ["sdpa", "xformers"]


def test_an_optimized_stage1_trains_the_same_lord(faces: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"model": "demo", "device": "cpu", "data": faces, "tensorboard": False}
    settings |= {"attack_steps": 1, "lord_alpha": 4.0, "steps": 3, "batch_size": 2}
    for name, flag in (("plain", False), ("together", True)):
        run_stage1(Stage1Config(out=tmp_path / name, optimize=flag, **settings))
    plain, together = (load_file(tmp_path / name / "lord.safetensors") for name in ("plain", "together"))
    assert plain.keys() == together.keys()
    size = sum(float(value.double().square().sum()) for value in plain.values())
    apart = sum(float((together[name] - value).double().square().sum()) for name, value in plain.items())
    assert 0 < apart < 1e-6 * size  # other roundings, the same training


def test_nothing_is_compiled_after_the_first_round_of_every_shape(traced_only: None, demo_model: Any) -> None:
    speed.speed_up(demo_model, speed.SpeedOptions(compile=True))
    settings = PgdSettings(Budget(8 / 255, 2 / 255), steps=1)
    text = demo_model.embed(["a face"])

    def every_bucket(seed: int) -> None:
        for side, count in ((64, 2), (96, 2), (64, 1)):
            images = [face.image for face in make_faces(count, seed=seed, size=side)]
            rows = {name: value.expand(count, -1, -1) for name, value in text.items()}
            perturb(demo_model, images, rows, LdmLoss(), settings)

    every_bucket(0)
    first = compiled_graphs()
    every_bucket(1)
    assert compiled_graphs() == first > 0


def test_lord_is_in_the_graphs_and_the_gates_are_collected(traced_only: None, demo_model: Any) -> None:
    torch.manual_seed(0)
    demo_model.unet.add_adapter(LordConfig(r=2, lord_alpha=2, init_weights=False), adapter_name="lord")
    objective = DefenseObjective(demo_model, lambda_adv=2.0, lambda_det=0.1)
    g = torch.Generator().manual_seed(0)
    latents = [torch.randn(1, 4, 16, 16, generator=g) for _ in range(3)]
    batch = dict(zip(("clean", "perturbed", "noise"), latents, strict=True))
    batch |= {"timesteps": torch.tensor([300]), "text": demo_model.embed(["a face"])}

    def gradients() -> dict[str, torch.Tensor]:
        objective.zero_grad()
        out = objective(**batch)
        out["loss"].backward()
        return {n: p.grad for n, p in objective.named_parameters() if p.grad is not None} | {"loss": out["loss"]}

    eager = gradients()
    blocks = compile_blocks(demo_model.unet, demo_model.vae, backend="eager")
    assert blocks == 34
    for found in (gradients(), gradients()):
        assert found.keys() == eager.keys()
        assert all(torch.equal(found[name], value) for name, value in eager.items())


_SCRIPT = """
import copy, json, torch
from types import SimpleNamespace
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from lordfast.adapter import LordConfig
from lordfast.defense.objective import DefenseObjective
from lordfast.diffusion.compiled import compile_blocks
from lordfast.diffusion.stable_diffusion import StableDiffusion

torch.manual_seed(0)
torch.set_num_threads(1)
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(16,), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=12, attention_head_dim=2, norm_num_groups=4,
)
vae = AutoencoderKL(block_out_channels=(16,), norm_num_groups=4, sample_size=8)
text = torch.nn.Linear(2, 2)
text.config = SimpleNamespace(hidden_size=12)
model = StableDiffusion(
    name="tiny", unet=unet, vae=vae, text_encoder=text, tokenizer=None, device=torch.device("cpu"),
    dtype=torch.float32, scheduler=DDPMScheduler(prediction_type="epsilon"),
)
model.unet.add_adapter(LordConfig(r=2, lord_alpha=2, gate_hidden=3, init_weights=False), adapter_name="lord")

def inputs(seed, dtype):
    g = torch.Generator().manual_seed(seed)
    clean, perturbed, noise = (torch.randn(2, 4, 8, 8, generator=g).to(dtype).requires_grad_() for _ in range(3))
    text = {"encoder_hidden_states": torch.randn(2, 5, 12, generator=g).to(dtype)}
    times = torch.randint(0, 1000, (2,), generator=g)
    return {"clean": clean, "perturbed": perturbed, "noise": noise, "timesteps": times, "text": text}

def step(model, seed, dtype=torch.float32):
    objective, batch = DefenseObjective(model, lambda_adv=2.0, lambda_det=0.1), inputs(seed, dtype)
    objective.zero_grad()
    out = objective(**batch)
    out["loss"].backward()
    found = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None} | out
    found |= {f"x {n}": batch[n].grad for n in ("clean", "perturbed")}
    return {n: t.detach().double() for n, t in found.items()}

eager = copy.deepcopy(model)
exact = copy.deepcopy(model)
exact.unet.double()
for layer in exact.unet.modules():
    for name in ("lord_A", "lord_B", "lord_B_adv", "lord_w1", "lord_b1", "lord_w2", "lord_b2"):
        if hasattr(layer, name):
            getattr(layer, name).double()
exact.dtype = torch.float64
exact._signal, exact._sigma = exact._signal.double(), exact._sigma.double()
compile_blocks(model.unet)
rows = []
for seed in (1, 2):
    truth, plain, got = step(exact, seed, torch.float64), step(eager, seed), step(model, seed)
    assert truth.keys() == plain.keys() == got.keys(), set(truth) ^ set(got)
    size = lambda t: t.square().sum().item()
    rows += [(n, size(truth[n]), *(size(t[n] - truth[n]) for t in (plain, got))) for n in truth]
print("RESULT" + json.dumps(rows))
"""


def test_compiled_gradients_are_the_eager_ones(tmp_path: Path) -> None:
    # A process of its own: inductor's caches and settings must not depend on what ran before.
    script = tmp_path / "compiled.py"
    script.write_text(_SCRIPT)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(done.stdout.split("RESULT")[1])
    # Four blocks of 8 layers with 7 parameters, four metrics, and the gradients to the clean and perturbed latents.
    assert len(rows) == 2 * (4 * 8 * 7 + 4 + 2)
    sums: dict[str, list[float]] = {}
    for name, *squares in rows:
        # A wrong gradient is wrong by its own size.
        assert squares[2] < 1e-6 * squares[0], (name, squares)
        kind = name.split(".")[-2] if ".lord" in name else name
        sums[kind] = [a + b for a, b in zip(sums.get(kind, [0.0] * 3), squares, strict=True)]
    assert len(sums) == 7 + 4 + 2
    for kind, (truth, eager, compiled) in sums.items():
        # Both round differently: neither may be further from float64 than twice the other, above fp32's noise.
        assert (compiled / truth) ** 0.5 <= 2 * (eager / truth) ** 0.5 + 2e-6, kind


def test_no_step_of_stage1_or_pgd_reads_a_value(demo_model: Any, host_reads: Any) -> None:
    torch.manual_seed(0)
    text = demo_model.embed(["a face"])
    settings = PgdSettings(Budget(8 / 255, 2 / 255), steps=2, draws=2)
    images = [face.image for face in make_faces(1, seed=0, size=64)]
    # What is drawn is drawn on the host, and the result goes there; a row of numbers is read a step late.
    with host_reads("draw_noise", "to_levels", "later.py", "derived_generator", "generators_of") as found:
        perturb(demo_model, images, text, LdmLoss(), settings)
    assert found == []
    demo_model.unet.add_adapter(LordConfig(r=2, lord_alpha=2, init_weights=False), adapter_name="lord")
    objective = DefenseObjective(demo_model, lambda_adv=2.0, lambda_det=0.1)
    latents = {name: torch.randn(1, 4, 16, 16) for name in ("clean", "perturbed", "noise")}
    # The labels' values are looked at on a CPU only.
    with host_reads("in detection_loss") as found:
        objective(**latents, timesteps=torch.tensor([300]), text=text)["loss"].backward()
    assert found == []
