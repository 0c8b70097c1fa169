"""Stage 2 on the embedded model: what trains, what stays, what is saved, and the bits of a resumed run."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from lordfast.adapter import lord_disabled
from lordfast.adapter.control import lord_layers
from lordfast.adapter.save_load import read_lord
from lordfast.data import load_image
from lordfast.diffusion import load_model
from lordfast.diffusion.sampling import generate
from lordfast.training.generate import load_adapters
from lordfast.training.interrupt import Interrupted
from lordfast.training.stage2 import run_stage2

LORA = "pytorch_lora_weights.safetensors"


def _bytes(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in (LORA, "metrics.jsonl")]


def test_a_resumed_run_ends_bit_equal(stage2: Any, ctrl_c_at: Any, lord_folder: Path, tmp_path: Path) -> None:
    settings = {"lord": lord_folder, "steps": 4, "lr_schedule": "cosine", "train_text_encoder": True, "flip": True}
    run_stage2(stage2("straight", **settings))
    with ctrl_c_at(1), pytest.raises(Interrupted, match="after step 2 of 4"):
        run_stage2(stage2("broken", **settings))
    assert not (tmp_path / "broken" / LORA).exists()
    summary = run_stage2(stage2("broken", **settings, resume=True))
    assert _bytes(tmp_path / "straight") == _bytes(tmp_path / "broken")
    assert summary["steps"] == 4 and summary["examples"] == 8
    # What is finished is not trained again.
    assert run_stage2(stage2("broken", **settings, resume=True)) == summary


def test_the_same_seed_gives_the_same_bits_and_another_does_not(stage2: Any, tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        run_stage2(stage2(folder, seed=seed))
    assert _bytes(tmp_path / "a") == _bytes(tmp_path / "b")
    assert _bytes(tmp_path / "a")[0] != _bytes(tmp_path / "c")[0]


def test_lord_stays_bit_for_bit_and_is_active_and_only_the_lora_trains(
    stage2: Any, lord_folder: Path, trained: list[Any], predict: Any
) -> None:
    run_stage2(stage2(lord=lord_folder, weight_decay=0.5))
    (model,) = trained
    _, saved = read_lord(lord_folder)
    now = {
        f"{name}.{short}": value
        for name, layer in lord_layers(model.unet).items()
        for short, value in layer.parameters_of("lord").items()
    }
    assert now.keys() == saved.keys()
    assert all(torch.equal(now[name].detach(), saved[name]) for name in saved)
    trainable = [name for name, value in model.unet.named_parameters() if value.requires_grad]
    assert trainable and all(".lora_A." in name or ".lora_B." in name for name in trainable)
    with_lord = predict(model)
    with lord_disabled(model.unet):
        assert not torch.allclose(with_lord, predict(model), atol=1e-3)


def test_the_base_model_is_not_touched(stage2: Any, trained: list[Any], demo_model: Any) -> None:
    run_stage2(stage2(train_text_encoder=True))
    for part in ("unet", "vae", "text_encoder"):
        before = getattr(demo_model, part).state_dict()
        after = {
            name.replace(".base_layer", ""): value for name, value in getattr(trained[0], part).state_dict().items()
        }
        assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("settings", [{}, {"lora_alpha": 10.0}, {"format": "kohya"}, {"train_text_encoder": True}])
def test_plain_diffusers_loads_what_was_trained(
    stage2: Any,
    trained: list[Any],
    predict: Any,
    settings: dict[str, Any],
    tmp_path: Path,
    demo_model: Any,
    request: pytest.FixtureRequest,
) -> None:
    from diffusers import StableDiffusionPipeline

    from lordfast.diffusion import resolve_model

    if "train_text_encoder" in settings:
        request.getfixturevalue("text_loras_in_diffusers")
    run_stage2(stage2(lr=2e-2, text_encoder_lr=2e-2, **settings))
    scaling = {layer.scaling["lora"] for layer in trained[0].unet.modules() if isinstance(layer, LoraLayer)}
    assert scaling == {settings.get("lora_alpha", 4) / 4}
    pipeline = StableDiffusionPipeline.from_pretrained(resolve_model("demo"), safety_checker=None)
    pipeline.to(torch.float32)  # the text encoder is stored in half precision
    pipeline.load_lora_weights(tmp_path / "stage2")
    loaded = demo_model
    loaded.unet, loaded.text_encoder = pipeline.unet, pipeline.text_encoder.eval()
    expected = predict(trained[0])
    torch.testing.assert_close(predict(loaded), expected, rtol=1e-4, atol=1e-5)
    pipeline.disable_lora()
    assert (predict(loaded) - expected).abs().max() > 1e-3
    keys = load_file(tmp_path / "stage2" / LORA)
    prefixes = {"lora_unet"} if settings.get("format") == "kohya" else {"unet"}
    prefixes |= {"text_encoder"} if settings.get("train_text_encoder") else set()
    assert {key.split(".")[0][: 9 if key.startswith("lora") else None] for key in keys} == prefixes


def test_generate_s_model_is_the_one_that_was_trained(
    stage2: Any, trained: list[Any], predict: Any, lord_folder: Path, tmp_path: Path
) -> None:
    run_stage2(stage2(lord=lord_folder, lr=2e-2))
    model = load_model("demo", device="cpu")
    load_adapters(model, lord_folder, tmp_path / "stage2")
    torch.testing.assert_close(predict(model), predict(trained[0]), rtol=1e-4, atol=1e-5)
    only_lora = load_model("demo", device="cpu")
    load_adapters(only_lora, None, tmp_path / "stage2")
    assert (predict(only_lora) - predict(trained[0])).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_text_encoders_need_nothing_of_transformers_adapters(
    family: str,
    stage2: Any,
    trained: list[Any],
    narrow_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.integrations.peft import PeftAdapterMixin

    def refuses(*_: Any, **__: Any) -> None:
        raise ValueError("The version of PEFT you are using is not compatible")

    for method in ("add_adapter", "load_adapter", "set_adapter", "active_adapters", "get_adapter_state_dict"):
        monkeypatch.setattr(PeftAdapterMixin, method, refuses)
    folder = str(narrow_folder(family))
    run_stage2(stage2(model=folder, train_text_encoder=True, lr=2e-2, text_encoder_lr=2e-2, steps=2))
    loaded = load_model(folder, device="cpu")
    bare = loaded.embed(["a photo"])
    load_adapters(loaded, None, tmp_path / "stage2")
    expected = trained[0].embed(["a photo"])
    for name, value in loaded.embed(["a photo"]).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
        assert (value - bare[name]).abs().max() > 1e-3
    assert all(any("lora_A" in name for name, _ in m.named_modules()) for m in loaded.lora_text_encoders.values())


def test_the_text_encoder_s_lora_trains_at_its_own_rate(stage2: Any, tmp_path: Path) -> None:
    run_stage2(stage2(train_text_encoder=True, text_encoder_lr=0.0))
    run_stage2(stage2("moving", train_text_encoder=True, text_encoder_lr=1e-3))
    still, moving = (load_file(tmp_path / name / LORA) for name in ("stage2", "moving"))
    ups = [key for key in moving if key.startswith("text_encoder") and ("lora_B" in key or "up.weight" in key)]
    assert len(ups) > 0
    assert all(moving[key].count_nonzero() > 0 for key in ups)
    assert all(still[key].count_nonzero() == 0 for key in ups)


def test_bf16_trains_fp32_weights_that_move(stage2: Any, trained: list[Any], tmp_path: Path) -> None:
    run_stage2(stage2(dtype="bf16", lr=1e-5))
    model = trained[0]
    assert model.unet.conv_in.weight.dtype == torch.bfloat16
    assert all(value.dtype == torch.float32 for value in model.unet.parameters() if value.requires_grad)
    saved = load_file(tmp_path / "stage2" / LORA)
    ups = torch.cat([value.flatten() for key, value in saved.items() if "lora_B" in key or "up.weight" in key])
    assert ups.count_nonzero() > 0.95 * ups.numel()
    fresh = load_file(tmp_path / "stage2/checkpoints/step-00000002/weights.safetensors")
    assert {value.dtype for value in fresh.values()} == {torch.float32}


def test_fp16_on_a_cpu_is_refused_before_anything_is_written(stage2: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype: fp16 training needs a GPU"):
        run_stage2(stage2(dtype="fp16"))
    assert not (tmp_path / "stage2").exists()


def test_gradient_checkpointing_gives_the_same_weights(
    stage2: Any, lord_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.utils import checkpoint

    run_stage2(stage2("plain", lord=lord_folder))
    calls: list[int] = []
    original = checkpoint.checkpoint
    monkeypatch.setattr(checkpoint, "checkpoint", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    run_stage2(stage2("recomputed", lord=lord_folder, gradient_checkpointing=True))
    assert calls
    plain, recomputed = (load_file(tmp_path / name / LORA) for name in ("plain", "recomputed"))
    for key, value in plain.items():
        torch.testing.assert_close(recomputed[key], value, rtol=1e-4, atol=1e-6)


def test_validation_draws_a_grid_when_asked_and_changes_no_bit(
    stage2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lordfast.training.stage2.generate", functools.partial(generate, steps=1))
    run_stage2(stage2("plain", steps=3))
    run_stage2(
        stage2("drawn", steps=3, validation_prompt="a photo of a person", validation_every=2, validation_images=2)
    )
    grids = sorted(path.name for path in (tmp_path / "drawn" / "validation").iterdir())
    assert grids == ["step-000002.png", "step-000003.png"]
    height, width, _ = load_image(tmp_path / "drawn" / "validation" / grids[0]).shape
    assert width >= 2 * 64 and height >= 64
    assert _bytes(tmp_path / "plain") == _bytes(tmp_path / "drawn")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank": 0}, "rank: expected at least 1"),
        ({"lora_alpha": -1.0}, "lora_alpha: expected more than 0, got -1"),
        ({"prior_preservation": True}, "class_prompt: prior preservation needs one"),
        ({"prior_preservation": True, "class_prompt": "x", "class_images": 0}, "class_images: expected at least 1"),
        ({"target_modules": ("to_q", "to_kk")}, "target_modules: .* got 'to_kk'"),
        ({"target_modules": ()}, "target_modules: .* got none"),
        ({"resolution": 30}, "resolution: expected a positive multiple of"),
        ({"variants": 3}, "variants: 3 crops .* crop center"),
        ({"format": "onnx"}, "format: expected one of diffusers, kohya"),
        ({"validation_every": 0}, "validation_every"),
        ({"instance_data": Path("/nowhere")}, "instance_data: image folder /nowhere does not exist"),
        ({"lord": Path("/nowhere")}, "no LoRD adapter at /nowhere"),
        ({"model": "/nowhere"}, "model: '/nowhere' does not exist"),
    ],
)
def test_bad_settings_are_named_and_nothing_is_written(
    stage2: Any, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        run_stage2(stage2(**settings))
    assert not (tmp_path / "stage2").exists()


def test_a_lord_of_another_model_is_refused_with_the_layer_and_both_shapes(
    stage2: Any, lord_folder: Path, sd15_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"does not fit the model: .*layer \S+attn\S+"):
        run_stage2(stage2(lord=lord_folder, model=str(sd15_folder)))
    assert not (tmp_path / "stage2").exists()
