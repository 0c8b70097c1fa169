"""The fused attention processor against diffusers' own, and the weights that share one piece of memory."""

from __future__ import annotations

import copy
import io
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers.models import attention_processor
from diffusers.models.attention_processor import Attention, AttnProcessor2_0, XFormersAttnProcessor
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lordfast
from lordfast.diffusion.attention import LordAttnProcessor
from lordfast.diffusion.topologies import build_denoiser, find_topology
from lordfast.diffusion.weight_stack import WeightStack


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "text": {"cross_attention_dim": 6},
    "normed text": {"cross_attention_dim": 6, "cross_attention_norm": "layer_norm"},
    "group-normed text": {
        "cross_attention_dim": 6,
        "cross_attention_norm": "group_norm",
        "cross_attention_norm_num_groups": 2,
    },
    "image": {"norm_num_groups": 4, "residual_connection": True, "rescale_output_factor": 2.0, "bias": True},
    "spatial": {"norm_num_groups": 4, "spatial_norm_dim": 4, "residual_connection": True},
    "normed q and k": {"qk_norm": "layer_norm"},
    "upcast": {"upcast_attention": True, "bias": True},
    "masked": {},
    "masked text": {"cross_attention_dim": 6},
}


def attention_and_call(name: str) -> tuple[Attention, Callable[[Attention], Tensor]]:
    """A random attention in float64, with LoRD, and a call of it."""
    torch.manual_seed(0)
    channels = 32 if name == "spatial" else 8  # its norm has 32 groups
    attention = Attention(channels, heads=2, dim_head=4, **ATTENTIONS[name])
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.4)
    config = lordfast.LordConfig(r=2, lord_alpha=4, gate_hidden=3, init_weights=False)
    peft.inject_adapter_in_model(config, attention, "lord")
    attention = attention.double()
    given: dict[str, Any] = {"hidden_states": randn(2, 5, 8, seed=1)}
    if name in ("image", "spatial"):
        given["hidden_states"] = randn(2, channels, 4, 4, seed=1)
    if name == "spatial":
        given["temb"] = randn(2, 4, 2, 2, seed=3)
    if "text" in name:
        given["encoder_hidden_states"] = randn(2, 7, 6, seed=2)
    if "masked" in name:
        length = 7 if "text" in name else 5
        given["attention_mask"] = -10000.0 * (randn(2, 1, length, seed=4) > 0.5)
    return attention, lambda a: a(**given)


