"""A fused UNet computes what it computed before: outputs, gates, every gradient, with whatever adapters on it."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0, SlicedAttnProcessor
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lordfast
from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.attention import LordAttnProcessor
from lordfast.diffusion.topologies import build_denoiser, find_topology
from lordfast.profiling.accuracy import judge, relative_errors

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def add_lord(unet: Any, name: str = "lord", **options: Any) -> Any:
    """A LoRD that does something. Its branches are small beside the base: else a random UNet is chaotic."""
    torch.manual_seed(3)
    given = {"r": 4, "lord_alpha": 8, "gate_hidden": 8, "init_weights": False, **options}
    unet.add_adapter(lordfast.LordConfig(**given), adapter_name=name)
    for path, parameter in unet.named_parameters():
        if "lord_B" in path:
            parameter.data.div_(8)
    return unet


def add_lora(unet: Any, name: str, seed: int = 0, **options: Any) -> None:
    torch.manual_seed(seed)
    given = {"r": 2, "lora_alpha": 1, "target_modules": TARGETS, "init_lora_weights": False, **options}
    unet.add_adapter(peft.LoraConfig(**given), adapter_name=name)


def small_unet(**overrides: Any) -> Any:
    """Two widths, five blocks, attention in either direction: 32 LoRD targets, float64 for exact comparisons."""
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 12,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**(config | overrides)).eval().requires_grad_(False).double()


class Call:
    """One call's inputs, and everything that comes out of it."""

    def __init__(self, unet: Any, *, batch: int = 2, tokens: int = 7, dtype: torch.dtype = torch.float64) -> None:
        side = unet.config.sample_size
        self.latents = randn(batch, 4, side, side, seed=1).to(dtype).requires_grad_()
        self.text = randn(batch, tokens, unet.config.cross_attention_dim, seed=2).to(dtype).requires_grad_()
        self.timestep = torch.tensor([3, 400, 7, 9])[:batch]
        self.cotangent = randn(batch, 4, side, side, seed=4).to(dtype)
        self.more: dict[str, Any] = {}
        if unet.config.addition_embed_type == "text_time":
            pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
            conditions = {"text_embeds": randn(batch, pooled, seed=5).to(dtype), "time_ids": torch.ones(batch, 6)}
            self.more["added_cond_kwargs"] = conditions

    def predict(self, unet: Any, text: Tensor | None = None) -> Tensor:
        given = self.text if text is None else text
        return unet(self.latents, self.timestep, encoder_hidden_states=given, **self.more).sample

    def outcome(self, unet: Any) -> dict[str, Tensor]:
        """The prediction, the gates' logits, and the gradients of the inputs and of all that is trainable, by kind."""
        parameters = {name: p for name, p in unet.named_parameters() if p.requires_grad}
        leaves = {"latents": self.latents} | ({"text": self.text} if self.text.requires_grad else {}) | parameters
        gates: Any = {}
        if any(isinstance(module, lordfast.LordLayer) for module in unet.modules()):
            with lordfast.collect_gates(unet) as gates:
                y = self.predict(unet)
        else:
            y = self.predict(unet)
        loss = (y * self.cotangent).sum() + sum(0.1 * logit.sin().sum() for logit in gates.values())
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        out = {"y": y.detach(), **{f"logit/{name}": logit.detach() for name, logit in gates.items()}}
        for name, grad in zip(leaves, grads, strict=True):
            kind = next((part for part in name.split(".") if part.startswith(("lord_", "lora_"))), name)
            kind = kind if kind.startswith(("lord_A", "lord_B")) else kind.removeprefix("lord_")
            if grad is not None:
                out[f"{kind}/{name}"] = grad
        return out


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-8, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


