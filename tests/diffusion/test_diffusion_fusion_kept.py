"""A fused UNet does less: fewer operations, a text's projections once; what they were kept for is known exactly."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0, SlicedAttnProcessor
from torch import Tensor

import lordfast
from lordfast.diffusion.topologies import build_denoiser, find_topology

# ---- how often ------------------------------------------------------------------------------------------------------


def test_fewer_operations(fusing: SimpleNamespace) -> None:
    unet = fusing.lord(build_denoiser(find_topology("sd15-narrow")))
    call = fusing.Call(unet, dtype=torch.float32)
    with fusing.counted() as before:
        call.outcome(unet)
    lordfast.optimize(unet)
    with fusing.counted() as after:
        call.outcome(unet)
    assert before == {"lord_forward": 128, "lord_backward": 128}
    # q and out of the cross-attentions and out of the self-attentions are what is left to compute one by one.
    forward = {"lord_forward": 48, "lord_qkv_forward": 16, "lord_stack_forward": 1}
    assert after == {**forward, "lord_backward": 48 + 3 * 16, "lord_stack_backward": 1}
    # One product, and for each of the two widths one batch.
    (hook,) = unet._forward_pre_hooks.values()
    assert [group.runs for group in hook._groups] == [[20, 12]]


def test_a_text_is_projected_once(fusing: SimpleNamespace) -> None:
    unet = lordfast.optimize(fusing.lord(fusing.unet()))
    call = fusing.Call(unet)
    call.text.requires_grad_(False)
    with torch.no_grad(), fusing.counted() as sampling:
        for step in range(4):
            call.timestep = torch.tensor([step, step])
            call.predict(unet)
    assert sampling["lord_stack_forward"] == 1
    with fusing.counted() as training:
        for _ in range(2):
            call.outcome(unet)
    assert training["lord_stack_forward"] == 2 == training["lord_stack_backward"]
    lordfast.freeze_lord(unet)
    with fusing.counted() as attack:
        for _ in range(3):
            torch.autograd.grad(call.predict(unet).sum(), call.latents)
    assert attack["lord_stack_forward"] == 1 and attack["lord_stack_backward"] == 0


def edit_text(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    call.text[0, 0] += 1


def another_text(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    call.text = call.text + 1


def train(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    call.predict(unet).square().sum().backward()
    optimizer.step()


def one_parameter(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.lord_b2["lord"].add_(1)


def swap_data(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    parameter = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.lord_B_adv["lord"]
    parameter.data = parameter.data + 1


def base_weight(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.base_layer.weight.mul_(2)


def load(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    unet.load_state_dict({name: value + 0.01 for name, value in unet.state_dict().items()}, assign=True)


def fold_a_lora_in(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    fusing.lora(unet, "one")
    unet.fuse_lora()
    unet.unload_lora()


def second_lord(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    fusing.lord(unet, "second", r=2)


CHANGES = (edit_text, another_text, train, one_parameter, swap_data, base_weight, load, fold_a_lora_in, second_lord)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_kept_is_dropped(fusing: SimpleNamespace, change: Callable[[SimpleNamespace, Any, Any], None]) -> None:
    unet = lordfast.optimize(fusing.lord(fusing.unet()))
    call = fusing.Call(unet)
    call.text.requires_grad_(False)
    with torch.no_grad():
        before = call.predict(unet)
        assert torch.equal(call.predict(unet), before)
    with torch.set_grad_enabled(change is train):
        change(fusing, unet, call)
    with torch.no_grad():
        after = [call.predict(unet) for _ in range(2)]
        expected = call.predict(lordfast.restore(unet))
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(after, [expected, expected], rtol=1e-9, atol=1e-11)


def test_off_and_on_again(fusing: SimpleNamespace) -> None:
    unet = fusing.lord(fusing.unet())
    call = fusing.Call(unet)
    call.text.requires_grad_(False)

    def states() -> list[Tensor]:
        with torch.no_grad():
            found = [call.predict(unet)]
            with lordfast.lord_disabled(unet), lordfast.collect_gates(unet) as gates, fusing.counted() as ops:
                found.append(call.predict(unet))
            assert len(gates) == 0 and not ops
            return [*found, call.predict(unet)]

    expected = states()
    lordfast.optimize(unet)
    torch.testing.assert_close(states(), expected, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(expected[0], expected[1])


def test_inference_mode_and_back(fusing: SimpleNamespace) -> None:
    unet = lordfast.optimize(fusing.lord(fusing.unet()))
    lordfast.freeze_lord(unet)
    call = fusing.Call(unet)
    call.text.requires_grad_(False)
    with torch.inference_mode():
        own = call.predict(unet, call.text + 0)
        first = call.predict(unet)
    expected = call.outcome(lordfast.restore(copy.deepcopy(unet)))
    fusing.assert_same(call.outcome(unet), expected)
    torch.testing.assert_close([first.clone(), own.clone()], [expected["y"]] * 2, rtol=1e-9, atol=1e-11)


# ---- processors ------------------------------------------------------------------------------------------------------


def test_other_processors_are_left_alone(fusing: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    unet = fusing.lord(fusing.unet())
    call = fusing.Call(unet)
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    for attention in (block.attn1, block.attn2):
        attention.set_processor(SlicedAttnProcessor(1))
    expected = call.outcome(unet)
    with caplog.at_level(logging.INFO, "lordfast"):
        lordfast.optimize(unet)
    assert caplog.messages == ["UNet2DConditionModel: left alone in lordfast.optimize: 2 SlicedAttnProcessor"]
    with fusing.counted() as ops:
        fusing.assert_same(call.outcome(unet), expected)
    # One of its attentions would not know the text's projections: then they are computed as ever.
    assert ops["lord_qkv_forward"] == 3 and ops["lord_stack_forward"] == 0
    lordfast.restore(unet)
    assert type(block.attn2.processor) is SlicedAttnProcessor
    kinds = {type(p) for p in unet.attn_processors.values()}
    assert kinds == {SlicedAttnProcessor, AttnProcessor2_0}


def test_restored_to_the_bit_and_twice_is_harmless(fusing: SimpleNamespace) -> None:
    unet = fusing.lord(build_denoiser(find_topology("sd15-narrow")))
    call = fusing.Call(unet, dtype=torch.float32)
    before, names = call.outcome(unet), [name for name, _ in unet.named_modules()]
    state = {name: value.clone() for name, value in unet.state_dict().items()}
    lordfast.optimize(unet)
    fused = call.outcome(unet)
    again = call.outcome(lordfast.optimize(unet))
    assert all(torch.equal(again[name], tensor) for name, tensor in fused.items())
    assert len(unet._forward_pre_hooks) == 1
    assert [name for name, _ in unet.named_modules()] == names
    assert {name: value.shape for name, value in unet.state_dict().items()} == {n: v.shape for n, v in state.items()}
    assert all(torch.equal(value, state[name]) for name, value in unet.state_dict().items())
    assert lordfast.restore(unet) is unet and not unet._forward_pre_hooks
    assert {type(p) for p in unet.attn_processors.values()} == {AttnProcessor2_0}
    assert all(p.untyped_storage().nbytes() == p.numel() * 4 for p in unet.parameters())
    after = call.outcome(unet)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    lordfast.restore(unet)


def test_unknown_attention(fusing: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="attention: expected one of sdpa, xformers, got 'flash'"):
        lordfast.optimize(fusing.unet(), attention="flash")
