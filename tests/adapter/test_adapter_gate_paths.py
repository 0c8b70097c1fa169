"""Gates other than the paper's: each choice against its formula, and everything that depends on which gate it is."""

from __future__ import annotations

import copy
import json
import math
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

import lordfast
from lordfast.adapter import LordLinear
from lordfast.adapter.save_load import read_lord
from lordfast.adapter.timestep import WIDTH, Clock, embed_timesteps

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
        outputs.append(
            torch.stack([layer.base_layer(token) + c + lam[i] * a for i, (token, c, a) in enumerate(parts)])
        )
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
