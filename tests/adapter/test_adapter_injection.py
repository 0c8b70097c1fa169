"""Injection: every way in, an exact no-op at the start, what is trainable, the formula, the base layers."""

from __future__ import annotations

import copy
import math
import pickle
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.nn import functional as F

import lordfast
from lordfast.adapter import LordLinear


def _inject(way: str, unet: UNet2DConditionModel, config: lordfast.LordConfig) -> Any:
    if way == "add_adapter":
        unet.add_adapter(config, adapter_name="lord")
        return unet
    if way == "get_peft_model":
        return peft.get_peft_model(unet, config, adapter_name="defence")
    return peft.inject_adapter_in_model(config, unet, "lord")


@pytest.mark.parametrize("way", ["add_adapter", "get_peft_model", "inject_adapter_in_model"])
def test_injection_changes_no_bit_and_trains_only_lord(
    way: str, unet: UNet2DConditionModel, tiny: SimpleNamespace
) -> None:
    before = tiny.run(unet)
    model = _inject(way, unet, lordfast.LordConfig())
    layers = [m for m in model.modules() if isinstance(m, lordfast.LordLayer)]
    assert len(layers) == 32
    assert torch.equal(tiny.run(model), before)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == set(tiny.lord_parameters(model))
    assert len(trainable) == 32 * 7


def test_layer_computes_equation_5(tiny: SimpleNamespace) -> None:
    base = nn.Linear(6, 5)
    layer = LordLinear(base, "lord", tiny.config(gate_activation="gelu"))
    x = torch.randn(2, 3, 6)
    p = layer.parameters_of("lord")
    s = 4 / 2
    u = x @ p["lord_A"].T
    o1, o2 = s * u @ p["lord_B"].T, s * u @ p["lord_B_adv"].T
    logit = F.gelu(o1 @ p["lord_w1"].T + p["lord_b1"]) @ p["lord_w2"] + p["lord_b2"]
    with lordfast.collect_gates(nn.ModuleDict({"to_q": layer})) as gates:
        y = layer(x)
    torch.testing.assert_close(y, base(x) + o1 + torch.sigmoid(logit)[..., None] * o2)
    torch.testing.assert_close(gates["to_q"], logit)


