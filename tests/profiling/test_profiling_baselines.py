"""The baselines compute what they are said to compute."""

from __future__ import annotations

import math

import pytest
import torch
from peft import inject_adapter_in_model
from torch import nn

import lordfast
from lordfast.ops import Gate, lord_delta, lord_linear, pgd_step
from lordfast.profiling.baselines import compiled, eager_lord, eager_lord_linear, eager_pgd, peft_loras


def arguments(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 7), (5, 7), (5,), (2, 7), (5, 2), (5, 2), (4, 5), (4,), (4,), ())
    x, weight, bias, a, b, b_adv, *gate = (torch.randn(s, generator=g, dtype=torch.float64) for s in shapes)
    return x.to(dtype), weight.to(dtype), bias.to(dtype), a, b, b_adv, Gate(*gate), 2.0


def literal(granularity, activation):
    """Eq. 4 and 5 token by token, in plain numbers."""
    x, weight, bias, a, b, b_adv, gate, s = arguments()
    act = {"relu": lambda v: max(v, 0.0), "silu": lambda v: v / (1 + math.exp(-v))}
    act["gelu"] = lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2)))
    y, logits = torch.empty(2, 3, 5, dtype=torch.float64), torch.empty(2, 3, dtype=torch.float64)
    outputs = {}
    for sample in range(2):
        for token in range(3):
            vector = x[sample, token].tolist()
            u = [sum(w * v for w, v in zip(row, vector, strict=True)) for row in a.tolist()]
            o1, o2 = ([s * sum(w * v for w, v in zip(row, u, strict=True)) for row in m.tolist()] for m in (b, b_adv))
            hidden = [
                act[activation](sum(w * v for w, v in zip(row, o1, strict=True)) + offset)
                for row, offset in zip(gate.w1.tolist(), gate.b1.tolist(), strict=True)
            ]
            logits[sample, token] = sum(w * v for w, v in zip(gate.w2.tolist(), hidden, strict=True)) + gate.b2.item()
            outputs[sample, token] = o1, o2
    if granularity == "sample":
        logits = logits.mean(1)
    for (sample, token), branches in outputs.items():
        lam = 1 / (1 + math.exp(-float(logits[sample] if granularity == "sample" else logits[sample, token])))
        base = weight @ x[sample, token] + bias
        o1, o2 = (torch.tensor(o, dtype=torch.float64) for o in branches)
        y[sample, token] = base + o1 + lam * o2
    return y, logits


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_the_eager_formula_is_equations_4_and_5(granularity, activation):
    exact = literal(granularity, activation)
    got = eager_lord_linear(*arguments(), granularity=granularity, activation=activation)
    for mine, truth in zip(got, exact, strict=True):
        assert mine.shape == truth.shape
        torch.testing.assert_close(mine, truth, rtol=1e-12, atol=1e-12)


def test_the_eager_formula_works_in_xs_dtype():
    y, logit = eager_lord_linear(*arguments(torch.bfloat16))
    assert y.dtype == logit.dtype == torch.bfloat16


def test_eager_lord_reaches_every_layer_and_leaves(monkeypatch):
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)).double()
    config = lordfast.LordConfig(r=2, target_modules=["0", "1"], init_weights=False)
    inject_adapter_in_model(config, net, "lord")
    # A hook makes the second layer's base one that has to be called: it goes through lord_delta.
    net[1].base_layer.register_forward_hook(lambda module, args, output: output)
    x = torch.randn(2, 3, 6, dtype=torch.float64)

    def refuse(*args, **kwargs):
        raise AssertionError("the fused operation ran")

    fused = net(x)
    with monkeypatch.context() as patch:
        for name in ("lord_linear", "lord_delta"):
            patch.setattr(f"lordfast.adapter.layer.{name}", refuse)
        with eager_lord():
            torch.testing.assert_close(net(x), fused, rtol=1e-12, atol=1e-12)
        with pytest.raises(AssertionError, match="the fused operation ran"):
            net(x)
    from lordfast.adapter import layer

    assert layer.lord_linear is lord_linear and layer.lord_delta is lord_delta


def test_eager_lord_leaves_after_an_error():
    from lordfast.adapter import layer

    with pytest.raises(RuntimeError, match="inside"), eager_lord():
        raise RuntimeError("inside")
    assert layer.lord_linear is lord_linear


def test_peft_keeps_its_adapters_in_fp32():
    bases = [nn.Linear(6, 5).to(torch.bfloat16).requires_grad_(False) for _ in range(2)]
    loras = peft_loras(bases, 8)
    x = torch.randn(2, 3, 6).bfloat16()
    for base, lora in zip(bases, loras, strict=True):
        trainable = {name: p for name, p in lora.named_parameters() if p.requires_grad}
        assert {tuple(p.shape) for p in trainable.values()} == {(8, 6), (5, 8)}
        assert {p.dtype for p in trainable.values()} == {torch.float32}
        a, b = (next(p for n, p in trainable.items() if part in n) for part in ("lora_A", "lora_B"))
        assert lora.get_base_layer() is base and lora(x).dtype == torch.bfloat16
        exact = base(x).double() + (x.double() @ a.double().T) @ b.double().T
        assert (lora(x).double() - exact).norm() < 0.02 * exact.norm()
        assert (base(x).double() - exact).norm() > 0.02 * exact.norm()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_eager_pgd_is_the_step(norm):
    g = torch.Generator().manual_seed(1)
    x, x0, grad = (torch.rand(3, 2, 4, generator=g).double() * 2 - 1 for _ in range(3))
    how = {"step_size": 0.3, "eps": 0.5, "norm": norm, "low": -1.0, "high": 1.0}
    mine = eager_pgd(x, x0, grad, **how)
    torch.testing.assert_close(mine, pgd_step(x, x0, grad, **how), rtol=1e-14, atol=1e-14)
    assert (mine - x).abs().max() > 0.1


def test_compiled_does_not_give_up_on_the_ninth_shape():
    calls = []

    def backend(graph, inputs):
        calls.append(1)
        return graph.forward

    for size in range(2, 14):
        torch.compiler.reset()
        function = torch.compile(torch.sin, fullgraph=True, dynamic=False, backend=backend)
        function(torch.ones(size))
    assert len(calls) == 12
    assert callable(compiled(torch.sin, torch.device("cpu")))
