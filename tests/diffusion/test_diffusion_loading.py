"""From what a person writes after --model to frozen parts of the right type, or an error that says what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lordfast.diffusion import load_model, resolve_device, resolve_model

PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture
def damaged(sd15_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model, to be damaged."""
    return Path(shutil.copytree(sd15_folder, tmp_path / "damaged"))


def test_names_resolve(sd15_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_model(sd15_folder) == str(sd15_folder)
    assert resolve_model("someone/some-model_v1.5") == "someone/some-model_v1.5"
    assert (Path(resolve_model("demo")) / "unet" / "config.json").is_file()
    monkeypatch.setenv("HOME", str(sd15_folder.parent))
    assert resolve_model(f"~/{sd15_folder.name}") == str(sd15_folder)


@pytest.mark.parametrize("name", ["no-such-model", "./no/such/model", "/no/such/model", "a/b/c", ""])
def test_a_name_that_is_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"model: .*(does not exist|no diffusers model).*expected a folder"):
        resolve_model(name)


def test_a_file_and_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"model: .*model\.safetensors is a file"):
        resolve_model(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"holds no model_index\.json"):
        resolve_model(tmp_path)


def test_a_hub_id_without_network() -> None:
    with pytest.raises(ValueError, match=r"model: nobody/nothing-here is no local folder, and the hub did not give"):
        load_model("nobody/nothing-here")


@pytest.mark.parametrize("index", ["{", "[]", '{"class": 1}', "\udcff"])
def test_an_index_that_is_none(damaged: Path, index: str) -> None:
    (damaged / "model_index.json").write_bytes(index.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="no model index in diffusers format"):
        load_model(damaged)


def test_another_family_is_named(damaged: Path) -> None:
    (damaged / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(ValueError, match="FluxPipeline; supported are StableDiffusionPipeline"):
        load_model(damaged)


@pytest.mark.parametrize("part", [*PARTS, "tokenizer", "scheduler"])
def test_a_missing_part_is_named(damaged: Path, part: str) -> None:
    shutil.rmtree(damaged / part)
    with pytest.raises(ValueError, match=f"the {part} of .* (can't be loaded|is missing)"):
        load_model(damaged)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_weight_is_not_drawn_at_random(damaged: Path, part: str) -> None:
    (path,) = (damaged / part).glob("*.safetensors")
    weights = load_file(path)
    gone = sorted(weights)[-1]
    del weights[gone]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"the {part} of .* lacks 1 weights, such as .*{gone.split('.')[-2]}"):
        load_model(damaged)


@pytest.mark.parametrize("part", PARTS)
def test_damaged_weights_are_named(damaged: Path, part: str) -> None:
    (weights,) = (damaged / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"the {part} of .* can't be loaded"):
        load_model(damaged)


def test_a_prediction_type_we_do_not_know(damaged: Path) -> None:
    path = damaged / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(ValueError, match="predicts 'sample'; expected 'epsilon' or 'v_prediction'"):
        load_model(damaged)


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_parts_have_the_dtype_and_are_frozen(sd15_folder: Path, name: str) -> None:
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    model = load_model(sd15_folder, device="cpu", dtype=name)
    for part in PARTS:
        module = getattr(model, part)
        # In fp16 Stable Diffusion's VAE overflows; its config says force_upcast.
        expected = torch.float32 if part == "vae" and name == "fp16" else dtype
        assert {parameter.dtype for parameter in module.parameters()} == {expected}, part
        assert not any(parameter.requires_grad for parameter in module.parameters()), part
        assert not any(child.training for child in module.modules()), part


def test_a_vae_made_for_fp16_stays_fp16(save_sd15: Callable[..., Path]) -> None:
    model = load_model(save_sd15("fp16-vae", vae={"force_upcast": False}), device="cpu", dtype="fp16")
    assert model.vae.dtype == torch.float16


def test_bad_dtype_and_device() -> None:
    with pytest.raises(ValueError, match="dtype: expected one of fp32, bf16, fp16, got 'float64'"):
        load_model("demo", dtype="float64")
    with pytest.raises(ValueError, match="device: 'banana' is no torch device"):
        resolve_device("banana")
    beyond = f"cuda:{torch.cuda.device_count()}"
    with pytest.raises(ValueError, match=f"device: '{beyond}' was asked for"):
        resolve_device(beyond)
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_resolutions(sd15_folder: Path) -> None:
    model = load_model(sd15_folder, device="cpu")
    assert (model.vae_factor, model.resolution) == (8, 64)
    assert model.check_resolution(None) == 64
    assert model.check_resolution(128) == 128
    for bad in (0, -64, 72, 100):
        with pytest.raises(ValueError, match=f"resolution: expected a positive multiple of 64 .*, got {bad}"):
            model.check_resolution(bad)
