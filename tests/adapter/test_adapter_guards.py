"""Every way in which PEFT or diffusers would lose LoRD in silence raises, or keeps it."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig

import lordfast


def _lords(model: torch.nn.Module) -> int:
    return sum(isinstance(m, lordfast.LordLayer) for m in model.modules())


def test_peft_model_refuses_to_merge(unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    model = peft.get_peft_model(unet, tiny.config(), adapter_name="lord")
    out = tiny.run(model)
    for call in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(ValueError, match="LoRD can't be merged"):
            call()
    with pytest.raises(ValueError, match="LoRD can't be merged"):
        model.base_model.merge_and_unload(adapter_names=["lord"])
    assert torch.equal(tiny.run(model), out)


def test_fuse_lora_by_lords_name_is_refused(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="'lord' can't be merged"):
        lord_unet.fuse_lora(adapter_names=["lord"])


@pytest.mark.parametrize("targets", [["to_q", "to_k", "to_v", "to_out.0"], ["to_v"], ["conv1"]])
@pytest.mark.parametrize("method", ["merge_and_unload", "unload"])
def test_another_method_can_not_unload_lord_with_itself(
    targets: list[str], method: str, lord_unet: UNet2DConditionModel, tiny: SimpleNamespace
) -> None:
    config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(lord_unet, config, adapter_name="sks")
    out = tiny.run(model)
    with pytest.raises(RuntimeError, match="would drop LoRD"):
        getattr(model, method)()
    assert torch.equal(tiny.run(model), out) and _lords(model) == 32


def test_another_method_unloads_as_ever_without_lord(unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    bare = tiny.run(unet)
    config = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    model = peft.get_peft_model(unet, config, adapter_name="sks")
    assert torch.equal(tiny.run(model.unload()), bare)


def test_lord_model_unloads_on_demand(unet: UNet2DConditionModel, tiny: SimpleNamespace, tmp_path: Path) -> None:
    bare = tiny.run(unet)
    model = peft.get_peft_model(unet, tiny.config(), adapter_name="lord")
    base = model.unload()
    assert _lords(base) == 0 and torch.equal(tiny.run(base), bare)
    base.save_pretrained(tmp_path)


def test_fused_projections_and_lord_exclude_each_other(
    lord_unet: UNet2DConditionModel, unet: UNet2DConditionModel, pipe: StableDiffusionPipeline, tiny: SimpleNamespace
) -> None:
    with pytest.raises(RuntimeError, match="fuse_qkv_projections is not possible while LoRD is in the model"):
        lord_unet.fuse_qkv_projections()
    pipe.unet.add_adapter(tiny.config(), adapter_name="lord")
    with pytest.raises(RuntimeError, match="fuse_qkv_projections"):
        pipe.fuse_qkv_projections()
    unet.fuse_qkv_projections()
    with pytest.raises(ValueError, match="fused projections, which would bypass LoRD"):
        peft.inject_adapter_in_model(tiny.config(), unet, "lord")
    assert _lords(unet) == 0


def test_saving_a_model_with_lord_is_refused(
    pipe: StableDiffusionPipeline, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    bare = tiny.run(pipe.unet)
    pipe.unet.add_adapter(tiny.config(), adapter_name="lord")
    with pytest.raises(RuntimeError, match=r"save LoRD with lordfast.save_lord"):
        pipe.save_pretrained(tmp_path / "pipe")
    with pytest.raises(RuntimeError, match="save_pretrained"):
        copy.deepcopy(pipe.unet).save_pretrained(tmp_path / "unet")
    lordfast.remove_lord(pipe)
    pipe.save_pretrained(tmp_path / "clean")
    again = StableDiffusionPipeline.from_pretrained(tmp_path / "clean")
    assert torch.equal(tiny.run(again.unet), bare)


def test_a_copy_unloads_its_own_loras(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    only_lord = tiny.run(lord_unet)
    tiny.add_lora(lord_unet)
    both = tiny.run(lord_unet)
    clone = copy.deepcopy(lord_unet)
    clone.unload_lora()
    assert torch.equal(tiny.run(clone), only_lord)
    assert torch.equal(tiny.run(lord_unet), both)


def test_unload_also_takes_loras_that_are_not_over_lord(tiny: SimpleNamespace) -> None:
    unet = tiny.unet()
    unet.add_adapter(tiny.config(target_modules=["to_v"]), adapter_name="lord")
    only_lord = tiny.run(unet)
    tiny.add_lora(unet, target_modules=["to_q", "to_v", "conv1"])
    assert not torch.allclose(tiny.run(unet), only_lord)
    unet.unload_lora()
    assert torch.equal(tiny.run(unet), only_lord)
    assert {type(m).__name__ for m in unet.modules() if hasattr(m, "base_layer")} == {"LordLinear"}


def test_remove_lord_leaves_the_bare_model_or_its_loras(tiny: SimpleNamespace) -> None:
    unet = tiny.unet()
    keys, bare = set(unet.state_dict()), tiny.run(unet)
    unet.add_adapter(tiny.config(), adapter_name="lord")
    lordfast.remove_lord(unet)
    assert set(unet.state_dict()) == keys and torch.equal(tiny.run(unet), bare)
    assert not hasattr(unet, "peft_config")
    tiny.add_lora(unet)
    only_lora = tiny.run(unet)
    unet.add_adapter(tiny.config(), adapter_name="lord")
    unet.set_adapter("sks")
    assert not torch.allclose(tiny.run(unet), only_lora)
    lordfast.remove_lord(unet)
    assert torch.equal(tiny.run(unet), only_lora) and set(unet.peft_config) == {"sks"}
    unet.unload_lora()
    assert torch.equal(tiny.run(unet), bare)
    with pytest.raises(ValueError, match="no LoRD adapter"):
        lordfast.remove_lord(unet)


def test_remove_lord_by_name_and_after_delete_adapters(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    bare = tiny.run(tiny.unet())
    first = tiny.run(lord_unet)
    lord_unet.add_adapter(tiny.config(), adapter_name="second")
    with pytest.raises(ValueError, match="no LoRD adapter named 'third'"):
        lordfast.remove_lord(lord_unet, "third")
    lordfast.remove_lord(lord_unet, "second")
    assert torch.equal(tiny.run(lord_unet), first) and set(lord_unet.peft_config) == {"lord"}
    lord_unet.delete_adapters("lord")
    assert torch.equal(tiny.run(lord_unet), bare) and _lords(lord_unet) == 32
    lordfast.remove_lord(lord_unet)
    assert _lords(lord_unet) == 0 and torch.equal(tiny.run(lord_unet), bare)


def test_one_name_for_lord_and_lora_is_refused_either_way(tiny: SimpleNamespace) -> None:
    unet = tiny.unet()
    tiny.add_lora(unet, "same")
    only_lora = tiny.run(unet)
    with pytest.raises(ValueError, match=r"'same' is already in use in the model, by a LoraConfig"):
        peft.inject_adapter_in_model(tiny.config(), unet, "same")
    assert _lords(unet) == 0 and torch.equal(tiny.run(unet), only_lora)
    assert isinstance(unet.peft_config["same"], LoraConfig)

    unet = tiny.unet()
    unet.add_adapter(tiny.config(), adapter_name="same")
    only_lord = tiny.run(unet)
    lora = LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    with pytest.raises(ValueError, match="'same' is taken by LoRD; choose another one for LoraConfig"):
        peft.inject_adapter_in_model(lora, unet, "same")
    with pytest.raises(ValueError, match="'same' is taken by LoRD"):
        peft.get_peft_model(unet, lora, adapter_name="same")
    with pytest.raises(ValueError, match="already exists"):
        unet.add_adapter(lora, adapter_name="same")
    assert torch.equal(tiny.run(unet), only_lord)


def test_diffusers_can_not_take_a_lord_file_for_a_lora(
    lord_unet: UNet2DConditionModel, pipe: StableDiffusionPipeline, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    file = lordfast.save_lord(lord_unet, tmp_path / "lord.safetensors")
    bare = tiny.run(pipe.unet)
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        pipe.load_lora_weights(str(file))
    with pytest.raises((ValueError, IndexError, KeyError)):
        pipe.unet.load_lora_adapter(str(file), prefix=None)
    assert torch.equal(tiny.run(pipe.unet), bare)


def test_unnamed_loras_get_names_of_their_own_over_lord(
    lord_unet: UNet2DConditionModel, tiny: SimpleNamespace, tmp_path: Path
) -> None:
    trained = tiny.unet()
    tiny.add_lora(trained)
    file = lordfast.save_lora(trained, tmp_path, "sks")
    for _ in range(2):
        lord_unet.load_lora_adapter(str(file), prefix="unet")
    assert set(lord_unet.peft_config) == {"lord", "default_0", "default_1"}
