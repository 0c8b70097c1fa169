"""The Triton kernels against float64, over shapes, ranks, dtypes, options and wanted gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import lordfast.ops as ops
from lordfast.ops.backends.reference.lord import INPUTS
from lordfast.ops.backends.triton import forward

pytestmark = pytest.mark.usefixtures("forced")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# lead, K, N, r, H: tails in every dimension of tiles of 16, sizes of 1, every packing of the rank.
SHAPES = [
    ((2, 9), 21, 19, 3, 20),
    ((1, 1), 7, 5, 1, 1),
    ((3,), 16, 16, 16, 4),
    ((2, 17), 33, 40, 4, 20),
    ((2, 5), 20, 24, 17, 8),
    ((2, 2, 5), 9, 12, 8, 5),
    ((1, 18), 10, 12, 64, 3),
    ((5,), 1, 1, 1, 1),
]
LORD = ("lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")


def distance(got, exact):
    return float((got.cpu().double() - exact.cpu()).norm() / exact.cpu().norm().clamp(min=1e-30))


def cotangents(case, seed=0):
    g = torch.Generator().manual_seed(seed)
    lead = case["x"].shape[:-1]
    shape = lead[:1] if case.granularity == "sample" else lead
    device, dtype = case["x"].device, case["x"].dtype
    grad_y = torch.randn(*lead, case["lord_B"].shape[0], generator=g)
    return grad_y.to(device, dtype), torch.randn(shape, generator=g).to(device, dtype)


def check(case, outcome):
    """y, gate_logit and all gradients: at most twice the eager formula's error, and a few roundings of fp32 beside."""
    grads = cotangents(case)
    exact = outcome(case.to(torch.float64), "eager", *grads)
    fused, eager = (outcome(case, which, *grads) for which in ("fused", "eager"))
    for name, reference in exact.items():
        assert fused[name].dtype == (
            torch.float32 if name == "gate_logit" else case[name if name != "y" else "x"].dtype
        )
        allowed = 2 * distance(eager[name], reference) + 64 * torch.finfo(torch.float32).eps
        assert distance(fused[name], reference) <= allowed, name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_against_float64(make_case, outcome, here, tiles, dtype, sizes):
    tiles()
    i = SHAPES.index(sizes) + DTYPES.index(dtype)
    options = {"granularity": "token", "activation": ("relu", "silu", "gelu")[i % 3]}
    check(here(make_case(*sizes, dtype=dtype, trainable=torch.float32, bias=i % 2 == 0, **options)), outcome)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
@pytest.mark.parametrize("base", [True, False], ids=["linear", "delta"])
@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_options(make_case, outcome, here, tiles, dtype, activation, base, granularity):
    tiles()
    options = {"granularity": granularity, "activation": activation, "scaling": 0.7}
    check(here(make_case((2, 9), 18, 20, 4, 5, dtype=dtype, trainable=torch.float32, base=base, **options)), outcome)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", [((2, 70), 70, 70, 4, 18), ((1, 20), 40, 40, 64, 4)], ids=str)
def test_the_table_s_own_tiles(make_case, outcome, here, dtype, sizes):
    check(here(make_case(*sizes, dtype=dtype, trainable=torch.float32)), outcome)


@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_p_in_a_launch_of_its_own(make_case, outcome, here, tiles, granularity):
    tiles(fold="prep")
    check(here(make_case((2, 9), 18, 40, 3, 20, dtype=torch.float32, granularity=granularity)), outcome)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_parameters_in_half_precision(make_case, outcome, here, tiles, dtype):
    tiles()
    check(here(make_case((2, 9), 18, 20, 4, 5, dtype=dtype)), outcome)


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("lead", [(0, 3), (2, 0)], ids=str)
def test_no_tokens(make_case, here, granularity, lead):
    case = here(make_case(lead, dtype=torch.float32, granularity=granularity)).leaves()
    y, logit = case.fused()
    assert y.shape == (*lead, 5) and logit.shape == (lead[:1] if granularity == "sample" else lead)
    assert not logit.any()
    grads = torch.autograd.grad([y, logit], case.tensors, [torch.ones_like(y), torch.ones_like(logit)])
    for t, grad in zip(case.tensors, grads, strict=True):
        assert grad.shape == t.shape and not grad.any()


