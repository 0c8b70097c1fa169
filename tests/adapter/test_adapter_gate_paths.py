"""Gates other than the paper's: each choice against its formula, and everything that depends on which gate it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import lordfast
from lordfast.adapter import LordLinear
from lordfast.adapter import layer as layer_module
from lordfast.adapter.save_load import read_lord
from lordfast.adapter.timestep import Clock, embed_timesteps
from lordfast.ops import Gate, lord_linear

K, N, R, H = 6, 5, 2, 3
OPTIONS = [
    {"gate_input": "down"},
    {"gate_input": "input"},
    {"gate_norm": "layer"},
    {"gate_norm": "rms", "gate_activation": "gelu"},
    {"gate_input": "down", "gate_norm": "rms", "gate_granularity": "sample"},
    {"gate_input": "input", "gate_norm": "layer", "gate_activation": "relu"},
    {"gate_temperature": 2.5},
    {"gate_temperature": 0.5, "gate_granularity": "sample"},
    {"gate_timestep": True},
    {"gate_timestep": True, "gate_norm": "layer", "gate_temperature": 3.0, "gate_granularity": "sample"},
]


def make_layer(tiny: SimpleNamespace, **options: Any) -> LordLinear:
    """A float64 layer whose every parameter matters, with two timesteps, 3 and 700, where its gate knows them."""
    layer = LordLinear(nn.Linear(K, N).double(), "lord", tiny.config(r=R, gate_hidden=H, **options))
    for name in layer.parameters_of("lord"):
        getattr(layer, name).double()
        nn.init.normal_(getattr(layer, name)["lord"])
    if options.get("gate_timestep"):
        layer.lord_clock = Clock(1)
        layer.lord_clock.embedding = embed_timesteps(torch.tensor([3, 700]), torch.float64)
    return layer


def by_hand(layer: LordLinear, x: Tensor, value: float | None = None) -> tuple[Tensor, Tensor]:
    """y and the gate's logit for x (2, T, K), token by token, straight from the definitions."""
    config, p, s = layer.lord_config["lord"], layer.parameters_of("lord"), layer.lord_config["lord"].scaling
    act = {"relu": torch.relu, "silu": F.silu, "gelu": F.gelu}[config.gate_activation]
    outputs, logits = [], []
    for b, sample in enumerate(x):
        of_sample, parts = [], []
        for token in sample:
            u = p["lord_A"] @ token
            clean, adversarial = s * (p["lord_B"] @ u), s * (p["lord_B_adv"] @ u)
            g = {"branch": clean, "down": u, "input": token}[config.gate_input]
            if config.gate_norm == "layer":
                g = (g - g.mean()) / torch.sqrt(((g - g.mean()) ** 2).mean() + 1e-5)
            elif config.gate_norm == "rms":
                g = g / torch.sqrt((g**2).mean() + 1e-5)
            z = p["lord_w1"] @ g + p["lord_b1"]
            if config.gate_timestep:
                t = (3.0, 700.0)[b]
                angles = torch.tensor([t * 10000 ** (-i / 16) for i in range(16)], dtype=torch.float64)
                z = z + p["lord_wt"] @ torch.cat([torch.cos(angles), torch.sin(angles)])
            of_sample.append((p["lord_w2"] @ act(z) + p["lord_b2"]) / config.gate_temperature)
            parts.append((token, clean, adversarial))
        own = torch.stack(of_sample)
        if config.gate_granularity == "sample":
            own = own.mean()
        lam = torch.sigmoid(own).expand(len(parts)) if value is None else torch.full((len(parts),), value)
        outputs.append(torch.stack([layer.base_layer(token) + c + lam[i] * a for i, (token, c, a) in enumerate(parts)]))
        logits.append(own)
    return torch.stack(outputs), torch.stack(logits)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_gate_is_its_formula_and_so_are_its_gradients(options: dict[str, Any], tiny: SimpleNamespace) -> None:
    layer = make_layer(tiny, **options)
    x = torch.randn(2, 4, K, dtype=torch.float64, requires_grad=True)
    with lordfast.collect_gates(nn.ModuleDict({"to_q": layer})) as gates:
        y = layer(x)
    logit = gates["to_q"]
    expected_y, expected_logit = by_hand(layer, x)
    torch.testing.assert_close(y, expected_y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(logit, expected_logit, rtol=1e-10, atol=1e-10)
    wanted = {"x": x, **layer.parameters_of("lord")}
    to_y, to_logit = torch.randn_like(y), torch.randn_like(logit)
    ours = torch.autograd.grad([y, logit], list(wanted.values()), [to_y, to_logit])
    theirs = torch.autograd.grad([expected_y, expected_logit], list(wanted.values()), [to_y, to_logit])
    for name, mine, his in zip(wanted, ours, theirs, strict=True):
        torch.testing.assert_close(mine, his, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
        assert his.abs().max() > 0, name


def test_the_papers_gate_and_a_temperature_go_through_the_fused_operation(
    tiny: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(layer_module, "composite_delta")
    x = torch.randn(2, 4, K)
    for temperature in (1.0, 4.0):
        layer = LordLinear(nn.Linear(K, N), "lord", tiny.config(gate_temperature=temperature))
        a, b, b_adv, w1, b1, w2, b2 = layer.parameters_of("lord").values()
        base = layer.base_layer
        gate = Gate(w1, b1, w2, b2) if temperature == 1 else Gate(w1, b1, w2 / temperature, b2 / temperature)
        y, logit = lord_linear(x, base.weight, base.bias, a, b, b_adv, gate, 2.0)
        with lordfast.collect_gates(nn.ModuleDict({"to_q": layer})) as gates:
            assert torch.equal(layer(x), y)
        assert torch.equal(gates["to_q"], logit)


@pytest.mark.parametrize("options", [{"gate_norm": "layer"}, {"gate_input": "input", "gate_norm": "rms"}], ids=str)
def test_autocast_and_half_precision_round_x_and_nothing_of_the_gate(
    options: dict[str, Any], tiny: SimpleNamespace
) -> None:
    layer = LordLinear(nn.Linear(64, 48), "lord", tiny.config(**options))
    x = torch.randn(2, 9, 64).bfloat16()

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        with lordfast.collect_gates(nn.ModuleDict({"to_q": layer})) as gates:
            return layer(x), gates["to_q"]

    exact_y, exact_logit = run(x.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = [run(x.float())]
    layer.to(torch.bfloat16)
    found.append(run(x))
    for y, logit in found:
        assert y.dtype == torch.bfloat16 and logit.dtype == torch.float32
        torch.testing.assert_close(logit, exact_logit, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(y.float(), exact_y, rtol=3e-2, atol=3e-2)


def test_a_new_gate_of_any_kind_changes_nothing_and_learns_from_the_first_step(tiny: SimpleNamespace) -> None:
    before = tiny.run(tiny.unet())
    for options in (OPTIONS[0], OPTIONS[1], OPTIONS[3], OPTIONS[8]):
        unet = tiny.unet()
        unet.add_adapter(lordfast.LordConfig(target_modules=["to_q"], **options), adapter_name="lord")
        with lordfast.collect_gates(unet) as gates:
            after = tiny.run(unet)
        assert torch.equal(after, before), options
        (after.square().mean() + lordfast.detection_loss(gates, torch.tensor([0, 1]))).backward()
        layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
        moved = {name for name, p in layer.parameters_of("lord").items() if p.grad is not None and p.grad.any()}
        expected = {"lord_B_adv", "lord_b1", "lord_w2", "lord_b2", "lord_B"}
        if options.get("gate_input") in ("down", "input"):
            # They read more than zeros, and A through the gate where it stands in between.
            expected |= {"lord_w1"} | ({"lord_A"} if options["gate_input"] == "down" else set())
        if options.get("gate_timestep"):
            expected |= {"lord_wt"}
        assert moved == expected, options


def test_samples_without_tokens_and_x_without_samples_are_as_in_the_fused_operation(tiny: SimpleNamespace) -> None:
    for options in ({}, {"gate_input": "down"}, {"gate_norm": "layer"}, {"gate_input": "input", "gate_norm": "rms"}):
        layer = LordLinear(nn.Linear(K, N), "lord", tiny.config(gate_granularity="sample", **options))
        for shape in ((2, 0, K), (2, 3, 0, K), (0, 4, K), (2, K)):
            with lordfast.collect_gates(nn.ModuleDict({"to_q": layer})) as gates:
                y = layer(torch.randn(shape))
            assert y.shape == (*shape[:-1], N) and gates["to_q"].shape == shape[:1]
            assert not gates["to_q"].any() or shape == (2, K)
        for value in (None, 0.5):
            with (
                lordfast.override_lambda(nn.ModuleDict({"to_q": layer}), value),
                pytest.raises(ValueError, match=r"x has shape \(6,\); expected at least 2 dimensions for gran"),
            ):
                layer(torch.randn(K))


@pytest.mark.parametrize("options", [OPTIONS[4], OPTIONS[9]], ids=str)
def test_saving_and_loading_keep_the_gate(options: dict[str, Any], tiny: SimpleNamespace, tmp_path: Path) -> None:
    unet = tiny.unet()
    unet.add_adapter(tiny.config(target_modules=["to_q", "to_v"], **options), adapter_name="lord")
    for parameter in tiny.lord_parameters(unet).values():
        nn.init.normal_(parameter, std=0.3)
    lordfast.save_lord(unet, tmp_path)
    other = tiny.unet()
    config = lordfast.load_lord(other, tmp_path)
    assert all(getattr(config, name) == value for name, value in options.items())
    assert torch.equal(tiny.run(other), tiny.run(unet))
    tensors = load_file(tmp_path / "lord.safetensors")
    assert any(name.endswith("lord_wt") for name in tensors) == ("gate_timestep" in options)
    wrong = next(name for name in tensors if name.endswith("lord_w1"))
    tensors[wrong] = torch.zeros(3, 77)
    save_file(tensors, tmp_path / "lord.safetensors", {"lord_config": json.dumps(config.to_record())})
    with pytest.raises(ValueError, match=r"lord_w1: the file has shape \(3, 77\)"):
        lordfast.load_lord(tiny.unet(), tmp_path)


def test_files_of_the_papers_gate_are_those_of_versions_without_other_gates(
    tiny: SimpleNamespace, tmp_path: Path
) -> None:
    unet = tiny.unet()
    unet.add_adapter(tiny.config(), adapter_name="lord")
    lordfast.save_lord(unet, tmp_path)
    record = json.loads((tmp_path / "lord_config.json").read_text())
    assert set(record) == {
        *("r", "lord_alpha", "target_modules", "exclude_modules", "init_weights"),
        *("gate_hidden", "gate_activation", "gate_granularity", "gate_init_bias"),
    }
    config, _ = read_lord(tmp_path)
    later = (config.gate_input, config.gate_norm, config.gate_timestep, config.gate_temperature)
    assert later == ("branch", "none", False, 1.0)
    with pytest.raises(ValueError, match=r"unknown fields \['gate_colour'\], missing fields \['r'\]"):
        lordfast.LordConfig.from_record({**{k: v for k, v in record.items() if k != "r"}, "gate_colour": "red"})


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"gate_input": "output"}, ValueError, "gate_input must be one of branch, down, input, got 'output'"),
        ({"gate_norm": "batch"}, ValueError, "gate_norm must be one of none, layer, rms, got 'batch'"),
        ({"gate_timestep": 1}, TypeError, "gate_timestep must be True or False, got 1"),
        ({"gate_temperature": 0}, ValueError, "gate_temperature must be positive, got 0"),
        ({"gate_temperature": "warm"}, TypeError, "gate_temperature must be a number"),
    ],
)
def test_a_gate_that_can_not_be_is_named(fields: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        lordfast.LordConfig(**fields)
