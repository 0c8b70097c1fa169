"""`lord_stack` is `lord_linear` for many layers at once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
import torch
from torch.library import opcheck

from lordfast.ops import Branches, Gate, lord_linear, lord_stack, schema, stack

WIDTHS = (5, 5, 9, 9, 9)


def build(make_case, *, widths=WIDTHS, bias=True, dtype=torch.float32, trainable=None, lead=(2, 3), k=7, r=3, seed=0):
    """x, and one case for each layer; everything but the frozen layers wants a gradient."""
    cases = [
        make_case(lead, k, n, r, 4, bias=bias, dtype=dtype, trainable=trainable, seed=10 * seed + i)
        for i, n in enumerate(widths)
    ]
    cases = [c.leaves("lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2") for c in cases]
    return cases[0]["x"].detach().clone().requires_grad_(), cases


def stacked(x, cases, **options):
    """lord_stack's outputs, a pair (y, gate_logit) a layer."""
    weight = torch.cat([c["weight"] for c in cases])
    bias = None if cases[0].tensors[2] is None else torch.cat([c["bias"] for c in cases])
    layers = [Branches(*c.tensors[3:6], Gate(*c.tensors[6:])) for c in cases]
    ys, logits = lord_stack(x, weight, bias, layers, 2.0, **options)
    return list(zip([y for run in ys for y in run.unbind(0)], logits.unbind(0), strict=True))


def one_by_one(x, cases, **options):
    return [lord_linear(x, *c.tensors[1:6], Gate(*c.tensors[6:]), 2.0, **options) for c in cases]


def leaves_of(x, cases):
    return [x, *(t for c in cases for t in c.tensors[3:])]


def gradients(pairs, x, cases, seed=1):
    g = torch.Generator().manual_seed(seed)
    outputs = [t for pair in pairs for t in pair]
    cotangents = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t.dtype) for t in outputs]
    return torch.autograd.grad(outputs, leaves_of(x, cases), cotangents)


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_the_same_as_one_by_one(make_case, granularity, bias, activation):
    x, cases = build(make_case, bias=bias, dtype=torch.float64)
    options = {"granularity": granularity, "activation": activation}
    together, alone = stacked(x, cases, **options), one_by_one(x, cases, **options)
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients(together, x, cases), gradients(alone, x, cases), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize(
    ("dtype", "trainable"), [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)], ids=str
)
def test_twice_the_eager_error(make_case, dtype, trainable, granularity):
    wrong, size = {"fused": defaultdict(float), "eager": defaultdict(float)}, defaultdict(float)
    options = {"granularity": granularity}
    for seed in range(8):
        sizes = {"widths": (320, 320, 128), "lead": (2, 77), "k": 96, "r": 4, "seed": seed}
        x, cases = build(make_case, dtype=dtype, trainable=trainable, **sizes)
        exact_cases = [c.to(torch.float64) for c in cases]
        exact_cases = [c.leaves("lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2") for c in exact_cases]
        exact_x = x.detach().double().requires_grad_()

        def outcome(pairs, x, cases):
            found = {f"y{i}": y for i, (y, _) in enumerate(pairs)} | {f"l{i}": g for i, (_, g) in enumerate(pairs)}
            names = ["x", *(f"{name}/{i}" for i in range(3) for name in ("A", "B", "B'", "w1", "b1", "w2", "b2"))]
            return found | dict(zip(names, gradients(pairs, x, cases), strict=True))

        def eager(x, cases):
            return [replace(c.with_x(x), granularity=granularity).eager() for c in cases]

        exact = outcome(eager(exact_x, exact_cases), exact_x, exact_cases)
        got = {
            "fused": outcome(stacked(x, cases, **options), x, cases),
            "eager": outcome(eager(x, cases), x, cases),
        }
        for name, truth in exact.items():
            kind = name.partition("/")[0]
            size[kind] += float(truth.detach().square().sum())
            for which, found in got.items():
                wrong[which][kind] += float((found[name].detach().double() - truth.detach()).square().sum())
    report = {n: tuple((wrong[w][n] / size[n]) ** 0.5 for w in ("fused", "eager")) for n in size}
    assert not {n: errors for n, errors in report.items() if not errors[0] <= 2 * errors[1]}
    assert 0 < max(e for _, e in report.values()) < 0.1