class Count(TorchDispatchMode):
    """How often each of lordfast's operations ran."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "lordfast":
            self.ops[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Counter[str]]:
    with Count() as count:
        yield count.ops


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
    name: str, dtype: torch.dtype, granularity: str, request: pytest.FixtureRequest
) -> None:
    if name == "demo":
        unet = request.getfixturevalue("demo_model").unet
    else:
        unet = build_denoiser(find_topology(name))
    unet = add_lord(nn.Module.to(unet, dtype), gate_granularity=granularity)
    if name == "sd15-narrow":
        add_lora(unet, "sks")
        unet.set_adapter(["lord", "sks"])
    truth = Call(unet).outcome(_double(unet))
    call = Call(unet, dtype=dtype)
    plain = call.outcome(unet)
    fused = call.outcome(lordfast.optimize(unet))
    with counted() as ops, torch.no_grad():
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


def two_loras(unet: Any) -> None:
    add_lora(unet, "one", seed=1)
    add_lora(unet, "two", seed=2, r=3, target_modules=["to_k", "to_q"])
    unet.set_adapter(["lord", "one", "two"])


def disabled_lora(unet: Any) -> None:
    add_lora(unet, "one")
    unet.disable_lora()


def folded_lora(unet: Any) -> None:
    add_lora(unet, "one")
    unet.fuse_lora()


def unfolding_lora(unet: Any) -> None:
    folded_lora(unet)
    unet.disable_lora()


def other_tuner(unet: Any) -> None:
    config = peft.LoHaConfig(r=2, target_modules=["to_k"], init_weights=False)
    torch.manual_seed(1)
    peft.inject_adapter_in_model(config, unet, "loha")


def input_hook(unet: Any) -> None:
    for path, module in unet.named_modules():
        if path.endswith(("attn1.to_v", "attn2.to_k")):
            module.register_forward_pre_hook(lambda module, args: (2 * args[0],))
        if path.endswith("attn1.to_q.base_layer"):
            module.register_forward_hook(lambda module, args, out: 3 * out)


def one_layer_frozen(unet: Any) -> None:
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    layer.set_requires_grad("lord", False)


STATES: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    "plain": ({}, lambda unet: None),
    "sample gates": ({"gate_granularity": "sample", "gate_activation": "gelu"}, lambda unet: None),
    "two loras": ({}, two_loras),
    "dora": ({}, lambda unet: add_lora(unet, "one", use_dora=True)),
    "lora off": ({}, disabled_lora),
    "lora folded in": ({}, folded_lora),
    "lora folded in and off": ({}, unfolding_lora),
    "another tuner": ({}, other_tuner),
    "hooks": ({}, input_hook),
    "one layer frozen": ({}, one_layer_frozen),
    "frozen": ({}, lordfast.freeze_lord),
    "the paper's q and v": ({"target_modules": ["to_q", "to_v"]}, lambda unet: None),
    "q and v, lora on k": ({"target_modules": ["to_q", "to_v"]}, lambda unet: add_lora(unet, "one")),
    "checkpointing": ({}, lambda unet: unet.enable_gradient_checkpointing()),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_whatever_is_on_it(state: str, when: str) -> None:
    options, prepare = STATES[state]
    unet = small_unet()
    if when == "before":
        lordfast.optimize(unet)
    prepare(add_lord(unet, **options))
    if state == "checkpointing":
        unet.train()
    unfused = copy.deepcopy(unet)
    expected = Call(unet).outcome(lordfast.restore(unfused))
    if when == "after":
        lordfast.optimize(unet)
    call = Call(unet)
    assert_same(call.outcome(unet), expected)
    assert_same(call.outcome(unet), expected)  # with what the first call left behind


def test_two_kinds_of_lord_in_one_model() -> None:
    unet = add_lord(small_unet(), target_modules=".*down_blocks.*(to_q|to_k|to_v)")
    peft.inject_adapter_in_model(
        lordfast.LordConfig(r=2, gate_hidden=3, init_weights=False, target_modules=".*up_blocks.*(to_q|to_k|to_v)"),
        unet,
        "other",
    )
    expected = Call(unet).outcome(unet)
    assert_same(Call(unet).outcome(lordfast.optimize(unet)), expected)
    with counted() as ops:
        Call(unet).predict(unet)
    assert ops["lord_stack_forward"] == 2


def test_masks_and_positional_arguments() -> None:
    unet = add_lord(small_unet())
    call = Call(unet)
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
    with counted() as ops:
        unet(*positional)
    assert ops["lord_stack_forward"] == 1


def test_a_scale_for_loras_is_for_loras() -> None:
    unet = add_lord(small_unet())
    add_lora(unet, "one")
    call = Call(unet)
    given = {"scale": 0.3}
    call.more["cross_attention_kwargs"] = given
    expected = call.predict(unet)
    torch.testing.assert_close(call.predict(lordfast.optimize(unet)), expected, rtol=1e-9, atol=1e-11)
    assert given == {"scale": 0.3}
    call.more.clear()
    assert not torch.allclose(call.predict(unet), expected)


@pytest.mark.parametrize("grad", [True, False])
def test_autocast(grad: bool) -> None:
    unet = add_lord(small_unet().float())
    call = Call(unet, dtype=torch.float32)
    exact = call.predict(unet)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(grad):
        plain = call.predict(unet)
        lordfast.optimize(unet)
        fused = [call.predict(unet) for _ in range(2)]
    again = call.predict(unet)
    error = (plain - exact).norm()
    assert error > 1e-3 * exact.norm()
    assert all((y - exact).norm() <= 2 * error for y in fused)
    torch.testing.assert_close(again, exact)  # nothing of autocast's is kept for the call outside


def test_a_peft_model_and_a_pipelines_unet(demo_model: LatentDiffusion) -> None:
    wrapped = peft.get_peft_model(small_unet(), lordfast.LordConfig(r=2, init_weights=False), adapter_name="lord")
    bare = wrapped.get_base_model()
    call = Call(bare)
    expected = call.predict(wrapped)
    assert lordfast.optimize(wrapped) is wrapped
    with counted() as ops:
        torch.testing.assert_close(call.predict(wrapped), expected, rtol=1e-9, atol=1e-11)
    assert ops["lord_stack_forward"] == 1
    assert lordfast.optimize(demo_model) is demo_model
    assert type(demo_model.unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor) is LordAttnProcessor
    with pytest.raises(TypeError, match="expected a torch module, or a pipeline with a unet"):
        lordfast.optimize(3)


def test_compiled_blocks() -> None:
    unet = add_lord(small_unet(block_out_channels=(8, 8)))
    expected = Call(unet).outcome(unet)
    lordfast.optimize(unet)
    unet.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    call = Call(unet)
    assert_same(call.outcome(unet), expected)
    # The four blocks share what was compiled, though each has its own place among the text's projections.
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call.predict(unet)
    ran = {event.key: event.count for event in profile.key_averages()}
    assert compiled == 1 == torch._dynamo.utils.counters["stats"]["unique_graphs"]
    found = [ran[f"lordfast::{name}_forward"] for name in ("lord_stack", "lord_qkv", "lord")]
    assert found == [1, 4, 12]


# ---- how often ------------------------------------------------------------------------------------------------------


def test_fewer_operations() -> None:
    unet = add_lord(build_denoiser(find_topology("sd15-narrow")))
    call = Call(unet, dtype=torch.float32)
    with counted() as before:
        call.outcome(unet)
    lordfast.optimize(unet)
    with counted() as after:
        call.outcome(unet)
    assert before == {"lord_forward": 128, "lord_backward": 128}
    # q and out of the cross-attentions and out of the self-attentions are what is left to compute one by one.
    forward = {"lord_forward": 48, "lord_qkv_forward": 16, "lord_stack_forward": 1}
    assert after == {**forward, "lord_backward": 48 + 3 * 16, "lord_stack_backward": 1}


def test_a_text_is_projected_once() -> None:
    unet = lordfast.optimize(add_lord(small_unet()))
    call = Call(unet)
    call.text.requires_grad_(False)
    with torch.no_grad(), counted() as sampling:
        for step in range(4):
            call.timestep = torch.tensor([step, step])
            call.predict(unet)
    assert sampling["lord_stack_forward"] == 1
    with counted() as training:
        for _ in range(2):
            call.outcome(unet)
    assert training["lord_stack_forward"] == 2 == training["lord_stack_backward"]
    lordfast.freeze_lord(unet)
    with counted() as attack:
        for _ in range(3):
            torch.autograd.grad(call.predict(unet).sum(), call.latents)
    assert attack["lord_stack_forward"] == 1 and attack["lord_stack_backward"] == 0


def edit_text(unet: Any, call: Call) -> None:
    call.text[0, 0] += 1


def another_text(unet: Any, call: Call) -> None:
    call.text = call.text + 1


def train(unet: Any, call: Call) -> None:
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    call.predict(unet).square().sum().backward()
    optimizer.step()


def one_parameter(unet: Any, call: Call) -> None:
    unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.lord_b2["lord"].add_(1)


def swap_data(unet: Any, call: Call) -> None:
    parameter = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v.lord_B_adv["lord"]
    parameter.data = parameter.data + 1


def base_weight(unet: Any, call: Call) -> None:
    unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.base_layer.weight.mul_(2)


def load(unet: Any, call: Call) -> None:
    unet.load_state_dict({name: value + 0.01 for name, value in unet.state_dict().items()}, assign=True)


def fold_a_lora_in(unet: Any, call: Call) -> None:
    add_lora(unet, "one")
    unet.fuse_lora()
    unet.unload_lora()


def second_lord(unet: Any, call: Call) -> None:
    add_lord(unet, "second", r=2)


CHANGES = (edit_text, another_text, train, one_parameter, swap_data, base_weight, load, fold_a_lora_in, second_lord)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_kept_is_dropped(change: Callable[[Any, Call], None]) -> None:
    unet = lordfast.optimize(add_lord(small_unet()))
    call = Call(unet)
    call.text.requires_grad_(False)
    with torch.no_grad():
        before = call.predict(unet)
        assert torch.equal(call.predict(unet), before)
    with torch.set_grad_enabled(change is train):
        change(unet, call)
    with torch.no_grad():
        after = [call.predict(unet) for _ in range(2)]
        expected = call.predict(lordfast.restore(unet))
    assert not torch.allclose(expected, before)
    torch.testing.assert_close(after, [expected, expected], rtol=1e-9, atol=1e-11)


def test_off_and_on_again() -> None:
    unet = add_lord(small_unet())
    call = Call(unet)
    call.text.requires_grad_(False)

    def states() -> list[Tensor]:
        with torch.no_grad():
            found = [call.predict(unet)]
            with lordfast.lord_disabled(unet), lordfast.collect_gates(unet) as gates:
                found.append(call.predict(unet))
            assert len(gates) == 0
            return [*found, call.predict(unet)]

    expected = states()
    lordfast.optimize(unet)
    torch.testing.assert_close(states(), expected, rtol=1e-9, atol=1e-11)
    assert not torch.allclose(expected[0], expected[1])


def test_inference_mode_and_back() -> None:
    unet = lordfast.optimize(add_lord(small_unet()))
    lordfast.freeze_lord(unet)
    call = Call(unet)
    call.text.requires_grad_(False)
    with torch.inference_mode():
        first = call.predict(unet)
        own = call.predict(unet, call.text + 0)
    expected = call.outcome(lordfast.restore(copy.deepcopy(unet)))
    assert_same(call.outcome(unet), expected)
    torch.testing.assert_close([first.clone(), own.clone()], [expected["y"]] * 2, rtol=1e-9, atol=1e-11)


# ---- processors ------------------------------------------------------------------------------------------------------


def test_other_processors_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    unet = add_lord(small_unet())
    call = Call(unet)
    block = unet.mid_block.attentions[0].transformer_blocks[0]
    for attention in (block.attn1, block.attn2):
        attention.set_processor(SlicedAttnProcessor(1))
    expected = call.outcome(unet)
    with caplog.at_level(logging.INFO, "lordfast"):
        lordfast.optimize(unet)
    assert caplog.messages == ["UNet2DConditionModel: left alone in lordfast.optimize: 2 SlicedAttnProcessor"]
    with counted() as ops:
        assert_same(call.outcome(unet), expected)
    # One of its attentions would not know the text's projections: then they are computed as ever.
    assert ops["lord_qkv_forward"] == 3 and ops["lord_stack_forward"] == 0
    lordfast.restore(unet)
    assert type(block.attn2.processor) is SlicedAttnProcessor
    kinds = {type(p) for p in unet.attn_processors.values()}
    assert kinds == {SlicedAttnProcessor, AttnProcessor2_0}


def test_restored_to_the_bit_and_twice_is_harmless() -> None:
    unet = add_lord(build_denoiser(find_topology("sd15-narrow")))
    call = Call(unet, dtype=torch.float32)
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


def test_unknown_attention() -> None:
    with pytest.raises(ValueError, match="attention: expected one of sdpa, xformers, got 'flash'"):
        lordfast.optimize(small_unet(), attention="flash")