def test_first_step_reaches_the_gate_and_both_branches(unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    for activation in ("relu", "silu"):
        model = copy.deepcopy(unet)
        model.add_adapter(lordfast.LordConfig(gate_activation=activation), adapter_name="lord")
        with lordfast.collect_gates(model) as gates:
            loss = tiny.run(model).square().mean()
        (loss + lordfast.detection_loss(gates, torch.tensor([0, 1]))).backward()
        layer = model.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
        moved = {name for name, p in layer.parameters_of("lord").items() if p.grad is not None and p.grad.any()}
        # A waits for B and B', w1 for B: their gradients are zero by construction on the very first step.
        assert moved == {"lord_B", "lord_B_adv", "lord_b1", "lord_w2", "lord_b2"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_parameters_are_fp32_on_a_half_base_and_stay_so(
    dtype: torch.dtype, unet: UNet2DConditionModel, tiny: SimpleNamespace
) -> None:
    unet.to(dtype)
    unet.add_adapter(tiny.config(), adapter_name="lord")
    saved = {name: p.detach().clone() for name, p in tiny.lord_parameters(unet).items()}
    assert {p.dtype for p in saved.values()} == {torch.float32}
    assert tiny.run(unet, tiny.inputs(dtype=dtype)).dtype == dtype
    unet.to(torch.float32)
    unet.half()
    assert unet.conv_in.weight.dtype == torch.float16
    for name, parameter in tiny.lord_parameters(unet).items():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, saved[name])


def test_autocast_runs_the_layer_in_its_dtype_and_the_gate_in_fp32(
    lord_unet: UNet2DConditionModel, tiny: SimpleNamespace
) -> None:
    layer = lord_unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_out[0]
    x = torch.randn(2, 3, layer.in_features)
    with torch.autocast("cpu", torch.bfloat16), lordfast.collect_gates(layer) as gates:
        y = layer(x)
        plain = layer.base_layer(x)
    assert y.dtype == plain.dtype == torch.bfloat16
    (logit,) = gates.values()
    with lordfast.collect_gates(layer) as exact:
        expected = layer(x.bfloat16().float())
    assert logit.dtype == torch.float32
    # The gate never sees a bf16 rounding of its own: only x was rounded.
    torch.testing.assert_close(logit, next(iter(exact.values())), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)


class _Quantised(nn.Module):
    """Stands for a base layer that is no nn.Linear: only its forward knows what it computes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
        self.inner = [linear]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner[0](x).round(decimals=1)


@pytest.mark.parametrize("kind", ["quantised", "hook", "offload", "parametrised"])
def test_bases_that_are_not_plain_are_called(kind: str, tiny: SimpleNamespace) -> None:
    linear = nn.Linear(6, 5)
    x = torch.randn(2, 3, 6)
    reference = LordLinear(linear, "lord", tiny.config())
    delta = reference(x) - linear(x)
    base: nn.Module = copy.deepcopy(linear)
    if kind == "quantised":
        base = _Quantised(linear)
    elif kind == "hook":
        base.register_forward_hook(lambda module, args, out: out + 1)
    elif kind == "offload":
        forward = base.forward
        base.forward = lambda x: forward(x) * 2  # type: ignore[method-assign]
    else:
        nn.utils.parametrizations.weight_norm(base)
    layer = LordLinear(base, "lord", tiny.config())
    layer.load_state_dict({k: v for k, v in reference.state_dict().items() if "lord_" in k}, strict=False)
    torch.testing.assert_close(layer(x), base(x) + delta)


def test_sequential_offload_brings_lord_home(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    from accelerate import cpu_offload

    expected = tiny.run(lord_unet)
    cpu_offload(lord_unet, execution_device=torch.device("cpu"))
    assert {p.device.type for p in tiny.lord_parameters(lord_unet).values()} == {"meta"}
    torch.testing.assert_close(tiny.run(lord_unet), expected)
    assert {p.device.type for p in tiny.lord_parameters(lord_unet).values()} == {"meta"}


def test_sd15_topology_has_128_targets_of_which_96_see_the_image(tiny: SimpleNamespace) -> None:
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32, 64, 64), cross_attention_dim=12, attention_head_dim=8
    ).requires_grad_(False)
    unet.add_adapter(lordfast.LordConfig(), adapter_name="lord")
    with lordfast.collect_gates(unet) as gates:
        tiny.run(unet)
    assert len(gates) == 128
    seeing = [name for name in gates if lordfast.sees_image(name)]
    assert len(seeing) == 96
    assert not any(name.endswith(("attn2.to_k", "attn2.to_v")) for name in seeing)


def test_copies_and_pickles_compute_the_same(lord_unet: UNet2DConditionModel, tiny: SimpleNamespace) -> None:
    expected = tiny.run(lord_unet)
    for clone in (copy.deepcopy(lord_unet), pickle.loads(pickle.dumps(lord_unet))):
        assert torch.equal(tiny.run(clone), expected)
        assert isinstance(clone.peft_config["lord"], lordfast.LordConfig)
        lordfast.remove_lord(clone)
        assert not torch.equal(tiny.run(clone), expected)
    assert torch.equal(tiny.run(lord_unet), expected)


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"r": 0}, ValueError, "r must be at least 1, got 0"),
        ({"r": 2.0}, TypeError, "r must be an int"),
        ({"gate_hidden": -1}, ValueError, "gate_hidden"),
        ({"lord_alpha": 0}, ValueError, "lord_alpha must be positive"),
        ({"lord_alpha": math.nan}, ValueError, "lord_alpha must be finite"),
        ({"gate_activation": "tanh"}, ValueError, "gate_activation must be one of relu, silu, gelu, got 'tanh'"),
        ({"gate_granularity": "image"}, ValueError, "gate_granularity"),
        ({"target_modules": []}, ValueError, "target_modules"),
        ({"target_modules": None}, TypeError, "target_modules"),
        ({"exclude_modules": [1]}, ValueError, "exclude_modules"),
        ({"init_weights": "gaussian"}, TypeError, "init_weights"),
    ],
)
def test_bad_config_names_the_field(fields: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        lordfast.LordConfig(**fields)


def test_exclude_modules_and_regex(unet: UNet2DConditionModel) -> None:
    config = lordfast.LordConfig(target_modules=r".*attn\d\.to_[qk]", exclude_modules=r".*attn2.*")
    unet.add_adapter(config, adapter_name="lord")
    names = [name for name, m in unet.named_modules() if isinstance(m, lordfast.LordLayer)]
    assert len(names) == 8 and all(name.endswith(("attn1.to_q", "attn1.to_k")) for name in names)


def test_what_is_not_linear_is_refused_before_anything_changes(unet: UNet2DConditionModel) -> None:
    with pytest.raises(ValueError, match=r"target_modules matches .*conv1, a Conv2d"):
        peft.inject_adapter_in_model(lordfast.LordConfig(target_modules=["to_q", "conv1"]), unet, "lord")
    assert not any(isinstance(m, lordfast.LordLayer) for m in unet.modules())
