"""`lord_qkv` is three `lord_linear`s."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from lordfast.ops import Gate, Projection, lord_linear, lord_qkv, schema


def three(make_case, *, bias=True, granularity="token", dtype=torch.float32, **sizes):
    """x, three projections of it as leaves, and the options of the call."""
    cases = [make_case(bias=bias, dtype=dtype, seed=seed, **sizes).leaves() for seed in range(3)]
    x = cases[0]["x"]
    projections = [Projection(*c.tensors[1:6], Gate(*c.tensors[6:])) for c in cases]
    return x, projections, {"scaling": 2.0, "granularity": granularity}


def leaves_of(x, projections):
    return [x, *(t for p in projections for t in (*p[:5], *p.gate) if t is not None)]


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_as_three_calls(make_case, granularity, bias, dtype):
    x, projections, options = three(make_case, bias=bias, granularity=granularity, dtype=dtype)
    ys, logits = lord_qkv(x, *projections, **options)
    one_by_one = [lord_linear(x, *p, **options) for p in projections]
    for y, logit, (expected_y, expected_logit) in zip(ys, logits, one_by_one, strict=True):
        assert y.is_contiguous() and torch.equal(y, expected_y) and torch.equal(logit, expected_logit)

    g = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=g).to(t.dtype) for t in (*ys, *logits)]
    leaves = leaves_of(x, projections)
    dx, *got = torch.autograd.grad((*ys, *logits), leaves, cotangents)
    expected = [
        torch.autograd.grad(outputs, leaves_of(x, [p]), [cotangents[i], cotangents[3 + i]])
        for i, (outputs, p) in enumerate(zip(one_by_one, projections, strict=True))
    ]
    assert torch.equal(dx, expected[0][0] + expected[1][0] + expected[2][0])
    assert all(torch.equal(a, b) for a, b in zip(got, (t for one in expected for t in one[1:]), strict=True))


def test_gradients_of_one_output_leave_the_others_alone(make_case):
    x, projections, options = three(make_case)
    ys, _ = lord_qkv(x, *projections, **options)
    grads = torch.autograd.grad(ys[1].sum(), leaves_of(x, projections), allow_unused=True)
    alone = torch.autograd.grad(lord_linear(x, *projections[1], **options)[0].sum(), [x, projections[1].lord_A])
    assert torch.equal(grads[0], alone[0]) and torch.equal(grads[1 + 9 + 2], alone[1])
    assert all(t is None for t in (*grads[1:10], *grads[19:]))


@pytest.mark.parametrize("frozen", ["x", "parameters"])
def test_only_wanted_gradients(make_case, frozen):
    x, projections, options = three(make_case)
    for t in [x] if frozen == "x" else leaves_of(x, projections)[1:]:
        t.requires_grad_(False)
    wanted = [t for t in leaves_of(x, projections) if t.requires_grad]
    ys, logits = lord_qkv(x, *projections, **options)
    alone = [lord_linear(x, *p, **options) for p in projections]
    got = torch.autograd.grad([t.sum() for t in (*ys, *logits)], wanted)
    expected = torch.autograd.grad([t.sum() for pair in alone for t in pair], wanted)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("lead", [(2, 3), (0, 3)], ids=str)
def test_opcheck(make_case, granularity, lead):
    x, projections, _ = three(make_case, lead=lead)
    tensors = [None if t is None else t.detach() for p in projections for t in (*p[:5], *p.gate)]
    opcheck(schema.lord_qkv_forward, (x.detach(), *schema.by_role(tensors), 2.0, granularity == "sample", "silu", ""))


def test_compiled(make_case):
    x, projections, options = three(make_case)
    leaves = leaves_of(x, projections)

    def loss():
        ys, logits = lord_qkv(x, *projections, **options)
        return sum((y * y).sum() for y in ys) + sum(logit.sin().sum() for logit in logits)

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(), loss())
    torch.testing.assert_close(torch.autograd.grad(compiled(), leaves), torch.autograd.grad(loss(), leaves))


def test_projections_must_be_alike(make_case):
    x, projections, options = three(make_case)
    q, k, v = projections
    with pytest.raises(ValueError, match="v has no bias; expected the same of all three, and q has one"):
        lord_qkv(x, q, k, v._replace(bias=None), **options)
    _, other, _ = three(make_case, n=6)
    with pytest.raises(ValueError, match=r"k\.lord_B has shape \(6, 3\); expected q's, \(5, 3\)"):
        lord_qkv(x, q, other[0], v, **options)
    _, other, _ = three(make_case, h=9)
    with pytest.raises(ValueError, match=r"v\.gate\.w1 has shape \(9, 5\); expected q's, \(4, 5\)"):
        lord_qkv(x, q, k, other[0], **options)
