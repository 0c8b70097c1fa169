"""LoRA files of every trainer: what they do is what weights merged by hand do, or the file is refused by name."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor, nn

import lordfast
from lordfast.adapter.kohya import spellings
from lordfast.diffusion import LatentDiffusion, load_model

# The ends of A's and B's keys, by kohya, PEFT with and without the adapter's name, and diffusers then and now.
_ENDS = [
    ("lora_down.weight", "lora_up.weight"),
    ("lora_A.weight", "lora_B.weight"),
    ("lora_A.default.weight", "lora_B.default.weight"),
    ("lora.down.weight", "lora.up.weight"),
    ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
]


def _prediction(model: LatentDiffusion) -> Tensor:
    noisy = torch.randn(2, *model.latent_shape(64, 64), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([10, 700]), model.embed(["a photo of sks person", "a tree"]))


def _layers(model: LatentDiffusion) -> list[tuple[str, str, Any]]:
    """(part, path, layer) of all linear layers and convolutions that LoRAs may adapt."""
    denoiser = "transformer" if hasattr(model.unet, "transformer_blocks") else "unet"
    found = [(denoiser, *item) for item in model.unet.named_modules() if isinstance(item[1], nn.Linear | nn.Conv2d)]
    for part, encoder in model.text_encoders.items():
        found += [(part, *item) for item in encoder.named_modules() if isinstance(item[1], nn.Linear)]
    return found


def _key(model: LatentDiffusion, part: str, path: str, i: int) -> str:
    """Layer i's key: kohya's every other time, in turn in every spelling that there is; else diffusers'."""
    if i % 2 == 0 and part != "transformer":
        module = model.unet if part == "unet" else getattr(model, part)
        names = sorted(spellings(module, part, path))
        prefix = {"unet": "unet", "text_encoder": "te1" if i % 4 else "te", "text_encoder_2": "te2"}[part]
        return f"lora_{prefix}_{names[i // 2 % len(names)]}"
    if i % 3 == 0 and path.endswith((".to_q", ".to_k", ".to_v")):
        stem, _, last = path.rpartition(".")
        return f"{part}.{stem}.processor.{last}_lora"
    return f"{part}.base_model.model.{path}" if i % 5 == 0 else f"{part}.{path}"


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_every_spelling_rank_and_alpha_is_what_merging_by_hand_makes_of_it(
    family: str, dora: bool, narrow_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_model(narrow_folder(family), device="cpu")
    bare = _prediction(model)
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}

    def normal(*shape: int) -> Tensor:
        dtype = (torch.float32, torch.float16, torch.bfloat16)[len(tensors) % 3]
        return (torch.randn(shape, generator=generator) * 0.15).to(dtype)

    layers = _layers(model)
    for i, (part, path, layer) in enumerate(layers):
        weight, rank, alpha = layer.weight.data, 1 + i % 3, 1 + i % 5
        key = _key(model, part, path, i)
        ends = ("down.weight", "up.weight") if key.endswith("_lora") else _ENDS[0] if "." not in key else _ENDS[i % 5]
        up = normal(len(weight), rank)
        kernel = weight.shape[2:]
        if i % 2 and kernel.numel() > 1:
            down, mid = normal(rank, weight.shape[1], 1, 1), normal(rank, rank, *kernel)
            tensors[f"{key}.lora_mid.weight"] = mid
            delta = torch.einsum("nr,rshw,sc->nchw", up.double(), mid.double(), down[..., 0, 0].double())
        else:
            down = normal(rank, *weight.shape[1:])
            delta = torch.einsum("nr,r...->n...", up.double(), down.double())
        # Some write a linear layer as a 1 x 1 convolution, or the reverse.
        as_conv = weight.ndim == 4 if i % 7 else weight.ndim == 2
        up = up[..., None, None] if as_conv else up
        down = down[..., None, None] if as_conv and down.ndim == 2 else down
        tensors |= {f"{key}.{ends[0]}": down.contiguous(), f"{key}.{ends[1]}": up.contiguous()}
        if i % 4:
            tensors[f"{key}.alpha"] = torch.tensor(float(alpha))
        merged = weight + (alpha if i % 4 else rank) / rank * delta
        if dora and i % 3 == 0:
            norms = merged.flatten(1).norm(dim=1)
            magnitude = norms * (0.5 + torch.rand(len(norms), generator=generator))
            merged *= (magnitude / norms).reshape(-1, *[1] * (weight.ndim - 1))
            if i % 2 == 0:
                tensors[f"{key}.dora_scale"] = magnitude.reshape(-1, *[1] * (weight.ndim - 1)).float()
            else:
                shape = (1, -1, 1, 1) if weight.ndim == 4 else (-1,)
                tensors[f"{key.removesuffix('_lora')}.lora_magnitude_vector"] = magnitude.reshape(shape).float()
        layer.weight.data = merged.to(weight.dtype)
    expected = _prediction(model)
    effect = (expected - bare).abs().max()
    assert effect > 0.1
    save_file(tensors, tmp_path / "all.safetensors")
    torch.save({"state_dict": tensors}, tmp_path / "all.ckpt")

    state = torch.get_rng_state()
    for file in ("all.safetensors", "all.ckpt"):
        fresh = load_model(narrow_folder(family), device="cpu")
        lordfast.load_lora(fresh if file == "all.ckpt" else fresh.pipeline(), tmp_path / file)
        assert (_prediction(fresh) - expected).abs().max() < 1e-5 * max(1.0, float(effect))
    assert torch.equal(torch.get_rng_state(), state)
    parts = [fresh.unet, *fresh.text_encoders.values()]
    assert not any(parameter.requires_grad for part in parts for parameter in part.parameters())


