"""LoRD under LoRAs: either order, switched, frozen, blended, deleted."""

from __future__ import annotations

from types import SimpleNamespace

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft.tuners.lora import LoraLayer

import lordfast


def _kinds(unet: UNet2DConditionModel) -> list[str]:
    module, kinds = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_out[0], []
    while module is not None:
        kinds.append(type(module).__module__.split(".")[0] + "." + type(module).__name__)
        module = getattr(module, "base_layer", None)
    return kinds


def _copy_lord(source: UNet2DConditionModel, target: UNet2DConditionModel) -> None:
    parameters = {name.replace(".base_layer.", "."): p for name, p in source.named_parameters() if ".lord_" in name}
    for name, parameter in target.named_parameters():
        if ".lord_" in name:
            parameter.data.copy_(parameters[name.replace(".base_layer.", ".")])


def test_either_order_nests_the_same_way_and_computes_the_same(tiny: SimpleNamespace) -> None:
    first, second = tiny.unet(), tiny.unet()
    first.add_adapter(tiny.config(), adapter_name="lord")
    tiny.add_lora(first)
    tiny.add_lora(second)
    second.add_adapter(tiny.config(), adapter_name="lord")
    second.set_adapter("sks")
    _copy_lord(first, second)
    assert _kinds(first) == _kinds(second) == ["peft.Linear", "lordfast.LordLinear", "torch.Linear"]
    out = tiny.run(first)
    assert torch.equal(out, tiny.run(second))
    alone = tiny.unet()
    alone.add_adapter(tiny.config(), adapter_name="lord")
    _copy_lord(first, alone)
    only_lora = tiny.unet()
    tiny.add_lora(only_lora)
    for other in (alone, only_lora, tiny.unet()):
        assert not torch.allclose(out, tiny.run(other))


def test_adding_lord_leaves_a_lora_trainable_and_the_other_way_round(tiny: SimpleNamespace) -> None:
    unet = tiny.unet()
    tiny.add_lora(unet)
    lora = {name for name, p in unet.named_parameters() if p.requires_grad}
    peft.inject_adapter_in_model(tiny.config(), unet, "lord")
    trainable = {name.replace(".base_layer.lord", ".lord") for name, p in unet.named_parameters() if p.requires_grad}
    assert lora <= trainable and {name for name in trainable if ".lord_" in name}
    assert not any(".lora_" not in name and ".lord_" not in name for name in trainable)


