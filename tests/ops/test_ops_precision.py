"""The fused path is at most twice as far from float64 as the unfolded eager formula in the same dtype."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

pytestmark = pytest.mark.usefixtures("backend")

HALF = [torch.bfloat16, torch.float16]
DTYPES = [(torch.float32, torch.float32), *[(d, t) for d in HALF for t in (torch.float32, d)]]


def squared(t: torch.Tensor) -> float:
    return float(t.double().square().sum())


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize(("dtype", "trainable"), DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("sizes", [(64, 320, 320, 4, 16), (256, 64, 48, 8, 32)], ids=str)
def test_twice_the_eager_error(make_case, outcome, dtype, trainable, granularity, sizes):
    tokens, *rest = sizes
    # Over many draws together: the error of a lone scalar, such as b2's gradient, says little from one.
    fused_error, eager_error, size = defaultdict(float), defaultdict(float), defaultdict(float)
    for seed in range(16):
        case = make_case((2, tokens), *rest, dtype=dtype, trainable=trainable, granularity=granularity, seed=seed)
        g = torch.Generator().manual_seed(seed)
        grad_y = torch.randn(2, tokens, rest[1], generator=g).to(dtype)
        grad_logit = torch.randn((2,) if granularity == "sample" else (2, tokens), generator=g).to(dtype)
        exact = outcome(case.to(torch.float64), "eager", grad_y, grad_logit)
        fused, eager = (outcome(case, which, grad_y, grad_logit) for which in ("fused", "eager"))
        for name, reference in exact.items():
            fused_error[name] += squared(fused[name].double() - reference)
            eager_error[name] += squared(eager[name].double() - reference)
            size[name] += squared(reference)
    report = {n: ((fused_error[n] / size[n]) ** 0.5, (eager_error[n] / size[n]) ** 0.5) for n in size}
    assert not {n: errors for n, errors in report.items() if not errors[0] <= 2 * errors[1]}
    assert 0 < max(e for _, e in report.values()) < 0.1


def test_the_fold_costs_no_digits(make_case, case_of):
    """A sample's mean logit: the rounding of P = s W1 B is shared by all tokens, so the mean does not reduce it."""
    fused_error = eager_error = 0.0
    for seed in range(8):
        case = make_case((4, 64), 64, 1280, 4, 16, dtype=torch.float32, granularity="sample", seed=seed)
        # Without biases nothing but the fold's own result is left in the logit.
        case = case_of([torch.zeros_like(t) if i in (7, 9) else t for i, t in enumerate(case.tensors)], case)
        exact = case.to(torch.float64).eager()[1]
        fused_error += squared(case.fused()[1].double() - exact)
        eager_error += squared(case.eager()[1].double() - exact)
    assert fused_error**0.5 <= 2 * eager_error**0.5


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_the_gate_is_fp32_whatever_x_is(make_case, dtype, granularity):
    case = make_case((2, 64), 320, 320, 4, 16, dtype=dtype, trainable=torch.float32, granularity=granularity)
    exact = case.to(torch.float64).eager()[1]
    assert squared(case.fused()[1].double() - exact) ** 0.5 < 1e-6 * squared(exact) ** 0.5


@pytest.mark.parametrize("autocast", HALF, ids=str)
def test_autocast_does_not_reach_inside(make_case, autocast):
    case = make_case(dtype=torch.float32).leaves()
    plain = case.fused()
    grads = torch.autograd.grad([t.sum() for t in plain], case.tensors)
    with torch.autocast("cpu", dtype=autocast):
        inside = case.fused()
        grads_inside = torch.autograd.grad([t.sum() for t in inside], case.tensors)
    for a, b in zip((*plain, *grads), (*inside, *grads_inside), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)


def test_same_bits_every_time(make_case, outcome):
    case = make_case((4, 64), 40, 24, 4, 16, dtype=torch.bfloat16, trainable=torch.float32)
    ones = torch.ones(4, 64, 24), torch.ones(4, 64)
    first = outcome(case, "fused", *ones)
    for _ in range(3):
        assert all(torch.equal(first[name], t) for name, t in outcome(case, "fused", *ones).items())