def test_alpha_comes_from_peft_s_config_and_from_diffusers_metadata(
    narrow_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    trained, bare = (load_model(narrow_folder("sd15"), device="cpu") for _ in range(2))
    config = LoraConfig(
        r=3,
        lora_alpha=7,
        rank_pattern={"attn1.to_q": 5},
        alpha_pattern={"attn2.to_q": 2},
        target_modules=["to_q", "conv1"],
        use_rslora=True,
        init_lora_weights=False,
    )
    wrapped = peft.get_peft_model(trained.unet, config)
    expected = _prediction(trained)
    wrapped.save_pretrained(tmp_path)
    metadata = {
        f"unet.{key}": value for key, value in json.loads((tmp_path / "adapter_config.json").read_text()).items()
    }
    held = {f"unet.{key}": value.contiguous() for key, value in peft.get_peft_model_state_dict(wrapped).items()}
    file = tmp_path / "diffusers.safetensors"
    save_file(held, file, metadata={"lora_adapter_metadata": json.dumps(metadata)})
    assert (expected - _prediction(bare)).abs().max() > 1e-2
    for path in (tmp_path, file):
        model = load_model(narrow_folder("sd15"), device="cpu")
        lordfast.load_lora(model, path)
        torch.testing.assert_close(_prediction(model), expected, rtol=0, atol=1e-6)
    broken = metadata | {"unet.lora_alpha": "much"}
    save_file(held, file, metadata={"lora_adapter_metadata": json.dumps(broken)})
    with pytest.raises(ValueError, match=r"diffusers\.safetensors: lora_alpha is 'much'; expected a number"):
        lordfast.load_lora(bare, file)
    with pytest.raises(ValueError, match="the adapter name 'lora' is taken in the unet"):
        lordfast.load_lora(model, tmp_path)


@pytest.mark.parametrize("dora", [False, True])
def test_lord_goes_under_what_is_loaded_in_either_order(
    dora: bool, narrow_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_model(narrow_folder("sd15"), device="cpu")
    torch.manual_seed(0)
    lord = lordfast.LordConfig(r=2, target_modules=["to_q", "to_v"], init_weights=False)
    model.unet.add_adapter(lord, adapter_name="lord")
    with_lord = _prediction(model)
    lordfast.save_lord(model.unet, tmp_path)
    lora = LoraConfig(r=2, target_modules=["to_q", "to_k"], use_dora=dora, init_lora_weights=False)
    model.unet.add_adapter(lora, adapter_name="lora")
    expected = _prediction(model)
    tensors = peft.get_peft_model_state_dict(model.unet, adapter_name="lora")
    alpha = {f"{key.split('.lora_')[0]}.alpha": torch.tensor(8.0) for key in tensors}
    save_file(
        {f"unet.{key}": value.contiguous() for key, value in (tensors | alpha).items()}, tmp_path / "l.safetensors"
    )
    assert (expected - with_lord).abs().max() > 1e-2
    steps = [lambda m: lordfast.load_lord(m, tmp_path), lambda m: lordfast.load_lora(m, tmp_path / "l.safetensors")]
    for order in (steps, steps[::-1]):
        fresh = load_model(narrow_folder("sd15"), device="cpu")
        for step in order:
            step(fresh)
        torch.testing.assert_close(_prediction(fresh), expected, rtol=0, atol=1e-6)


_Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
_K = _Q.replace("to_q", "to_k")


class _Runs:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('code of the file was run')",)


_REFUSED: list[tuple[dict[str, Any], str]] = [
    ({f"{_K}.hada_w1_a": (2, 2)}, rf"is no plain LoRA: its tensor {_K}\.hada_w1_a is part of a LoHa"),
    ({f"{_K}.lokr_w1": (2, 2)}, "is part of a LoKr"),
    ({f"{_K}.diff": (2, 2)}, "is part of a full difference of weights"),
    ({"lora_unet_conv_norm_out.w_norm": (2,)}, "is part of a trained norm"),
    ({"bundle_emb.sks.string_to_param.*": (1, 8)}, "is part of an embedding"),
    ({"unet.conv_in.lora_B.bias": (2,)}, "is part of a LoRA with biases"),
    ({f"{_Q}.surprise": (1,)}, r"_to_q\.surprise is of an unknown kind; expected matrices A and B"),
    ({f"{_Q}.lora_up.weight": None}, r"is incomplete: layer mid_block\S+to_q of the unet has .*but no matrix B"),
    ({f"{_Q}.lora_down.weight": None}, "but no matrix A"),
    ({f"{_K}.alpha": ()}, r"layer mid_block\S+to_k of the unet has .*alpha, but no matrix A"),
    ({f"{_Q}.alpha": (2,)}, "_to_q.alpha has 2 values; expected one number"),
    ({f"{_Q}.lora_mid.weight": (2, 2, 3, 3)}, r"_to_q\.lora_mid\.weight has shape \(2, 2, 3, 3\)"),
    (
        {f"{_Q}.dora_scale": (1, "in")},
        "expected one DoRA magnitude for each of .* magnitudes of the inputs can't be",
    ),
    (
        {f"{_Q}.lora_down.weight": (2, 7)},
        r"layer mid_block\S+ of the unet: \S+ has shape \(2, 7\), expected \(2, \d+\) for a lin",
    ),
    ({"unet.nowhere.lora_A.weight": (2, 7)}, "adapts layer unet.nowhere .*the model has no linear layer or conv"),
    ({"lora_te2_text_projection.lora_up.weight": (2, 7)}, "it adapts a text_encoder_2 .* has unet, text_encoder$"),
    (
        {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight": (2, 7)},
        "are the same tens",
    ),
    ({f"{_Q}.lora_down.weight": torch.ones(2, 8, dtype=torch.int8)}, "is of torch.int8; expected floating-point"),
    (
        {f"{_Q}.lora_up.weight": torch.full((8, 2), torch.nan)},
        r"_to_q\.lora_up\.weight holds NaN or infinite values",
    ),
    ({f"{_Q}.lora_up.weight": None, f"{_Q}.lora_down.weight": None}, "holds no LoRA"),
]


def test_what_can_not_take_effect_is_named_and_the_model_is_left_as_it_was(
    narrow_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_model(narrow_folder("sd15"), device="cpu")
    layer = model.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    sizes = {"in": layer.in_features}
    good = {
        f"{_Q}.alpha": torch.tensor(1.0),
        f"{_Q}.lora_down.weight": torch.ones(2, layer.in_features),
        f"{_Q}.lora_up.weight": torch.ones(layer.out_features, 2),
    }
    file = tmp_path / "odd.safetensors"
    before = model.unet.state_dict().keys()
    for change, message in _REFUSED:
        shaped = {
            key: torch.ones([sizes.get(size, size) for size in value]) if isinstance(value, tuple) else value
            for key, value in change.items()
        }
        save_file({key: value for key, value in (good | shaped).items() if value is not None}, file)
        with pytest.raises(ValueError, match=message) as error:
            lordfast.load_lora(model, file)
        assert str(file) in str(error.value) and len(str(error.value)) < 700
        assert model.unet.state_dict().keys() == before and not hasattr(model.unet, "peft_config")
    save_file(good, file)
    lordfast.load_lora(model, file)
    assert hasattr(model.unet, "peft_config")


def test_files_that_hold_more_than_tensors_are_not_run(narrow_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_model(narrow_folder("sd15"), device="cpu")
    torch.save({"a": _Runs()}, tmp_path / "new.pt")
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps(_Runs()))
    (tmp_path / "page.bin").write_text("<html>")
    for name in ("new.pt", "old.ckpt", "page.bin"):
        with pytest.raises(ValueError, match=f"{name} is neither a safetensors file nor one by torch.save that holds"):
            lordfast.load_lora(model, tmp_path / name)
    (tmp_path / "page.safetensors").write_text("<html>")
    with pytest.raises(ValueError, match=r"page\.safetensors is not a readable safetensors file"):
        lordfast.load_lora(model, tmp_path / "page.safetensors")
    torch.save({"a": "b"}, tmp_path / "words.pt")
    with pytest.raises(ValueError, match=r"words\.pt: a is a str; expected tensors alone"):
        lordfast.load_lora(model, tmp_path / "words.pt")
    with pytest.raises(FileNotFoundError, match=r"none\.pt does not exist"):
        lordfast.load_lora(model, tmp_path / "none.pt")
