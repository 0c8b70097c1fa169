"""LoRD in the denoisers of SDXL and SD 3: which gates see the image, save and load, LoRA files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import lordfast
from lordfast.diffusion import LatentDiffusion, load_model

JOINT = ["add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def _gates(model: LatentDiffusion, seed: int = 0) -> dict[str, Tensor]:
    """The logits on one image, which the seed decides; prompt and timestep are always the same."""
    noisy = torch.randn(1, *model.latent_shape(64, 64), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad(), lordfast.collect_gates(model.unet) as gates:
        model.predict(noisy, torch.tensor([500]), model.embed(["a photo"]))
    return dict(gates)


def _inject(model: LatentDiffusion, targets: list[str] | str, **settings: Any) -> None:
    config = lordfast.LordConfig(r=1, gate_hidden=2, target_modules=targets, init_weights=False, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model.unet.add_adapter(config, adapter_name="lord")


@pytest.mark.parametrize(("family", "layers", "blind"), [("sdxl", 560, 140), ("sd3", 16 + 4 * 3 + 3, 3)])
def test_exactly_the_gates_that_the_image_changes_count(
    family: str, layers: int, blind: int, narrow_folder: Callable[[str], Path]
) -> None:
    model = load_model(narrow_folder(family), device="cpu")
    _inject(model, TARGETS + JOINT)
    one, other = _gates(model), _gates(model, seed=1)
    assert len(one) == layers
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert {name for name in one if lordfast.sees_image(name)} == changed
    assert len(one) - len(changed) == blind


@pytest.mark.parametrize("family", ["sd15", "sd3"])
def test_so_do_those_of_all_other_linear_layers(family: str, narrow_folder: Callable[[str], Path]) -> None:
    model = load_model(narrow_folder(family), device="cpu")
    _inject(model, "all-linear")
    one, other = _gates(model), _gates(model, seed=1)
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert {name for name in one if lordfast.sees_image(name)} == changed
    assert 0 < len(changed) < len(one)


def test_sd35_s_second_attention_is_the_image_s() -> None:
    assert lordfast.sees_image("transformer_blocks.0.attn2.to_k")
    assert not lordfast.sees_image("down_blocks.0.attentions.0.transformer_blocks.1.attn2.to_k")


def test_token_gates_stand_on_both_streams(narrow_folder: Callable[[str], Path]) -> None:
    model = load_model(narrow_folder("sd3"), device="cpu")
    _inject(model, TARGETS + JOINT)
    gates = _gates(model)
    # 4 x 4 patches of the image; 77 tokens of CLIP and 256 in T5's place.
    assert gates["transformer_blocks.1.attn.to_q"].shape == (1, 16)
    assert gates["transformer_blocks.1.attn.add_q_proj"].shape == (1, 333)
    assert gates["transformer_blocks.1.attn.add_q_proj"].std() > 0


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_save_and_load_through_pipelines(family: str, narrow_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_model(narrow_folder(family), device="cpu")
    bare = _prediction(model)
    _inject(model, ["attn.to_q", *JOINT] if family == "sd3" else ["transformer_blocks.0.attn1.to_q"])
    changed = _prediction(model)
    assert (changed - bare).abs().max() > 1e-2
    pipeline = model.pipeline()
    assert hasattr(pipeline, "transformer") is (family == "sd3")
    lordfast.save_lord(pipeline, tmp_path)
    fresh = load_model(narrow_folder(family), device="cpu")
    lordfast.load_lord(fresh.pipeline(), tmp_path)
    assert torch.equal(_prediction(fresh), changed)
    with lordfast.lord_disabled(fresh.pipeline()):
        assert torch.equal(_prediction(fresh), bare)
    with pytest.raises(RuntimeError, match="fuse_qkv_projections is not possible"):
        fresh.unet.fuse_qkv_projections()
    lordfast.remove_lord(fresh.pipeline())
    assert torch.equal(_prediction(fresh), bare)


def _prediction(model: LatentDiffusion) -> Tensor:
    noisy = torch.randn(2, *model.latent_shape(64, 64), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([10, 700]), model.embed(["a photo of sks person", "a tree"]))


def _add_lora(module: Any, targets: list[str], text: bool = False) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    with torch.random.fork_rng():
        torch.manual_seed(2)
        inject_adapter_in_model(LoraConfig(r=2, lora_alpha=8, target_modules=targets), module, "sks")
        for name, parameter in module.named_parameters():
            if ".lora_" in name:
                nn.init.normal_(parameter, std=0.3 if text else 0.2)


@pytest.mark.parametrize(
    ("family", "format"), [("sdxl", "diffusers"), ("sdxl", "kohya"), ("sd3", "diffusers"), ("sd15", "kohya")]
)
@pytest.mark.usefixtures("text_loras_in_diffusers")
def test_plain_diffusers_loads_the_lora_of_both_streams_and_every_encoder(
    family: str, format: str, narrow_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_model(narrow_folder(family), device="cpu")
    bare = _prediction(model)
    unet_targets = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn2.to_v", "proj_in"]
    _add_lora(model.unet, ["to_out.0", *JOINT] if family == "sd3" else unet_targets)
    without_text = _prediction(model)
    for part, encoder in model.lora_text_encoders.items():
        _add_lora(encoder, model.text_lora_targets(part), text=True)
    expected = _prediction(model)
    path = model.save_lora(tmp_path, "sks", text=True, format=format)
    for low, high in ((bare, without_text), (without_text, expected)):
        assert (low - high).abs().max() > 1e-3

    fresh = load_model(narrow_folder(family), device="cpu")
    fresh.pipeline().load_lora_weights(path.parent)
    torch.testing.assert_close(_prediction(fresh), expected, rtol=1e-4, atol=1e-5)

    keys = safetensors.torch.load_file(path)
    encoders = {"": "text_encoder", "_2": "text_encoder_2"}
    if format == "kohya":
        numbers = {"sdxl": ["1", "2"], "sd15": [""]}[family]
        prefixes = {"lora_unet", *(f"lora_te{number}" for number in numbers)}
        assert {key.split("_text_model")[0] if "_te" in key else key[:9] for key in keys} == prefixes
    else:
        prefixes = {"transformer" if family == "sd3" else "unet", *encoders.values()}
        assert {key.split(".")[0] for key in keys} == prefixes
        # Older versions of transformers know the layers by this name alone.
        assert all(".text_model.encoder." in key for key in keys if key.startswith("text_encoder"))


def test_kohya_names_sdxl_s_layers_as_its_original_code_does(
    narrow_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_model(narrow_folder("sdxl"), device="cpu")
    _add_lora(model.unet, ["transformer_blocks.0.attn1.to_q"])
    keys = safetensors.torch.load_file(model.save_lora(tmp_path, "sks", format="kohya"))
    middle = "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q"
    assert {f"{middle}.lora_down.weight", f"{middle}.lora_up.weight", f"{middle}.alpha"} <= keys.keys()
    blocks = {key.split("_transformer")[0].removeprefix("lora_unet_") for key in keys}
    # Of nine blocks a half, those of the two lower resolutions hold attention; 3 and 6 change the resolution.
    numbers = {"input": (4, 5, 7, 8), "output": range(6)}
    assert blocks == {f"{half}_blocks_{n}_1" for half in numbers for n in numbers[half]} | {"middle_block_1"}


def test_what_kohya_has_no_name_for_is_refused(narrow_folder: Callable[[str], Path]) -> None:
    sdxl, sd3 = (load_model(narrow_folder(family), device="cpu") for family in ("sdxl", "sd3"))
    with pytest.raises(ValueError, match="format kohya holds SDXL's layers inside of attentions, got time_emb"):
        sdxl.check_lora_format("kohya", ["time_embedding.linear_1"])
    sdxl.check_lora_format("diffusers", ["time_embedding.linear_1"])
    with pytest.raises(ValueError, match="kohya has no names for the layers of a SD3Transformer2DModel"):
        sd3.check_lora_format("kohya", [])


def test_nothing_depends_on_the_layers_that_get_no_lora(narrow_folder: Callable[[str], Path]) -> None:
    for family in ("sdxl", "sd3"):
        model = load_model(narrow_folder(family), device="cpu")
        for part, encoder in model.lora_text_encoders.items():
            wanted = [encoder.get_submodule(name).weight for name in model.text_lora_targets(part)]
            encoder.requires_grad_(True)
            text = model.embed_tokens(model.tokenize(["a photo"]))
            found = torch.autograd.grad(sum(value.sum() for value in text.values()), wanted, allow_unused=True)
            assert wanted and all(gradient is not None for gradient in found), (family, part)
