"""Quantised denoisers: as far from the full one as their bits, and exactly what their rounded weights give."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lordfast
from lordfast.diffusion.quantize import quantised_layers, quantize
from lordfast.diffusion.topologies import build, find_topology

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def _unet() -> Any:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    _, config = find_topology("sd15-narrow").denoiser
    # Rows of whole blocks of 64 weights, as all published models have them.
    wide = {**config, "block_out_channels": (64, 64, 128, 128), "cross_attention_dim": 64}
    return build("diffusers", "UNet2DConditionModel", wide)


@pytest.fixture
def unet(_unet) -> Any:
    return copy.deepcopy(_unet)


def outcome(unet: Any, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The prediction and its gradient at the latents, as fp32."""
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(2, 4, 8, 8, generator=generator).to(dtype).requires_grad_()
    text = torch.randn(2, 77, 64, generator=generator).to(dtype)
    prediction = unet(noisy, torch.tensor([10, 700]), text).sample
    (gradient,) = torch.autograd.grad(prediction.float().square().mean(), noisy)
    return prediction.detach().float(), gradient.float()


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def rounded(layer: Any) -> Tensor:
    """The weight that a quantised layer computes with."""
    import bitsandbytes as bnb

    weight = layer.weight
    if isinstance(layer, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    return weight.data.float() * (weight.SCB if weight.SCB is not None else layer.state.SCB)[:, None] / 127


# Half a step of the coarsest level, relative to the weights' own size: nf4's 16 levels, int8's 255.
@pytest.mark.parametrize(("bits", "step"), [("8bit", 0.02), ("4bit", 0.12)])
def test_the_model_is_that_of_the_rounded_weights(unet, bits, step):
    full = copy.deepcopy(unet)
    names = quantised_layers(unet)
    assert quantize(unet, bits, CPU, torch.float32) == len(names) == 160
    stand_in = copy.deepcopy(full)
    for name in names:
        weight = rounded(unet.get_submodule(name))
        original = full.get_submodule(name).weight
        assert 0 < error(weight, original) < step
        stand_in.get_submodule(name).weight.data = weight.to(torch.float32)
    for found, exact, plain in zip(outcome(unet), outcome(stand_in), outcome(full), strict=True):
        # 8 bits also round what goes into a layer; 4 bits compute with the rounded weights in full precision.
        assert error(found, exact) < (0.02 if bits == "8bit" else 1e-4)
        assert error(exact, plain) < 10 * step and error(found, plain) > 1e-3


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_half_precision_and_lord_on_top(unet, bits):
    full = outcome(unet)
    unet = nn.Module.to(unet, dtype=torch.bfloat16)
    quantize(unet, bits, CPU, torch.bfloat16)
    bare = outcome(unet, torch.bfloat16)
    assert all(error(found, exact) < 0.2 for found, exact in zip(bare, full, strict=True))
    unet.add_adapter(lordfast.LordConfig(r=2), adapter_name="lord")
    # B is zero as yet: the LoRD adds nothing.
    fresh = outcome(unet, torch.bfloat16)
    assert all(torch.equal(one, other) for one, other in zip(fresh, bare, strict=True))
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32} and all("lord_" in name for name in trained)


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_call_without_gradients_changes_nothing_for_later_ones(unet, bits):
    quantize(unet, bits, CPU, torch.float32)
    before = outcome(unet)
    with torch.no_grad():
        unet(torch.randn(1, 4, 8, 8), 5, torch.randn(1, 77, 64))
    assert all(torch.equal(one, other) for one, other in zip(outcome(unet), before, strict=True))


def test_only_the_large_linear_layers_in_attention_and_feed_forwards(unet):
    names = quantised_layers(unet)
    kinds = {name.rpartition("transformer_blocks.0.")[2] for name in names}
    assert kinds == {f"attn{i}.to_{x}" for i in (1, 2) for x in ("q", "k", "v", "out.0")} | {
        "ff.net.0.proj",
        "ff.net.2",
    }
    assert not any("time_emb" in name or "proj_in" in name for name in names)


def test_refusals(unet, monkeypatch):
    with pytest.raises(ValueError, match="expected 8bit or 4bit, got '2bit'"):
        quantize(unet, "2bit", CPU, torch.float32)
    with pytest.raises(ValueError, match="a Linear has no linear layers in transformer blocks"):
        quantize(nn.Linear(64, 64), "8bit", CPU, torch.float32)
    unet.add_adapter(lordfast.LordConfig(r=2), adapter_name="lord")
    with pytest.raises(ValueError, match="carries an adapter"):
        quantize(unet, "8bit", CPU, torch.float32)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"pip install 'lordfast\[quantize\]'"):
        quantize(unet, "8bit", CPU, torch.float32)
