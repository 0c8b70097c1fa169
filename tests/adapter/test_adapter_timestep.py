"""A gate that knows the timestep: it gets the one of the call, whoever calls, and in the backward pass once more."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

import lordfast
from lordfast.adapter.timestep import Clock, embed_timesteps

TIMES = torch.tensor([3, 700])


@pytest.fixture
def timed(tiny: SimpleNamespace) -> UNet2DConditionModel:
    """A UNet whose gates depend on the timestep, much."""
    unet = tiny.unet().double()
    unet.add_adapter(tiny.config(gate_timestep=True, target_modules=["to_q", "to_v"]), adapter_name="lord")
    torch.manual_seed(2)
    for name, parameter in tiny.lord_parameters(unet).items():
        nn.init.normal_(parameter, std=1.0 if "lord_wt" in name else 0.3)
    # It stays fp32 whatever the base has, and is compared exactly here.
    for layer in lordfast.adapter.control.lord_layers(unet).values():
        for name in layer.parameters_of("lord"):
            getattr(layer, name)["lord"].data = getattr(layer, name)["lord"].data.double()
    return unet


def clock_of(unet: Any) -> Clock:
    (clock,) = [hook for hook in unet._forward_pre_hooks.values() if isinstance(hook, Clock)]
    return clock


def call(unet: Any, tiny: SimpleNamespace, times: Any, rows: slice = slice(None)) -> tuple[Tensor, dict[str, Tensor]]:
    sample, _, text = tiny.inputs(dtype=torch.float64)
    with lordfast.collect_gates(unet) as gates:
        out = unet(sample[rows], times, encoder_hidden_states=text[rows]).sample
    return out, dict(gates)


def test_it_starts_as_a_gate_that_does_not_know_it(tiny: SimpleNamespace) -> None:
    results = []
    for knows in (False, True):
        unet = tiny.unet()
        unet.add_adapter(tiny.config(gate_timestep=knows), adapter_name="lord")
        with lordfast.collect_gates(unet) as gates:
            results.append((tiny.run(unet), dict(gates)))
    (plain, plain_gates), (timed, timed_gates) = results
    torch.testing.assert_close(timed, plain, rtol=1e-4, atol=1e-5)
    for name, logit in plain_gates.items():
        torch.testing.assert_close(timed_gates[name], logit, rtol=1e-4, atol=1e-5)


def test_each_sample_gets_its_own_timestep_in_whatever_form(timed: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    both, both_gates = call(timed, tiny, TIMES)
    for i, forms in enumerate(((3, torch.tensor(3), TIMES[:1]), (700.0, torch.tensor(700), TIMES[1:]))):
        for form in forms:
            alone, alone_gates = call(timed, tiny, form, slice(i, i + 1))
            torch.testing.assert_close(alone, both[i : i + 1], rtol=1e-9, atol=1e-9)
            for name, logit in alone_gates.items():
                torch.testing.assert_close(logit, both_gates[name][i : i + 1], rtol=1e-9, atol=1e-9)
    # One timestep for a whole batch, as under classifier-free guidance.
    of_all, _ = call(timed, tiny, torch.tensor(3))
    torch.testing.assert_close(of_all[:1], both[:1], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(of_all[1], both[1], rtol=1e-3)
    assert clock_of(timed).embedding is None


def test_recomputed_blocks_get_the_timestep_of_their_own_call(
    timed: UNet2DConditionModel, tiny: SimpleNamespace
) -> None:
    def gradients(way: str) -> dict[str, Tensor]:
        unet = copy.deepcopy(timed)
        if way != "plain":
            unet.enable_gradient_checkpointing()
        first, _ = call(unet, tiny, TIMES)
        if way == "again":
            # Switched anew between calls: with another function.
            unet.enable_gradient_checkpointing()
        second, _ = call(unet, tiny, TIMES.flip(0) // 2)
        (first.square().sum() + 3 * second.square().sum()).backward()
        return {name: p.grad for name, p in tiny.lord_parameters(unet).items() if p.grad is not None}

    plain = gradients("plain")
    assert any("lord_wt" in name for name in plain)
    for way in ("recomputed", "again"):
        found = gradients(way)
        assert found.keys() == plain.keys()
        for name, gradient in plain.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


def test_pipelines_hand_on_every_timestep_of_theirs(tiny: SimpleNamespace) -> None:
    pipe = tiny.pipe()
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.add_adapter(tiny.config(gate_timestep=True, target_modules=["to_q"]), adapter_name="lord")
    seen: list[Tensor] = []
    layer = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    layer.register_forward_pre_hook(lambda *_: seen.append(layer.lord_clock.embedding))
    pipe("a face", num_inference_steps=3, guidance_scale=5.0, height=16, width=16, output_type="latent")
    assert len(seen) == 3
    for embedding, time in zip(seen, pipe.scheduler.timesteps, strict=True):
        assert torch.equal(embedding, embed_timesteps(time, torch.float32))


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda unet: pickle.loads(pickle.dumps(unet))], ids=["deepcopy", "pickle"]
)
def test_copies_have_a_clock_of_their_own(
    clone: Callable[[Any], Any], timed: UNet2DConditionModel, tiny: SimpleNamespace
) -> None:
    other = clone(timed)
    assert clock_of(other) is not clock_of(timed)
    clock_of(timed).embedding = torch.full((1, 32), torch.nan)
    found, _ = call(other, tiny, TIMES)
    assert torch.equal(found, call(timed, tiny, TIMES)[0])


def test_a_call_that_fails_leaves_no_timestep_behind(timed: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    def fail(*_: Any) -> None:
        assert clock_of(timed).embedding is not None
        raise RuntimeError("inside")

    failing = timed.mid_block.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="inside"):
        call(timed, tiny, TIMES)
    assert clock_of(timed).embedding is None
    failing.remove()
    call(timed, tiny, TIMES)


def test_lord_takes_its_clock_along(timed: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    bare = tiny.unet().double()
    timed.enable_gradient_checkpointing()
    call(timed, tiny, TIMES)
    timed.add_adapter(tiny.config(target_modules=["to_q"]), adapter_name="second")
    lordfast.remove_lord(timed, "second")
    clock_of(timed)
    lordfast.remove_lord(timed)
    assert not timed._forward_pre_hooks and not timed._forward_hooks and not timed._forward_pre_hooks_with_kwargs
    assert not timed._forward_hooks_always_called
    functions = {type(m._gradient_checkpointing_func) for m in timed.modules() if hasattr(m, "gradient_checkpointing")}
    assert functions == {type(call)}
    sample, _, text = tiny.inputs(dtype=torch.float64)
    assert torch.equal(timed(sample, TIMES, text).sample, bare(sample, TIMES, text).sample)


def test_transformers_and_peft_models_hand_it_on_too(tiny: SimpleNamespace, timed: UNet2DConditionModel) -> None:
    unet = tiny.unet()
    wrapped = peft.get_peft_model(unet, tiny.config(gate_timestep=True, target_modules=["to_q"]), adapter_name="lord")
    with lordfast.collect_gates(wrapped) as gates:
        tiny.run(wrapped)
    assert len(gates) == 8

    class Joint(nn.Module):
        """Takes its arguments as SD 3's transformer does: by name, and the timestep not second."""

        def __init__(self) -> None:
            super().__init__()
            self.to_q = nn.Linear(4, 4)

        def forward(self, hidden_states: Tensor, encoder_hidden_states: Any = None, timestep: Any = None) -> Tensor:
            return self.to_q(hidden_states)

    joint = Joint()
    peft.inject_adapter_in_model(tiny.config(gate_timestep=True, target_modules=["to_q"]), joint, "lord")
    nn.init.normal_(joint.to_q.lord_wt["lord"])
    x = torch.randn(2, 3, 4)
    found = joint(hidden_states=x, timestep=TIMES)
    assert torch.equal(found, joint(x, None, TIMES))
    assert not torch.allclose(found, joint(hidden_states=x, timestep=TIMES + 9))


def test_without_a_timestep_it_says_what_is_missing(timed: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    layer = timed.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    x = torch.randn(2, 3, layer.in_features, dtype=torch.float64)
    with pytest.raises(ValueError, match="known only within a call of the denoiser"):
        layer(x)
    clock_of(timed).embedding = torch.zeros(3, 32)
    with pytest.raises(ValueError, match=r"called with 3 timesteps, and one of its layers with x of shape \(2, 3,"):
        layer(x)
    plain = nn.ModuleDict({"to_q": nn.Linear(3, 3)})
    with pytest.raises(ValueError, match="the forward of ModuleDict takes no argument timestep"):
        peft.inject_adapter_in_model(tiny.config(gate_timestep=True, target_modules=["to_q"]), plain, "lord")
    assert type(plain["to_q"]) is nn.Linear