def strided(x):
    yield x.transpose(0, 1).contiguous().transpose(0, 1)
    yield torch.stack([x, x], dim=-1)[..., 0]
    yield torch.cat([x, x], dim=-1)[..., : x.shape[-1]]
    yield x[:1].expand(x.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_strides_make_no_difference(make_case, outcome, here, tiles, dtype):
    tiles(entries=128)
    case = here(make_case((2, 9), 18, 20, 3, 5, dtype=dtype, trainable=torch.float32))
    grad_y, grad_logit = cotangents(case)
    for x in strided(case["x"]):
        assert not x.is_contiguous()
        plain, other = case.with_x(x.contiguous()), case.with_x(x)
        other = replace(
            other, tensors=tuple(_transposed_memory(t) if i != 0 else t for i, t in enumerate(other.tensors))
        )
        y, logit = other.fused()
        expected = outcome(plain, "fused", grad_y, grad_logit)
        assert torch.equal(y, expected["y"]) and torch.equal(logit, expected["gate_logit"])
        other = replace(other, tensors=tuple(t.detach().requires_grad_() for t in other.tensors))
        got = torch.autograd.grad(other.fused(), other.tensors, [_transposed_memory(grad_y), grad_logit.float()])
        assert all(torch.equal(g, expected[name]) for name, g in zip(INPUTS, got, strict=True))


def _transposed_memory(t):
    return t.mT.contiguous().mT if t.ndim > 1 else t


SUBSETS = [
    *[("x",), LORD, ("x", *LORD), ("lord_A",), ("lord_B",), ("lord_B_adv",)],
    *[("w1",), ("b1", "w2"), ("b2",), ("weight",), ("bias", "x")],
]


@pytest.mark.parametrize("wanted", SUBSETS, ids="-".join)
@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_frozen_subsets(make_case, outcome, here, tiles, wanted, granularity):
    tiles()
    case = here(make_case((2, 9), 18, 20, 3, 5, dtype=torch.float32, granularity=granularity))
    grads = cotangents(case)
    everything = outcome(case, "fused", *grads)
    some = case.leaves(*wanted)
    got = torch.autograd.grad(some.fused(), [some[name] for name in wanted], list(grads))
    assert all(torch.equal(g, everything[name]) for name, g in zip(wanted, got, strict=True))


@pytest.mark.parametrize("which", [0, 1], ids=["y", "gate_logit"])
@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_one_output_s_gradient(make_case, here, tiles, which, granularity):
    tiles()
    case = here(make_case((2, 9), 18, 20, 3, 5, dtype=torch.float32, granularity=granularity))
    grad = cotangents(case)[which]
    exact, fused = case.to(torch.float64).leaves(), case.leaves()
    used = [i for i, name in enumerate(INPUTS) if which == 0 or name not in ("weight", "bias", "lord_B_adv")]
    expected = torch.autograd.grad(exact.eager()[which], [exact.tensors[i] for i in used], grad.double())
    got = torch.autograd.grad(fused.fused()[which], fused.tensors, grad)
    for i, reference in zip(used, expected, strict=True):
        assert distance(got[i], reference) < 1e-5, INPUTS[i]
    assert all(not g.any() for i, g in enumerate(got) if i not in used)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_every_time(make_case, outcome, here, tiles, dtype):
    tiles()
    case = here(make_case((2, 20), 18, 20, 3, 5, dtype=dtype, trainable=torch.float32))
    grads = cotangents(case)
    first, second = (outcome(case, "fused", *grads) for _ in range(2))
    assert all(torch.equal(t, second[name]) for name, t in first.items())


def test_tiny_gradients_keep_their_digits_in_fp16(make_case, here, tiles):
    """What reaches A through the gate alone is fp32; the range of fp16, where x is fp16, must not cut it."""
    tiles()
    case = here(make_case((2, 9), 18, 20, 3, 5, dtype=torch.float16, trainable=torch.float32)).leaves("lord_A")
    grad = cotangents(case)[1].float()
    (plain,) = torch.autograd.grad(case.fused()[1], case["lord_A"], grad)
    for factor in (2.0**-40, 2.0**30):
        (scaled,) = torch.autograd.grad(case.fused()[1], case["lord_A"], grad * factor)
        assert distance(scaled / factor, plain.double()) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("granularity", "bias", "lead"),
    [("token", True, (2, 9)), ("token", False, (20,)), ("sample", True, (2, 9)), ("token", True, (2, 0))],
    ids=str,
)
def test_three_projections_are_three_calls(make_case, here, tiles, dtype, granularity, bias, lead):
    rows = tiles()
    cases = [
        here(make_case(lead, 18, 20, 3, 5, dtype=dtype, trainable=torch.float32, bias=bias, seed=s)) for s in range(3)
    ]
    roles = [list(role) for role in zip(*(case.tensors[1:] for case in cases), strict=True)]
    roles = [[] if role[0] is None else role for role in roles]
    options = (2.0, granularity == "sample", "gelu")
    x = cases[0]["x"]
    outputs = forward.lord_qkv_forward(rows["forward"], x, *roles, *options)
    for i, case in enumerate(cases):
        expected = forward.lord_forward(rows["forward"], x, *case.tensors[1:], *options)
        assert not any(e.isnan().any() for e in expected)
        assert all(torch.equal(got[i], e) for got, e in zip(outputs, expected, strict=True))


def test_lord_qkv_runs_here(make_case, here, tiles):
    """Through the public operation: outputs and gradients are those of three layers on the reference."""
    tiles()
    cases = [here(make_case((2, 9), 18, 20, 3, 5, dtype=torch.float32, seed=s)).leaves() for s in range(3)]
    x = cases[0]["x"]
    projections = [ops.Projection(*case.tensors[1:6], ops.Gate(*case.tensors[6:])) for case in cases]
    ys, logits = ops.lord_qkv(x, *projections, 2.0, backend="triton")
    expected = [ops.lord_linear(x, *projection, 2.0, backend="reference") for projection in projections]
    torch.testing.assert_close(ys, tuple(y for y, _ in expected))
    torch.testing.assert_close(logits, tuple(logit for _, logit in expected))
    wanted = [x, *(case["lord_B"] for case in cases)]
    got = torch.autograd.grad([t.sum() for t in (*ys, *logits)], wanted)
    torch.testing.assert_close(got, torch.autograd.grad([t.sum() for pair in expected for t in pair], wanted))
