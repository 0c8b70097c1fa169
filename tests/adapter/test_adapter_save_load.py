"""save_lord and load_lord: an exact round trip, and refusals that leave the model alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import safetensors.torch
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

import lordfast
from lordfast import files
from lordfast.adapter import save_load


def _bare(parameters: dict[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    return {name.replace(".base_layer.", ".").rpartition(".")[0]: p.detach() for name, p in parameters.items()}


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _unchanged(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    after = model.state_dict()
    return list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("saved_under_lora", [False, True])
@pytest.mark.parametrize("loaded_over_lora", [False, True])
def test_round_trip_is_exact_whatever_is_nested(
    saved_under_lora: bool, loaded_over_lora: bool, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    source, target = tiny.unet(), tiny.unet()
    config = tiny.config(gate_activation="relu", gate_granularity="sample", exclude_modules=["attn2.to_q"])
    source.add_adapter(config, adapter_name="original")
    expected = tiny.run(source)
    if saved_under_lora:
        tiny.add_lora(source)
    file = lordfast.save_lord(source, tmp_path / "new" / "folder")
    if loaded_over_lora:
        tiny.add_lora(target, "other")
        target.disable_lora()
    rng = torch.get_rng_state()
    loaded = lordfast.load_lord(target, file.parent)
    assert torch.equal(torch.get_rng_state(), rng)
    assert loaded.to_record() == config.to_record()
    want, got = _bare(tiny.lord_parameters(source)), _bare(tiny.lord_parameters(target))
    assert len(want) == 28 * 7 and want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert torch.equal(tiny.run(target), expected)


def test_the_file_holds_the_adapter_only_and_its_config(lord_unet: UNet2DConditionModel, tmp_path: Path) -> None:
    file = lordfast.save_lord(lord_unet, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lord.safetensors", "lord_config.json"]
    tensors = safetensors.torch.load_file(file)
    assert len(tensors) == 32 * 7 and {t.dtype for t in tensors.values()} == {torch.float32}
    assert not any("base_layer" in key or key.endswith(".weight") for key in tensors)
    with safetensors.safe_open(file, framework="pt") as opened:
        record = json.loads(opened.metadata()["lord_config"])
    assert record == json.loads((tmp_path / "lord_config.json").read_text())
    assert record["r"] == 2 and record["target_modules"] == ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.mark.parametrize("into", ["pipe", "unet", "peft", "compiled"])
def test_loads_into_a_pipeline_or_a_module_and_freezes(
    into: str, lord_unet: UNet2DConditionModel, pipe: StableDiffusionPipeline, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    expected = tiny.run(lord_unet)
    file = lordfast.save_lord(lord_unet, tmp_path / "defence.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["defence.json", "defence.safetensors"]
    unet = pipe.unet
    target = {"pipe": pipe, "unet": unet, "compiled": torch.compile(unet)}.get(into)
    if into == "peft":
        target = peft.get_peft_model(unet, peft.LoraConfig(r=2, target_modules=["to_q"]), adapter_name="none")
    lordfast.load_lord(target, file, adapter_name="defence")
    torch.testing.assert_close(tiny.run(unet), expected, rtol=0, atol=0)
    tiny.add_lora(unet)
    unet.set_adapters(["defence", "sks"])
    assert not any(p.requires_grad for p in tiny.lord_parameters(unet).values())
    assert any(p.requires_grad for name, p in unet.named_parameters() if ".lora_" in name)


def test_trainable_trains_and_half_bases_keep_fp32(
    lord_unet: UNet2DConditionModel, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    lordfast.save_lord(lord_unet, tmp_path)
    target = tiny.unet().to(torch.bfloat16)
    lordfast.load_lord(target, tmp_path, trainable=True)
    want, got = _bare(tiny.lord_parameters(lord_unet)), _bare(tiny.lord_parameters(target))
    assert all(got[name].dtype == torch.float32 and torch.equal(want[name], got[name]) for name in want)
    assert all(p.requires_grad for p in tiny.lord_parameters(target).values())
    assert not any(p.requires_grad for name, p in target.named_parameters() if ".lord_" not in name)
    lordfast.save_lord(target, tmp_path / "again")
    assert (tmp_path / "again" / "lord.safetensors").read_bytes() == (tmp_path / "lord.safetensors").read_bytes()


def test_training_state_survives_nothing_else_is_touched(
    lord_unet: UNet2DConditionModel, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    lordfast.save_lord(lord_unet, tmp_path)
    target = tiny.unet()
    tiny.add_lora(target)
    before = {name: p.requires_grad for name, p in target.named_parameters() if ".lora_" in name}
    lordfast.load_lord(target, tmp_path)
    assert {name: p.requires_grad for name, p in target.named_parameters() if ".lora_" in name} == before
    assert all(before.values())
    with pytest.raises(ValueError, match="'lord' is already in use in the model, by a LordConfig"):
        lordfast.load_lord(target, tmp_path)
    assert "lord" in target.peft_config and len(tiny.lord_parameters(target)) == 32 * 7


def test_missing_and_foreign_files(unet: UNet2DConditionModel, tiny: SimpleNamespace, tmp_path: Path) -> None:
    before = _state(unet)
    with pytest.raises(FileNotFoundError, match=r"expected a folder with lord.safetensors"):
        lordfast.load_lord(unet, tmp_path / "nowhere")
    lora = tiny.unet()
    tiny.add_lora(lora)
    file = lordfast.save_lora(lora, tmp_path / "lora", "sks")
    with pytest.raises(ValueError, match="is not a LoRD adapter.*load it with load_lora_weights"):
        lordfast.load_lord(unet, file)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        lordfast.load_lord(unet, torn)
    with pytest.raises(TypeError, match="a pipeline with a unet or a transformer, got str"):
        lordfast.load_lord("model", file)
    assert _unchanged(unet, before)


def test_another_models_weights_are_refused_and_nothing_changes(
    lord_unet: UNet2DConditionModel, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    lordfast.save_lord(lord_unet, tmp_path)
    wider = tiny.unet(block_out_channels=(12, 16))
    deeper = tiny.unet(layers_per_block=2)
    shallow = tiny.unet(mid_block_type=None)
    cases = [
        (wider, r"layer \S+to_k, lord_A: the file has shape \(2, 8\), the model's layer \(12 -> 12\) needs \(2, 12\)"),
        (deeper, r"match 16 layers that the file has no tensors for, the first of them down_blocks"),
        (shallow, r"adapts layer mid_block\S+, which the model does not have"),
    ]
    for unet, words in cases:
        tiny.add_lora(unet)
        before = _state(unet)
        with pytest.raises(ValueError, match=words):
            lordfast.load_lord(unet, tmp_path)
        assert _unchanged(unet, before) and set(unet.peft_config) == {"sks"}


def test_a_name_taken_by_a_lora_is_refused(
    lord_unet: UNet2DConditionModel, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    lordfast.save_lord(lord_unet, tmp_path)
    target = tiny.unet()
    tiny.add_lora(target, "lord")
    before = _state(target)
    with pytest.raises(ValueError, match="'lord' is already in use in the model, by a LoraConfig"):
        lordfast.load_lord(target, tmp_path)
    assert _unchanged(target, before)
    with pytest.raises(ValueError, match="without dots, got 'a.b'"):
        lordfast.load_lord(target, tmp_path, adapter_name="a.b")


def test_an_interrupted_save_leaves_the_old_file(
    lord_unet: UNet2DConditionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = lordfast.save_lord(lord_unet, tmp_path)
    old = file.read_bytes()

    def full(source: object, target: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        lordfast.save_lord(lord_unet, tmp_path)
    assert file.read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lord.safetensors", "lord_config.json"]


def test_which_adapter_is_saved(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace, tmp_path: Path) -> None:
    lord_unet.add_adapter(tiny.config(r=3), adapter_name="second")
    lordfast.save_lord(lord_unet, tmp_path / "active")
    lordfast.save_lord(lord_unet, tmp_path / "named", adapter_name="lord")
    assert save_load.read_lord(tmp_path / "active")[0].r == 3
    assert save_load.read_lord(tmp_path / "named")[0].r == 2
    with pytest.raises(ValueError, match="no LoRD adapter named 'third'"):
        lordfast.save_lord(lord_unet, tmp_path / "none", adapter_name="third")
    with pytest.raises(ValueError, match="one active LoRD adapter"):
        lordfast.save_lord(tiny.unet(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_config_of_another_version_is_refused(lord_unet: UNet2DConditionModel) -> None:
    record = lord_unet.peft_config["lord"].to_record()
    with pytest.raises(ValueError, match=r"unknown fields \['gate_depth'\], missing fields \[\]"):
        lordfast.LordConfig.from_record(record | {"gate_depth": 2})


def test_pefts_own_save_and_load_round_trips(tiny: SimpleNamespace, tmp_path: Path) -> None:
    model = peft.get_peft_model(tiny.unet(), tiny.config(), adapter_name="defence")
    expected = tiny.run(model)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(tiny.unet(), tmp_path / "defence", adapter_name="other")
    assert torch.equal(tiny.run(again), expected)