@pytest.mark.parametrize("frozen", ["x", "parameters", "all but A", "all but B"])
def test_only_wanted_gradients(make_case, frozen):
    x, cases = build(make_case, dtype=torch.float64)
    keep = {
        "x": leaves_of(x, cases)[1:],
        "parameters": [x],
        "all but A": [c["lord_A"] for c in cases],
        "all but B": [c["lord_B"] for c in cases],
    }[frozen]
    for t in leaves_of(x, cases):
        t.requires_grad_(any(t is wanted for wanted in keep))
    got, expected = (
        torch.autograd.grad([t.sum() for pair in pairs for t in pair], keep)
        for pairs in (stacked(x, cases), one_by_one(x, cases))
    )
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


def test_one_layer_frozen_and_one_output_used(make_case):
    x, cases = build(make_case, dtype=torch.float64)
    for t in cases[1].tensors[3:]:
        t.requires_grad_(False)
    wanted = [x, cases[0]["w1"], cases[3]["w1"]]
    got, expected = (
        torch.autograd.grad(pairs[3][0].sin().sum(), wanted, allow_unused=True)
        for pairs in (stacked(x, cases), one_by_one(x, cases))
    )
    torch.testing.assert_close(got[0], expected[0])
    torch.testing.assert_close(got[2], expected[2])
    assert expected[1] is None and got[1].abs().max() == 0


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("lead", [(2, 3), (0, 3), (2, 0)], ids=str)
def test_opcheck(make_case, granularity, lead):
    x, cases = build(make_case, lead=lead)
    parameters = [torch.stack([c[n].detach() for c in cases[:2]]) for n in ("lord_B", "lord_B_adv", "w1")]
    rest = [torch.stack([c[n].detach() for c in cases[:2]]) for n in ("lord_A", "b1", "w2", "b2")]
    weight, bias = (torch.cat([c[n] for c in cases[:2]]) for n in ("weight", "bias"))
    given = (rest[0], *([p] for p in parameters), *rest[1:])
    options = (2.0, granularity == "sample", "silu")
    opcheck(schema.lord_stack_forward, (x.detach(), weight, bias, *given, *options))
    y, logit, u = schema.lord_stack_forward(x.detach(), weight, bias, *given, *options)
    args = ([torch.randn_like(t) for t in y], torch.randn_like(logit), x.detach(), logit, u, weight, *given, *options)
    opcheck(schema.lord_stack_backward, (*args, torch.float32, [True] * 8))
    assert all(torch.isfinite(t).all() for t in schema.lord_stack_backward(*args, torch.float32, [True] * 8))


def test_compiled(make_case):
    x, cases = build(make_case, dtype=torch.float64)

    def loss():
        return sum((y * y).sum() + logit.sin().sum() for y, logit in stacked(x, cases))

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    leaves = leaves_of(x, cases)
    torch.testing.assert_close(compiled(), loss())
    torch.testing.assert_close(torch.autograd.grad(compiled(), leaves), torch.autograd.grad(loss(), leaves))


def test_autocast_does_not_reach_inside(make_case):
    x, cases = build(make_case)
    plain = stacked(x, cases)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = stacked(x, cases)
    for a, b in zip(plain, inside, strict=True):
        assert all(torch.equal(s, t) and s.dtype == t.dtype for s, t in zip(a, b, strict=True))


def test_errors_name_the_argument(make_case):
    x, cases = build(make_case)
    layers = [Branches(*c.tensors[3:6], Gate(*c.tensors[6:])) for c in cases]
    weight = torch.cat([c["weight"] for c in cases])
    with pytest.raises(
        ValueError, match=r"weight has shape \(36, 7\); expected \(37, 7\), \(sum of the layers' N, K\)"
    ):
        lord_stack(x, weight[1:], None, layers, 2.0)
    with pytest.raises(TypeError, match=r"weight has dtype torch.float64; expected x's dtype, torch.float32"):
        lord_stack(x, weight.double(), None, layers, 2.0)
    with pytest.raises(ValueError, match="weight requires a gradient; lord_stack is for frozen layers"):
        lord_stack(x, weight.requires_grad_(), None, layers, 2.0)
    with pytest.raises(ValueError, match="layers is empty"):
        lord_stack(x, weight, None, [], 2.0)
    odd = layers[2]._replace(lord_A=layers[2].lord_A[:2])
    with pytest.raises(ValueError, match=r"layers\[2\] has shapes \[\(2, 7\), .*expected \[\(3, 7\)"):
        lord_stack(x, weight, None, [*layers[:2], odd, *layers[3:]], 2.0)
    assert stack.Branches is Branches
