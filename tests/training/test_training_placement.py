"""Quantised weights and travelling parts through Stage 1, Stage 2 and attacks: same results, and who is where when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lordfast.attacks.pgd import PgdConfig
from lordfast.attacks.run import run_attack
from lordfast.data.images import load_image
from lordfast.defense.stage1 import Stage1Config, run_stage1
from lordfast.diffusion import TensorCache
from lordfast.diffusion.cache import cached_text
from lordfast.training.placement import Placed, PlacementOptions, check_placement, load_placed, recompute
from lordfast.training.stage2 import Stage2Config, run_stage2

CPU = torch.device("cpu")


def stage1(faces: Path, out: Path, **options: Any) -> dict[str, Tensor]:
    """The LoRD after two steps."""
    training: dict[str, Any] = {"steps": 2, "batch_size": 2, "tensorboard": False, "device": "cpu", **options}
    run_stage1(Stage1Config(model="demo", data=faces, out=out / "lord", attack_steps=1, **training))
    return {f"lord/{k}": v for path in out.glob("lord/*.safetensors") for k, v in load_file(path).items()}


def whole_way(faces: Path, out: Path, **options: Any) -> dict[str, Tensor]:
    """All that Stage 1, Stage 2 and an attack leave after two steps each."""
    found = stage1(faces, out, **options)
    common: dict[str, Any] = {"model": "demo", "device": "cpu", **options}
    training: dict[str, Any] = {"steps": 2, "batch_size": 2, "tensorboard": False, **common}
    prompt = "a photo of a sks person"
    stage2 = Stage2Config(instance_data=faces, instance_prompt=prompt, lord=out / "lord", out=out / "lora", **training)
    stage2.validation_prompt, stage2.validation_every, stage2.validation_images = prompt, 2, 1
    run_stage2(stage2)
    run_attack("pgd", PgdConfig(images=faces, out=out / "attacked", attack_steps=2, batch_size=4, **common))
    found |= {f"lora/{k}": v for path in out.glob("lora/*.safetensors") for k, v in load_file(path).items()}
    images = [*out.glob("attacked/*.png"), *out.glob("lora/validation/*.png")]
    assert len(images) == 5
    return found | {path.name: torch.from_numpy(load_image(path)) for path in images}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    from lordfast.data import make_faces, write_folder

    folder = tmp_path_factory.mktemp("placement")
    write_folder(make_faces(4, seed=7), folder / "faces")
    return folder / "faces", whole_way(folder / "faces", folder / "plain")


def test_where_weights_are_changes_no_bit(plain, tmp_path):
    faces, expected = plain
    # Which sends off the parts as well.
    found = whole_way(faces, tmp_path, offload="blocks", gradient_checkpointing=True)
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_training_on_quantised_weights(plain, tmp_path, bits):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    faces, expected = plain
    found = stage1(faces, tmp_path, quantize=bits)
    assert found.keys() == {name for name in expected if name.startswith("lord/")}
    learnt = [name for name in found if name.endswith("lord_B")]
    assert learnt
    for name in learnt:
        # AdamW's first steps are as long as the learning rate, in the direction of the gradient's sign: B began at
        # zero and went the same way where the gradients agree.
        assert 0 < found[name].abs().max() <= 2.1e-4
        assert (found[name].sign() == expected[name].sign()).float().mean() > 0.7
    other = [name for name in found if not torch.equal(found[name], expected[name])]
    assert len(other) > len(found) / 2


@pytest.fixture
def visits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(part, where to) of every move, as there is one device only."""
    import accelerate.hooks

    seen: list[tuple[str, str]] = []

    class Watched(accelerate.hooks.CpuOffload):
        def init_hook(self, module: nn.Module) -> nn.Module:
            seen.append((type(module).__name__, "leaves"))
            return super().init_hook(module)

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            seen.append((type(module).__name__, "comes"))
            return super().pre_forward(module, *args, **kwargs)

    monkeypatch.setattr(accelerate.big_modeling, "CpuOffload", Watched)
    return seen


def test_parts_come_when_they_are_called_and_leave(visits, tmp_path):
    placed = load_placed("demo", PlacementOptions(offload="parts"), CPU, "fp32")
    model = placed.model
    text, vae = type(model.text_encoder).__name__, type(model.vae).__name__
    assert sorted(visits) == sorted([(text, "leaves"), (vae, "leaves")])
    visits.clear()
    model.encode(torch.zeros(1, 3, 64, 64))
    assert visits == [(vae, "comes")]
    visits.clear()
    cached_text(model, ["one", "two", "one"], TensorCache(tmp_path))
    # Away after each text.
    assert visits == [(text, "comes"), (text, "leaves")] * 2
    visits.clear()
    placed.settle()
    assert (vae, "leaves") in visits and all(where == "leaves" for _, where in visits)


def test_parts_that_stay_are_left_alone(visits):
    placed = load_placed("demo", PlacementOptions(offload="parts"), CPU, "fp32", stay=("vae", "text"))
    placed.model.encode(torch.zeros(1, 3, 64, 64))
    placed.settle()
    assert visits == []


def test_nothing_asked_for_is_nothing_done(monkeypatch):
    placed = load_placed("demo", PlacementOptions(), CPU, "bf16")
    assert isinstance(placed, Placed) and placed.model.dtype == torch.bfloat16
    assert not hasattr(placed.model.vae, "_hf_hook") and not hasattr(placed.model.unet, "hf_device_map")
    placed.settle()


def test_checkpointing_reaches_denoiser_and_vae(demo_model):
    recompute(demo_model)
    assert demo_model.unet.is_gradient_checkpointing and demo_model.vae.is_gradient_checkpointing


@pytest.mark.parametrize(
    ("options", "rest", "message"),
    [
        ({"offload": "blocks", "quantize": "8bit"}, {}, "can't come and go together with quantize 8bit"),
        ({"offload": "blocks"}, {"compiled": True}, "can't come and go together with compile"),
        ({"offload": "blocks"}, {"optimized": True}, "can't come and go together with optimize"),
        ({"quantize": "8bit"}, {"sharded": True}, "quantize: 8bit weights can't be sharded"),
        ({"offload": "blocks"}, {"processes": 2}, "can't come and go together with 2 processes"),
        ({"offload": "blocks"}, {"whole": "surrogate unet"}, "offload: blocks needs a frozen denoiser"),
        ({"quantize": "4bit"}, {"whole": "surrogate unet"}, "quantize: 4bit needs a frozen denoiser, and surrogate"),
    ],
)
def test_what_does_not_go_together_is_refused(options, rest, message):
    if "quantize" in options:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    with pytest.raises(ValueError, match=message):
        check_placement(PlacementOptions(**options), **rest)
    check_placement(PlacementOptions(offload="parts"), compiled=True, processes=2, whole="surrogate unet")