@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("kind", ["sdpa", "xformers"])
def test_what_the_standard_processor_computes(name: str, kind: str, xformers: list[str]) -> None:
    attention, call = attention_and_call(name)
    assert type(attention.processor) is AttnProcessor2_0
    expected = call(attention)
    attention.set_processor(LordAttnProcessor(kind, attention.processor))
    got = call(attention)
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert got.shape == expected.shape and bool(xformers) == (kind == "xformers")
    weights = [p for p in attention.parameters() if p.requires_grad]
    for one, other in zip(
        torch.autograd.grad(got.sin().sum(), weights, allow_unused=True),
        torch.autograd.grad(expected.sin().sum(), weights, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)


@pytest.fixture
def xformers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for xformers that wants what its kernels want; the list grows with its calls."""
    calls: list[str] = []

    def memory_efficient_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_bias: Tensor | None = None,
        scale: float | None = None,
        op: Any = None,
    ) -> Tensor:
        calls.append("called" if op is None else f"called {op}")
        if query.ndim == 3:  # (batch x heads, length, width), as diffusers calls it
            query, key, value = (t.unsqueeze(2) for t in (query, key, value))
            return memory_efficient_attention(query, key, value, attn_bias, scale).squeeze(2)
        batch, _, heads, width = query.shape
        assert key.shape == value.shape == (batch, key.shape[1], heads, width)
        scores = torch.einsum("bqhd,bkhd->bhqk", query, key) * (width**-0.5 if scale is None else scale)
        if attn_bias is not None:
            assert attn_bias.shape == scores.shape and attn_bias.dtype == query.dtype
            assert attn_bias.stride(-1) == 1 and all(stride % 8 == 0 for stride in attn_bias.stride()[:-1])
            scores = scores + attn_bias
        return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)

    module, ops = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    ops.memory_efficient_attention = memory_efficient_attention  # type: ignore[attr-defined]
    module.ops = ops  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "xformers", module)
    monkeypatch.setitem(sys.modules, "xformers.ops", ops)
    return calls


def narrow() -> Any:
    unet: Any = build_denoiser(find_topology("sd15-narrow"))
    torch.manual_seed(0)
    unet.add_adapter(lordfast.LordConfig(r=2, gate_hidden=3, lord_alpha=1, init_weights=False), "lord")
    return unet


def predict(unet: Any) -> Tensor:
    latents, text = randn(1, 4, 8, 8, seed=1), randn(1, 5, 24, seed=2)
    with torch.no_grad():
        return unet(latents.to(unet.dtype), torch.tensor([5]), encoder_hidden_states=text.to(unet.dtype)).sample


def test_a_unet_with_xformers_and_back(xformers: list[str]) -> None:
    unet = narrow()
    expected = predict(unet)
    lordfast.optimize(unet, attention="xformers")
    assert len(xformers) == 1  # the trial
    torch.testing.assert_close(predict(unet), expected, rtol=1e-4, atol=1e-5)
    assert len(xformers) == 1 + 32
    predict(lordfast.optimize(unet, attention="sdpa"))
    assert len(xformers) == 1 + 32


@pytest.mark.parametrize("attention", ["sdpa", "xformers"])
def test_xformers_chosen_in_diffusers_stays(
    attention: str, xformers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_processor, "xformers", sys.modules["xformers"], raising=False)
    unet = narrow()
    chosen = XFormersAttnProcessor(attention_op="an operator")
    unet.mid_block.attentions[0].transformer_blocks[0].attn1.set_processor(chosen)
    expected = predict(unet)
    theirs = [call for call in xformers if call != "called"]
    assert theirs == ["called an operator"]
    xformers.clear()
    for _ in range(2):
        lordfast.optimize(unet, attention=attention)
        xformers.clear()
        torch.testing.assert_close(predict(unet), expected, rtol=1e-4, atol=1e-5)
        assert xformers.count("called an operator") == 1
        assert len(xformers) == (1 if attention == "sdpa" else 32)
    lordfast.restore(unet)
    assert unet.mid_block.attentions[0].transformer_blocks[0].attn1.processor is chosen


def test_xformers_missing_or_not_for_this_device(xformers: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    unet = narrow()

    def refuse(*args: Any, **kwargs: Any) -> Tensor:
        raise NotImplementedError("No operator found for `memory_efficient_attention_forward`")

    monkeypatch.setattr(sys.modules["xformers.ops"], "memory_efficient_attention", refuse)
    with pytest.raises(ValueError, match=r"xformers can't run on cpu in torch.float32; use 'sdpa' \(No operator found"):
        lordfast.optimize(unet, attention="xformers")
    monkeypatch.setitem(sys.modules, "xformers", None)
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(ValueError, match="'xformers' was asked for, but xformers is not installed; use 'sdpa'"):
        lordfast.optimize(unet, attention="xformers")
    assert {type(p) for p in unet.attn_processors.values()} == {AttnProcessor2_0} and not unet._forward_pre_hooks


# ---- what is saved, copied and moved ----


def text_weights(unet: Any) -> list[nn.Parameter]:
    names = (".attn2.to_k.base_layer.weight", ".attn2.to_v.base_layer.weight")
    return [parameter for name, parameter in unet.named_parameters() if name.endswith(names)]


def test_the_texts_weights_are_in_memory_once() -> None:
    unet = lordfast.optimize(narrow())
    predict(unet)
    weights = text_weights(unet)
    assert len(weights) == 32 and len({w.untyped_storage().data_ptr() for w in weights}) == 1
    assert weights[0].untyped_storage().nbytes() == sum(w.numel() * 4 for w in weights)


def test_copies_moves_and_pickles_go_on_by_themselves() -> None:
    unet = narrow()
    expected = predict(unet)
    predict(lordfast.optimize(unet))
    twin = copy.deepcopy(unet)
    with torch.no_grad():
        for weight in text_weights(unet):
            weight.zero_()
    changed = predict(unet)
    assert not torch.allclose(changed, expected)
    torch.testing.assert_close(predict(twin), expected, rtol=1e-4, atol=1e-5)
    assert len({w.untyped_storage().data_ptr() for w in text_weights(twin)}) == 1

    file = io.BytesIO()
    torch.save(twin, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(predict(loaded), expected, rtol=1e-4, atol=1e-5)
    assert len({w.untyped_storage().data_ptr() for w in text_weights(loaded)}) == 1

    nn.Module.to(twin, torch.float64)
    wide = predict(twin)
    assert wide.dtype == torch.float64 and len({w.untyped_storage().data_ptr() for w in text_weights(twin)}) == 1
    torch.testing.assert_close(predict(lordfast.restore(twin)), wide, rtol=1e-9, atol=1e-11)


def test_what_is_saved_is_what_was(tmp_path: Path) -> None:
    unet = narrow()
    expected, state = predict(unet), {name: value.clone() for name, value in unet.state_dict().items()}
    predict(lordfast.optimize(unet))
    lordfast.save_lord(unet, tmp_path / "lord")
    save_file(unet.state_dict(), tmp_path / "all.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in load_file(tmp_path / "all.safetensors").items())
    lordfast.remove_lord(unet)
    unet.save_pretrained(tmp_path / "unet")
    loaded = type(unet).from_pretrained(tmp_path / "unet")
    lordfast.load_lord(loaded, tmp_path / "lord")
    torch.testing.assert_close(predict(loaded), expected, rtol=0, atol=0)
    # The fused one gets it again, too.
    lordfast.load_lord(unet, tmp_path / "lord")
    torch.testing.assert_close(predict(unet), expected, rtol=1e-4, atol=1e-5)


def linears(*widths: int, seed: int = 0) -> list[nn.Parameter]:
    return [nn.Parameter(randn(n, 3, seed=seed + i), requires_grad=False) for i, n in enumerate(widths)]


def test_stack_and_release() -> None:
    parameters = linears(2, 4, 1)
    values = [p.clone() for p in parameters]
    stack = WeightStack()
    whole = stack.gather(parameters)
    assert torch.equal(whole, torch.cat(values)) and stack.gather(parameters) is whole
    with torch.no_grad():
        parameters[1].add_(1)
    assert torch.equal(whole[2:6], values[1] + 1)
    parameters[2].data = values[2] * 5
    again = stack.gather(parameters)
    assert (
        again is not whole
        and stack.gather(parameters) is again
        and torch.equal(again, torch.cat([values[0], values[1] + 1, values[2] * 5]))
    )
    stack.release(parameters)
    assert [p.untyped_storage().nbytes() for p in parameters] == [p.numel() * 8 for p in parameters]
    assert torch.equal(torch.cat(list(parameters)), again)


def test_weights_that_lie_together_already_stay_there() -> None:
    parameters = linears(2, 4)
    first, second = WeightStack(), WeightStack()
    whole = first.gather(parameters)
    same = second.gather(parameters)
    assert torch.equal(same, whole) and same.data_ptr() == whole.data_ptr()
    second.release(parameters)
    assert (
        torch.equal(first.gather(parameters), whole) and len({p.untyped_storage().data_ptr() for p in parameters}) == 1
    )


def test_weights_that_are_parts_of_something_else_are_copied() -> None:
    parameters = linears(2, 4)
    whole = WeightStack().gather(parameters)
    for given in (parameters[::-1], [*parameters, parameters[0]], [*linears(3), parameters[0]]):
        found = WeightStack().gather(given)
        assert torch.equal(found, torch.cat(given)) and found.data_ptr() != whole.data_ptr()
        assert all(p.untyped_storage().data_ptr() == whole.data_ptr() for p in parameters)
