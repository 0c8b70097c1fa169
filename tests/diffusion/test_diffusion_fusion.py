"""A fused UNet computes what it computed before: outputs, gates, every gradient, with whatever adapters on it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

import lordfast
from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.attention import LordAttnProcessor
from lordfast.diffusion.topologies import build_denoiser, find_topology
from lordfast.profiling.accuracy import judge, relative_errors

# ---- exactness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype", "granularity"),
    [
        ("sd15-narrow", torch.float32, "token"),
        ("sd15-narrow", torch.bfloat16, "sample"),
        ("sdxl-narrow", torch.bfloat16, "token"),
        ("demo", torch.float32, "sample"),
        ("demo", torch.bfloat16, "token"),
    ],
    ids=str,
)
def test_twice_the_unfused_error(
    fusing: SimpleNamespace, name: str, dtype: torch.dtype, granularity: str, request: pytest.FixtureRequest
) -> None:
    if name == "demo":
        unet = request.getfixturevalue("demo_model").unet
    else:
        unet = build_denoiser(find_topology(name))
    unet = fusing.lord(nn.Module.to(unet, dtype), gate_granularity=granularity)
    if name == "sd15-narrow":
        fusing.lora(unet, "sks")
        unet.set_adapter(["lord", "sks"])
    truth = fusing.Call(unet).outcome(_double(unet))
    call = fusing.Call(unet, dtype=dtype)
    plain = call.outcome(unet)
    fused = call.outcome(lordfast.optimize(unet))
    with fusing.counted() as ops, torch.no_grad():
        call.predict(unet)
    assert ops["lord_qkv_forward"] and ops["lord_stack_forward"] == 1
    verdict = judge(relative_errors([fused], [truth]), relative_errors([plain], [truth]))
    assert verdict.ok, verdict.gate
    assert not torch.equal(fused["y"], plain["y"]) or dtype == torch.bfloat16


def _double(unet: nn.Module) -> nn.Module:
    """The same numbers in float64: what bf16 rounds stays rounded."""
    exact = copy.deepcopy(unet)
    for parameter in exact.parameters():
        parameter.data = parameter.data.double()
    return exact


# ---- adapters and calls of every kind, in float64 --------------------------------------------------------------------


def two_loras(fusing: SimpleNamespace, unet: Any) -> None:
    fusing.lora(unet, "one", seed=1)
    fusing.lora(unet, "two", seed=2, r=3, target_modules=["to_k", "to_q"])
    unet.set_adapter(["lord", "one", "two"])


def disabled_lora(fusing: SimpleNamespace, unet: Any) -> None:
    fusing.lora(unet, "one")
    unet.disable_lora()


def folded_lora(fusing: SimpleNamespace, unet: Any) -> None:
    fusing.lora(unet, "one")
    unet.fuse_lora()


def unfolding_lora(fusing: SimpleNamespace, unet: Any) -> None:
    folded_lora(fusing, unet)
    unet.disable_lora()


def other_tuner(fusing: SimpleNamespace, unet: Any) -> None:
    config = peft.LoHaConfig(r=2, target_modules=["to_k"], init_weights=False)
    torch.manual_seed(1)
    peft.inject_adapter_in_model(config, unet, "loha")


def input_hook(fusing: SimpleNamespace, unet: Any) -> None:
    for path, module in unet.named_modules():
        if path.endswith(("attn1.to_v", "attn2.to_k")):
            module.register_forward_pre_hook(lambda module, args: (2 * args[0],))
        if path.endswith("attn1.to_q.base_layer"):
            module.register_forward_hook(lambda module, args, out: 3 * out)


def another_text_on_the_way(fusing: SimpleNamespace, unet: Any) -> None:
    def change(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "encoder_hidden_states": 2 * kwargs["encoder_hidden_states"]}

    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    attention.register_forward_pre_hook(change, with_kwargs=True)


def one_layer_frozen(fusing: SimpleNamespace, unet: Any) -> None:
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    layer.set_requires_grad("lord", False)


def timed_gates(fusing: SimpleNamespace, unet: Any) -> None:
    for path, parameter in unet.named_parameters():
        if "lord_wt" in path:
            torch.nn.init.normal_(parameter)


def overridden(fusing: SimpleNamespace, unet: Any) -> None:
    layers = [m for m in unet.modules() if isinstance(m, lordfast.LordLayer)]
    # Some of them only: the rest is still computed together.
    for layer in layers[::3]:
        layer.lord_lambda = 0.25


STATES: dict[str, tuple[dict[str, Any], Callable[[SimpleNamespace, Any], Any]]] = {
    "plain": ({}, lambda fusing, unet: None),
    "sample gates": ({"gate_granularity": "sample", "gate_activation": "gelu"}, lambda fusing, unet: None),
    "a temperature": ({"gate_temperature": 3.0}, lambda fusing, unet: None),
    "gates of x": ({"gate_input": "input", "gate_norm": "rms"}, lambda fusing, unet: None),
    "gates that know the timestep": ({"gate_timestep": True}, timed_gates),
    "some lambdas overridden": ({}, overridden),
    "two loras": ({}, two_loras),
    "dora": ({}, lambda fusing, unet: fusing.lora(unet, "one", use_dora=True)),
    "lora off": ({}, disabled_lora),
    "lora folded in": ({}, folded_lora),
    "lora folded in and off": ({}, unfolding_lora),
    "another tuner": ({}, other_tuner),
    "hooks": ({}, input_hook),
    "another text on the way": ({}, another_text_on_the_way),
    "one layer frozen": ({}, one_layer_frozen),
    "frozen": ({}, lambda fusing, unet: lordfast.freeze_lord(unet)),
    "the paper's q and v": ({"target_modules": ["to_q", "to_v"]}, lambda fusing, unet: None),
    "q and v, lora on k": ({"target_modules": ["to_q", "to_v"]}, lambda fusing, unet: fusing.lora(unet, "one")),
    "checkpointing": ({}, lambda fusing, unet: unet.enable_gradient_checkpointing()),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_whatever_is_on_it(fusing: SimpleNamespace, state: str, when: str) -> None:
    options, prepare = STATES[state]
    unet = fusing.unet()
    if when == "before":
        lordfast.optimize(unet)
    prepare(fusing, fusing.lord(unet, **options))
    if state == "checkpointing":
        unet.train()
    unfused = copy.deepcopy(unet)
    expected = fusing.Call(unet).outcome(lordfast.restore(unfused))
    if when == "after":
        lordfast.optimize(unet)
    call = fusing.Call(unet)
    fusing.assert_same(call.outcome(unet), expected)
    fusing.assert_same(call.outcome(unet), expected)  # with what the first call left behind


def test_two_kinds_of_lord_in_one_model(fusing: SimpleNamespace) -> None:
    unet = fusing.lord(fusing.unet(), target_modules=".*down_blocks.*(to_q|to_k|to_v)")
    peft.inject_adapter_in_model(
        lordfast.LordConfig(r=2, gate_hidden=3, init_weights=False, target_modules=".*up_blocks.*(to_q|to_k|to_v)"),
        unet,
        "other",
    )
    expected = fusing.Call(unet).outcome(unet)
    fusing.assert_same(fusing.Call(unet).outcome(lordfast.optimize(unet)), expected)
    with fusing.counted() as ops:
        fusing.Call(unet).predict(unet)
    assert ops["lord_stack_forward"] == 2


def test_q_k_and_v_of_two_kinds(fusing: SimpleNamespace) -> None:
    unet = fusing.lord(fusing.unet(), target_modules=["to_q", "to_k"])
    torch.manual_seed(5)
    other = lordfast.LordConfig(gate_hidden=8, gate_activation="relu", init_weights=False, target_modules=["to_v"])
    peft.inject_adapter_in_model(other, unet, "other")
    expected = fusing.Call(unet).outcome(unet)
    fusing.assert_same(fusing.Call(unet).outcome(lordfast.optimize(unet)), expected)


def test_masks_and_positional_arguments(fusing: SimpleNamespace) -> None:
    unet = fusing.lord(fusing.unet())
    call = fusing.Call(unet)
    mask = torch.tensor([[1, 1, 1, 0, 0, 1, 1], [1, 0, 1, 1, 1, 0, 0]])
    positional = (call.latents, call.timestep, call.text, None, None, None, {"scale": 1.0})

    def predictions() -> list[Tensor]:
        call.more["encoder_attention_mask"] = mask
        masked = call.predict(unet)
        call.more.clear()
        return [masked, unet(*positional)[0]]

    expected = predictions()
    lordfast.optimize(unet)
    torch.testing.assert_close(predictions(), expected, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(*expected)
    with fusing.counted() as ops:
        unet(*positional)
    assert ops["lord_stack_forward"] == 1


def test_a_scale_for_loras_is_for_loras(fusing: SimpleNamespace) -> None:
    unet = fusing.lord(fusing.unet())
    fusing.lora(unet, "one")
    call = fusing.Call(unet)
    given = {"scale": 0.3}
    call.more["cross_attention_kwargs"] = given
    expected = call.predict(unet)
    torch.testing.assert_close(call.predict(lordfast.optimize(unet)), expected, rtol=1e-9, atol=1e-11)
    assert given == {"scale": 0.3}
    call.more.clear()
    assert not torch.allclose(call.predict(unet), expected)


@pytest.mark.parametrize("grad", [True, False])
def test_autocast(fusing: SimpleNamespace, grad: bool) -> None:
    unet = fusing.lord(fusing.unet().float())
    call = fusing.Call(unet, dtype=torch.float32)
    exact = call.predict(unet)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(grad):
        plain = call.predict(unet)
        lordfast.optimize(unet)
        fused = [call.predict(unet) for _ in range(2)]
        call.text.requires_grad_(False)
        kept = call.predict(unet)
    with torch.set_grad_enabled(grad):
        again = call.predict(unet)
    error = (plain - exact).norm()
    assert error > 1e-3 * exact.norm()
    assert all((y - exact).norm() <= 2 * error for y in (*fused, kept))
    torch.testing.assert_close(again, exact)  # nothing of autocast's is kept for the call outside


def test_a_peft_model_and_a_pipelines_unet(fusing: SimpleNamespace, demo_model: LatentDiffusion) -> None:
    wrapped = peft.get_peft_model(fusing.unet(), lordfast.LordConfig(r=2, init_weights=False), adapter_name="lord")
    bare = wrapped.get_base_model()
    call = fusing.Call(bare)
    expected = call.predict(wrapped)
    assert lordfast.optimize(wrapped) is wrapped
    with fusing.counted() as ops:
        torch.testing.assert_close(call.predict(wrapped), expected, rtol=1e-9, atol=1e-11)
    assert ops["lord_stack_forward"] == 1
    assert lordfast.optimize(demo_model) is demo_model
    assert type(demo_model.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor) is LordAttnProcessor
    with pytest.raises(TypeError, match="expected a torch module, or a pipeline with a unet"):
        lordfast.optimize(3)


def test_places_by_number_and_by_tensor_are_the_same(fusing: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    unet = lordfast.optimize(fusing.lord(fusing.unet()))
    (hook,) = unet._forward_pre_hooks.values()
    projections = hook._project(unet, fusing.Call(unet).text)
    places = [p for a in hook._attentions for p in (a.processor.key, a.processor.value)]
    by_number = [projections.find(place) for place in places]
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    by_tensor = [projections.find(place) for place in places]
    assert len({y.shape for y, _ in by_number}) == 2
    for one, other in zip(by_number, by_tensor, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_compiled_blocks(fusing: SimpleNamespace) -> None:
    unet = fusing.lord(fusing.unet(mid_block_type=None))
    expected = fusing.Call(unet).outcome(unet)
    lordfast.optimize(unet)
    unet.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    call = fusing.Call(unet)
    fusing.assert_same(call.outcome(unet), expected)
    # The three blocks share one graph, though each has its own place among the text's projections.
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        fusing.assert_same(call.outcome(unet), expected)
    ran = {event.key: event.count for event in profile.key_averages()}
    assert compiled == 1 == torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = [ran[f"lordfast::{name}_forward"] for name in ("lord_stack", "lord_qkv", "lord")]
    assert found == [1, 3, 9]
