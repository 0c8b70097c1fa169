"""lord_linear and lord_delta against Eq. 4-5 in float64, over shapes, strides, dtypes and options, on each backend."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lordfast.ops import use_backend

GRANULARITIES = ["token", "sample"]
ACTIVATIONS = ["relu", "silu", "gelu"]


@pytest.fixture(scope="module")
def check(backend, outcome):
    """Outputs and every gradient against the unfolded formula in float64."""

    def against_eager(case):
        exact = case.to(torch.float64)
        g = torch.Generator().manual_seed(99)
        y, logit = exact.eager()
        grad_y, grad_logit = (torch.randn(t.shape, generator=g, dtype=t.dtype).to(backend.dtype) for t in (y, logit))
        got, expected = outcome(case, "fused", grad_y, grad_logit), outcome(exact, "eager", grad_y, grad_logit)
        assert got.keys() == expected.keys()
        for name in got:
            backend.assert_close(got[name], expected[name], name)

    return against_eager


@pytest.mark.parametrize("base", [True, False], ids=["linear", "delta"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradcheck(make_case, case_of, base, activation, granularity):
    case = make_case(base=base, granularity=granularity, activation=activation).leaves()
    present = [i for i, t in enumerate(case.tensors) if t is not None]

    def f(*leaves):
        tensors = list(case.tensors)
        for i, leaf in zip(present, leaves, strict=True):
            tensors[i] = leaf
        return case_of(tensors, case).fused()

    with use_backend("reference"):  # finite differences need float64
        assert torch.autograd.gradcheck(f, tuple(case.tensors[i] for i in present))


@pytest.mark.parametrize("base", [True, False], ids=["linear", "delta"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_unfolded_formula(make_widest, check, base, activation, granularity):
    check(make_widest(base=base, granularity=granularity, activation=activation))


LEADS = [(1,), (6,), (1, 1), (3, 4), (1, 5), (2, 3, 4), (2, 2, 3)]


@pytest.mark.parametrize(
    ("lead", "granularity"), [((), "token"), *[(lead, g) for lead in LEADS for g in GRANULARITIES]], ids=str
)
def test_leading_dimensions(make_widest, check, lead, granularity):
    check(make_widest(lead, granularity=granularity))


@pytest.mark.parametrize("r", [1, 2, 3, 16, 33, 64])
def test_ranks(make_widest, check, r):
    check(make_widest((2, 5), k=9, n=8, r=r, bias=False))


@settings(max_examples=60, deadline=None)
@given(
    lead=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    sizes=st.tuples(*[st.integers(1, 9)] * 4),
    granularity=st.sampled_from(GRANULARITIES),
    activation=st.sampled_from(ACTIVATIONS),
    base=st.booleans(),
    bias=st.booleans(),
    scaling=st.sampled_from([0.0, 0.5, 8.0, -1.0]),
    seed=st.integers(0, 1000),
)
def test_any_shape(make_widest, check, lead, sizes, base, bias, seed, **options):
    check(make_widest(tuple(lead), *sizes, base=base, bias=bias, seed=seed, **options))


def transposed(x):
    return x.transpose(0, 1).contiguous().transpose(0, 1)


def every_second(x):
    return torch.stack([x, torch.full_like(x, float("nan"))], dim=-1).flatten(-2)[..., ::2]


def from_channels_first(x):
    return x.movedim(-1, 1).contiguous().movedim(1, -1)


def broadcast(x):
    return x[:1].expand_as(x)


@pytest.mark.parametrize("restride", [transposed, every_second, from_channels_first, broadcast])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_strides(make_widest, backend, restride, granularity):
    case = make_widest((3, 4), granularity=granularity)
    x = restride(case["x"])
    assert not x.is_contiguous()
    got = case.with_x(x).fused()
    for a, b in zip(got, case.with_x(x.contiguous()).fused(), strict=True):
        assert torch.equal(a, b)
        assert a.is_contiguous()
    for a, b in zip(got, case.with_x(x).to(torch.float64).eager(), strict=True):
        backend.assert_close(a, b)


def test_strided_gradients_and_parameters(make_widest, backend, case_of):
    case = make_widest((3, 4)).leaves()
    strided = case_of([t if t.ndim < 2 else t.detach().mT.contiguous().mT.requires_grad_() for t in case.tensors], case)
    (y, logit), (y2, logit2) = case.fused(), strided.fused()
    grads = torch.autograd.grad([y.sum(), logit.sum()], case.tensors)  # expanded cotangents, stride 0
    grads2 = torch.autograd.grad([y2.mT.contiguous().sin().sum(), logit2.sum()], strided.tensors)
    y3, logit3 = case.fused()
    grads3 = torch.autograd.grad([y3.sin().sum(), logit3.sum()], case.tensors)
    y4, logit4 = case.eager()
    grads4 = torch.autograd.grad([y4.sum(), logit4.sum()], case.tensors)
    for got, expected in zip((*grads, *grads2), (*grads4, *grads3), strict=True):
        backend.assert_close(got, expected)


@pytest.mark.parametrize("lead", [(0,), (0, 4), (2, 0), (2, 0, 3)], ids=str)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("base", [True, False], ids=["linear", "delta"])
def test_no_tokens(make_widest, backend, lead, granularity, base):
    case = make_widest(lead, granularity=granularity, base=base).leaves()
    y, logit = case.fused()
    assert y.shape == (*lead, 5)
    if granularity == "sample":
        assert torch.equal(logit, torch.zeros(lead[0], dtype=backend.dtype))
    else:
        assert logit.shape == lead
    present = [t for t in case.tensors if t is not None]
    grads = torch.autograd.grad([y.sum(), logit.sum()], present)
    for t, grad in zip(present, grads, strict=True):
        assert torch.equal(grad, torch.zeros_like(t))


def test_sample_gate_shares_one_lambda(make_widest, backend):
    case = make_widest((3, 4), base=False, granularity="sample")
    delta, logit = case.fused()
    u = case["x"] @ case["lord_A"].T
    lam = torch.sigmoid(logit)[:, None, None]
    expected = case.scaling * (u @ case["lord_B"].T + lam * (u @ case["lord_B_adv"].T))
    backend.assert_close(delta, expected)
    assert not torch.allclose(delta, make_widest((3, 4), base=False).fused()[0])


def test_delta_is_linear_without_the_base(make_widest, backend):
    case = make_widest()
    y, logit = case.fused()
    delta, logit2 = make_widest(base=False).fused()
    case_delta = y - torch.nn.functional.linear(case["x"], case["weight"], case["bias"])
    backend.assert_close(delta, case_delta)
    assert torch.equal(logit, logit2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("trainable", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_dtypes_of_results(make_case, backend, outcome, dtype, trainable):
    if torch.finfo(dtype).eps < torch.finfo(backend.dtype).eps:
        pytest.skip(f"{backend.name} takes no {dtype}")
    case = make_case(dtype=dtype, trainable=trainable)
    got = outcome(case, "fused", torch.ones(2, 3, 5), torch.ones(2, 3))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (got.pop("y").dtype, got.pop("gate_logit").dtype) == (dtype, wide)
    assert {name: t.dtype for name, t in got.items()} == {name: case[name].dtype for name in got}
