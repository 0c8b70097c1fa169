"""From what a person writes after --model to frozen parts of the right type, or an error that says what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
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


def _as_variant(folder: Path, variant: str, *, half: bool = True, safe: bool = True) -> None:
    """Replaces a part's weights by a variant of them."""
    (path,) = folder.glob("*.safetensors")
    weights = {key: value.half() if half else value for key, value in load_file(path).items()}
    path.unlink()
    if safe:
        save_file(weights, folder / f"{path.stem}{variant}.safetensors", metadata={"format": "pt"})
    else:
        stem = {"model": "pytorch_model"}.get(path.stem, path.stem)
        torch.save(weights, folder / f"{stem}{variant}.bin")


def test_weights_of_one_variant_or_in_bin_files_are_loaded(
    damaged: Path, sd15_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _as_variant(damaged / "unet", ".fp16")
    _as_variant(damaged / "vae", ".fp16", safe=False)
    _as_variant(damaged / "text_encoder", "", half=False, safe=False)
    whole, model = load_model(sd15_folder, device="cpu"), load_model(damaged, device="cpu")
    assert "unsafe" not in "".join(capfd.readouterr())
    for part in PARTS:
        expected, found = getattr(whole, part).state_dict(), getattr(model, part).state_dict()
        for key, value in expected.items():
            value = value.half().float() if part != "text_encoder" and value.is_floating_point() else value
            assert torch.equal(found[key], value), (part, key)

    # In several files, as both libraries split them; and a whole one next to it goes first.
    for part in ("unet", "text_encoder"):
        shutil.rmtree(damaged / part)
        getattr(whole, part).save_pretrained(damaged / part, variant="fp16", max_shard_size="50KB")
        assert len(list((damaged / part).glob("*.index.fp16.json"))) == 1
    shutil.copytree(sd15_folder / "vae", damaged / "vae", dirs_exist_ok=True)
    model = load_model(damaged, device="cpu")
    for part in PARTS:
        found = getattr(model, part).state_dict()
        assert all(torch.equal(found[key], value) for key, value in getattr(whole, part).state_dict().items()), part

    shutil.copytree(sd15_folder / "unet", damaged / "unet", dirs_exist_ok=True)
    for path in (damaged / "unet").glob("*fp16*"):
        path.unlink()
    _as_variant(damaged / "unet", ".ema")
    shutil.copy(
        damaged / "unet" / "diffusion_pytorch_model.ema.safetensors", damaged / "unet" / "diffusion_pytorch_model.b.bin"
    )
    with pytest.raises(
        ValueError, match=r"the unet of .*damaged.unet holds the variants b, ema of the weights; expected"
    ):
        load_model(damaged)


def test_code_in_a_bin_file_is_not_run(damaged: Path) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return exec, ("raise SystemExit('code of the file was run')",)

    for part, name in (("text_encoder", "pytorch_model.bin"), ("unet", "diffusion_pytorch_model.bin")):
        for path in (damaged / part).glob("*.safetensors"):
            path.unlink()
        torch.save({"weight": Runs()}, damaged / part / name)
        with pytest.raises(ValueError, match=f"the {part} of .* can't be loaded"):
            load_model(damaged)
        shutil.rmtree(damaged / part)


@pytest.mark.parametrize(
    ("family", "part", "change", "message"),
    [
        ("sd15", "unet", {"in_channels": 9}, "in_channels of the UNet2DConditionModel is 9, expected 4 .* inpainting"),
        ("sd15", "unet", {"out_channels": 8}, "out_channels of the UNet2DConditionModel is 8, expected 4"),
        ("sd15", "unet", {"num_class_embeds": 5}, "num_class_embeds of .* is 5, expected None"),
        ("sd15", "vae", {"latent_channels": 8}, "in_channels of the UNet2DConditionModel is 4, expected 8"),
        (
            "sdxl",
            "unet",
            {"cross_attention_dim": 48},
            r"cross_attention_dim of .* is 48, expected 40 for these text enc",
        ),
        (
            "sdxl",
            "unet",
            {"projection_class_embeddings_input_dim": 99},
            "projection_class_embeddings_input_dim of .* is 99, expec",
        ),
        ("sd3", "transformer", {"in_channels": 33}, "in_channels of the SD3Transformer2DModel is 33, expected 16"),
        ("sd3", "transformer", {"joint_attention_dim": 8}, "joint_attention_dim of .* is 8, expected"),
        ("sd3", "transformer", {"pooled_projection_dim": 8}, "pooled_projection_dim of .* is 8, expected"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(
    family: str, part: str, change: dict[str, int], message: str, narrow_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(narrow_folder(family), tmp_path / "model"))
    cls = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "transformer": diffusers.SD3Transformer2DModel,
    }[part]
    config = dict(cls.load_config(folder, subfolder=part)) | change
    cls.from_config(config).save_pretrained(folder / part)
    with pytest.raises(ValueError, match=f"model: the parts of .* do not go together: {message}"):
        load_model(folder, device="cpu")


def test_weights_of_other_shapes_than_the_config_s_are_named(damaged: Path) -> None:
    path = damaged / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"intermediate_size": 99}))
    with pytest.raises(ValueError, match=r"the text_encoder of .*mlp\.fc1\.bias has shape .* config asks for \(99,\)$"):
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