def test_lord_stays_on_whatever_happens_to_loras(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    only_lord = tiny.run(lord_unet)
    tiny.add_lora(lord_unet, "one", seed=1)
    with_one = tiny.run(lord_unet)
    tiny.add_lora(lord_unet, "two", seed=2)
    with_two = tiny.run(lord_unet)
    assert not torch.allclose(only_lord, with_one) and not torch.allclose(with_one, with_two)

    lord_unet.set_adapter("one")
    assert torch.equal(tiny.run(lord_unet), with_one)
    lord_unet.set_adapters(["two"], [1.0])
    assert torch.equal(tiny.run(lord_unet), with_two)
    lord_unet.disable_lora()
    assert torch.equal(tiny.run(lord_unet), only_lord)
    lord_unet.enable_lora()
    assert torch.equal(tiny.run(lord_unet), with_two)
    lord_unet.disable_adapters()
    assert torch.equal(tiny.run(lord_unet), only_lord)
    lord_unet.enable_adapters()
    lord_unet.set_adapters(["lord", "one"])
    assert torch.equal(tiny.run(lord_unet), with_one)
    lord_unet.delete_adapters(["one", "two"])
    torch.testing.assert_close(tiny.run(lord_unet), only_lord, rtol=0, atol=0)


def test_scale_zero_of_a_forward_pass_is_loras_only(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    only_lord = tiny.run(lord_unet)
    tiny.add_lora(lord_unet)
    both = tiny.run(lord_unet)
    sample, timestep, text = tiny.inputs()
    out = lord_unet(sample, timestep, encoder_hidden_states=text, cross_attention_kwargs={"scale": 0.0}).sample
    torch.testing.assert_close(out, only_lord, rtol=0, atol=0)
    assert torch.equal(tiny.run(lord_unet), both)


def test_fuse_lora_folds_the_lora_and_leaves_lord(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    only_lord = tiny.run(lord_unet)
    tiny.add_lora(lord_unet)
    both = tiny.run(lord_unet)
    lord_unet.fuse_lora()
    torch.testing.assert_close(tiny.run(lord_unet), both, rtol=1e-5, atol=1e-6)
    lord_unet.unfuse_lora()
    lord_unet.disable_lora()
    torch.testing.assert_close(tiny.run(lord_unet), only_lord, rtol=1e-5, atol=1e-6)


def test_lord_can_not_be_blended(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    tiny.add_lora(lord_unet)
    with pytest.raises(ValueError, match=r"'lord' can't be blended at weight 0.5; leave it out of set_adapters"):
        lord_unet.set_adapters(["lord", "sks"], [0.5, 1.0])


def test_lord_disabled_is_the_model_without_lord(tiny: SimpleNamespace) -> None:
    unet = tiny.unet()
    tiny.add_lora(unet)
    lora_only = tiny.run(unet)
    unet.add_adapter(tiny.config(), adapter_name="lord")
    unet.set_adapter("sks")
    both = tiny.run(unet)
    with lordfast.lord_disabled(unet), lordfast.collect_gates(unet) as gates:
        assert torch.equal(tiny.run(unet), lora_only)
    assert len(gates) == 0
    assert torch.equal(tiny.run(unet), both) and not torch.allclose(both, lora_only)


def test_peft_model_disables_its_own_lord(unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    bare = tiny.run(unet)
    model = peft.get_peft_model(unet, tiny.config(), adapter_name="lord")
    adapted = tiny.run(model)
    with model.disable_adapter():
        assert torch.equal(tiny.run(model), bare)
    assert torch.equal(tiny.run(model), adapted) and not torch.allclose(adapted, bare)


def test_frozen_stays_frozen(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    parameters = tiny.lord_parameters(lord_unet).values()
    assert all(p.requires_grad for p in parameters)
    lordfast.freeze_lord(lord_unet)
    tiny.add_lora(lord_unet)
    lord_unet.set_adapter(["lord", "sks"])
    lord_unet.set_adapters(["lord", "sks"])
    lord_unet.enable_adapters()
    peft.tuners.tuners_utils.set_requires_grad(lord_unet, ["lord", "sks"], True)
    assert not any(p.requires_grad for p in tiny.lord_parameters(lord_unet).values())
    lora = [p for name, p in lord_unet.named_parameters() if ".lora_" in name]
    assert lora and all(p.requires_grad for p in lora)
    before = {name: p.detach().clone() for name, p in tiny.lord_parameters(lord_unet).items()}
    optimizer = torch.optim.SGD([p for p in lord_unet.parameters() if p.requires_grad], lr=1.0)
    tiny.run(lord_unet).square().mean().backward()
    optimizer.step()
    for name, p in tiny.lord_parameters(lord_unet).items():
        assert p.grad is None and torch.equal(p, before[name])
    lordfast.unfreeze_lord(lord_unet)
    assert all(p.requires_grad for p in tiny.lord_parameters(lord_unet).values())


def test_two_lords_take_turns(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    first = tiny.run(lord_unet)
    lord_unet.add_adapter(tiny.config(r=3, gate_hidden=5), adapter_name="second")
    second = tiny.run(lord_unet)
    assert not torch.allclose(first, second)
    lord_unet.set_adapter("lord")
    assert torch.equal(tiny.run(lord_unet), first)
    with pytest.raises(ValueError, match="only one LoRD adapter can be active"):
        lord_unet.set_adapter(["lord", "second"])
    lord_unet.delete_adapters("lord")
    assert torch.equal(tiny.run(lord_unet), second)


def test_lora_state_dict_has_nothing_of_lord(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    tiny.add_lora(lord_unet)
    lora = peft.get_peft_model_state_dict(lord_unet, adapter_name="sks")
    assert len(lora) == 32 * 2 and not any("lord" in key for key in lora)
    lord = peft.get_peft_model_state_dict(lord_unet, adapter_name="lord")
    assert len(lord) == 32 * 7 and not any("lora" in key for key in lord)


def test_pipeline_switches_loras_over_lord(pipe: StableDiffusionPipeline, tiny: SimpleNamespace) -> None:
    pipe.unet.add_adapter(tiny.config(), adapter_name="lord")
    only_lord = tiny.run(pipe.unet)
    tiny.add_lora(pipe.unet, "one", seed=1)
    with_one = tiny.run(pipe.unet)
    tiny.add_lora(pipe.unet, "two", seed=2)
    pipe.set_adapters("one")
    assert torch.equal(tiny.run(pipe.unet), with_one)
    pipe.disable_lora()
    assert torch.equal(tiny.run(pipe.unet), only_lord)
    pipe.enable_lora()
    pipe.unload_lora_weights()
    assert torch.equal(tiny.run(pipe.unet), only_lord)
    assert not any(isinstance(m, LoraLayer) for m in pipe.unet.modules())
    assert set(pipe.unet.peft_config) == {"lord"}
    # And on it goes: LoRAs can be loaded again.
    tiny.add_lora(pipe.unet, "one", seed=1)
    assert torch.equal(tiny.run(pipe.unet), with_one)
