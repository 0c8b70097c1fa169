"""A fused UNet does less: fewer operations, a text's projections once; what they were kept for is known exactly."""

from __future__ import annotations

import copy
import gc
import logging
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models import attention_processor
from diffusers.models.attention_processor import AttnProcessor2_0, SlicedAttnProcessor
from torch import Tensor

import lordfast
from lordfast.diffusion.text_projections import Group
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


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_text_is_projected_once(fusing: SimpleNamespace, temperature: float) -> None:
    unet = lordfast.optimize(fusing.lord(fusing.unet(), gate_temperature=temperature))
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
    pixels = torch.optim.Adam([call.latents])
    with fusing.counted() as attack:
        for _ in range(3):
            call.predict(unet).sum().backward()
            pixels.step()
    assert attack["lord_stack_forward"] == 1 and attack["lord_stack_backward"] == 0


def kept_of(unet: Any) -> Any:
    (hook,) = unet._forward_pre_hooks.values()
    return hook._kept


def edit_text(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    call.text[0, 0] += 1


def another_text(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    call.text = call.text + 1


def train(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    call.predict(unet).square().sum().backward()
    optimizer.step()


def trainable(unet: Any) -> list[Any]:
    return [p for p in unet.parameters() if p.requires_grad]


def train_and_look_before_the_step(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    optimizer = torch.optim.AdamW(trainable(unet), lr=0.1, fused=True)
    call.predict(unet).square().sum().backward()
    with torch.no_grad():
        call.predict(unet)
    optimizer.step()


def step_with_given_gradients(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    optimizer = torch.optim.AdamW(trainable(unet), lr=0.1, fused=True)
    for parameter in trainable(unet):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def fused_sgd(parameters: list[Any]) -> None:
    """An optimiser that torch doesn't know of, and that leaves versions as they are."""
    versions = [p._version for p in parameters]
    options = {"weight_decay": 0.0, "momentum": 0.0, "lr": 0.1, "dampening": 0.0, "nesterov": False}
    with torch.no_grad():
        torch._fused_sgd_(parameters, [p.grad for p in parameters], [], **options, maximize=False, is_first_step=True)
    assert versions == [p._version for p in parameters]


def look_before_an_unknown_step(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    call.predict(unet).square().sum().backward()
    with torch.no_grad():
        call.predict(unet)
    fused_sgd([p for p in trainable(unet) if p.grad is not None])
    unet.zero_grad()


TRAINING = (train, train_and_look_before_the_step, look_before_an_unknown_step)


def one_parameter(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.lord_b2["lord"].add_(1)


def swap_data(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    parameter = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.lord_B_adv["lord"]
    parameter.data = parameter.data + 1


def base_weight(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.base_layer.weight.mul_(2)


def load(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    unet.load_state_dict({name: value + 0.01 for name, value in unet.state_dict().items()}, assign=True)


def override_lambda(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    lordfast.override_lambda(unet, 0.75)


def fold_a_lora_in(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    fusing.lora(unet, "one")
    unet.fuse_lora()
    unet.unload_lora()


def second_lord(fusing: SimpleNamespace, unet: Any, call: Any) -> None:
    fusing.lord(unet, "second", r=2)


OTHERS = (
    *(edit_text, another_text, one_parameter, swap_data, base_weight, load),
    *(override_lambda, fold_a_lora_in, second_lord),
)
CHANGES = (*TRAINING, step_with_given_gradients, *OTHERS)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_kept_is_dropped(fusing: SimpleNamespace, change: Callable[[SimpleNamespace, Any, Any], None]) -> None:
    unet = lordfast.optimize(fusing.lord(fusing.unet()))
    call = fusing.Call(unet)
    call.text.requires_grad_(False)
    with torch.no_grad():
        before = call.predict(unet)
        assert torch.equal(call.predict(unet), before)
    with torch.set_grad_enabled(change in TRAINING):
        change(fusing, unet, call)
    with torch.no_grad():
        after = [call.predict(unet) for _ in range(2)]
        expected = call.predict(lordfast.restore(unet))
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(after, [expected, expected], rtol=1e-9, atol=1e-11)


def test_a_call_compiled_as_a_whole_drops_what_is_kept(fusing: SimpleNamespace) -> None:
    unet = lordfast.optimize(fusing.lord(fusing.unet()))
    call = fusing.Call(unet)
    call.text.requires_grad_(False)
    (hook,) = unet._forward_pre_hooks.values()
    torch._dynamo.reset()

    @torch.compile(backend="eager", fullgraph=True)
    def traced(x: Tensor) -> tuple[Any, Tensor]:
        return hook(unet, (x,), {}), x + 1

    for _ in range(2):  # traced, then run as it was traced
        with torch.no_grad():
            call.predict(unet)
        assert kept_of(unet) is not None
        assert traced(call.latents)[0] is None and kept_of(unet) is None


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


@pytest.mark.parametrize("lora", [False, True], ids=["lord", "under a lora that is off"])
def test_hooks_that_change_outputs_in_place(fusing: SimpleNamespace, lora: bool) -> None:
    unet = fusing.lord(fusing.unet())
    if lora:
        fusing.lora(unet, "one")
        unet.disable_lora()
    hooked = [module for path, module in unet.named_modules() if path.endswith(("attn2.to_v", "attn2.to_k"))]
    call = fusing.Call(unet)
    handles = [module.register_forward_hook(lambda module, args, out: out * 1.5) for module in hooked]
    expected = call.outcome(unet)
    for handle, module in zip(handles, hooked, strict=True):
        handle.remove()
        module.register_forward_hook(lambda module, args, out: out.mul_(1.5))
    fusing.assert_same(call.outcome(lordfast.optimize(unet)), expected)
    call.text.requires_grad_(False)
    with torch.no_grad(), fusing.counted() as ops:
        found = [call.predict(unet) for _ in range(3)]
    torch.testing.assert_close(found, [expected["y"]] * 3, rtol=1e-9, atol=1e-11)
    assert ops["lord_stack_forward"] == 1  # and still they are kept


def test_captured_graphs_neither_use_nor_leave_anything_kept(
    fusing: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = lordfast.optimize(fusing.lord(fusing.unet()))
    lordfast.freeze_lord(unet)
    call = fusing.Call(unet)
    call.text.requires_grad_(False)
    capturing = False
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)

    def stacked(text: Tensor) -> tuple[Tensor, int]:
        with torch.no_grad(), fusing.counted() as ops:
            return call.predict(unet, text), ops["lord_stack_forward"]

    weight = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.base_layer.weight
    capturing, address = True, weight.data_ptr()
    expected, count = stacked(call.text)
    assert count == 0 and weight.data_ptr() == address  # nothing was moved: a capture doesn't run what it records
    capturing = False
    assert stacked(call.text)[1] == 1 and stacked(call.text)[1] == 0 and weight.data_ptr() != address

    capturing, kept = True, kept_of(unet)
    for _ in range(2):
        y, count = stacked(call.text)
        assert count == 1 and kept_of(unet) is kept
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-11)
    assert stacked(call.text + 1)[1] == 1 and kept_of(unet) is kept
    weight.data = weight.data.clone()
    address = weight.data_ptr()
    assert stacked(call.text)[1] == 0 and weight.data_ptr() == address


def test_what_is_kept_lives_no_longer_than_its_text(fusing: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = lordfast.optimize(fusing.lord(fusing.unet()))
    call = fusing.Call(unet)
    (hook,) = unet._forward_pre_hooks.values()
    alive = []

    def watched(group: Group, text: Tensor) -> Any:
        alive.append([kept for kept in outputs if kept() is not None])
        return compute(group, text)

    compute = Group.compute
    monkeypatch.setattr(Group, "compute", watched)
    outputs: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        texts = [call.text.detach() + i for i in range(3)]
        with torch.no_grad():
            for text in texts:
                call.predict(unet, text)
                outputs += map(weakref.ref, kept_of(unet)[2][0][0])
        assert alive == [[], [], []] and outputs[-1]() is not None
        del texts[:2]
        assert outputs[-1]() is not None  # of the other texts' end it hears, and keeps what is this one's
        del text, texts
        assert kept_of(unet) is None and outputs[-1]() is None
        with torch.no_grad():
            call.predict(unet)
        gone = weakref.ref(hook)
        del hook
        lordfast.restore(unet)
        assert gone() is None
    finally:
        gc.enable()


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


@pytest.mark.parametrize("when", ["before", "after"])
def test_only_a_self_attentions_processor_is_another(
    fusing: SimpleNamespace, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    unet = fusing.lord(fusing.unet())
    call = fusing.Call(unet)
    expected = call.outcome(unet)
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    if when == "after":
        call.outcome(lordfast.optimize(unet))
    attention.set_processor(type("Mine", (AttnProcessor2_0,), {})())
    if when == "before":
        lordfast.optimize(unet)
    warnings: list[str] = []
    monkeypatch.setattr(attention_processor.logger, "warning", warnings.append)
    with fusing.counted() as ops:
        fusing.assert_same(call.outcome(unet), expected)
    # diffusers warns of keywords that a processor doesn't take: so none of them gets the text's projections.
    assert warnings == [] and ops["lord_stack_forward"] == 0
    attention.set_processor(AttnProcessor2_0())
    lordfast.optimize(unet)
    with fusing.counted() as ops:
        fusing.assert_same(call.outcome(unet), expected)
    assert ops["lord_stack_forward"] == 1


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
