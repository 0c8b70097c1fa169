"""The Triton kernels are at most twice as far from float64 as the eager formula, over many draws together."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

pytestmark = pytest.mark.usefixtures("forced")

HALF = [torch.bfloat16, torch.float16]


def squared(t):
    return float(t.double().square().sum())


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
@pytest.mark.parametrize("sizes", [(64, 80, 256, 4, 16), (32, 64, 48, 20, 20)], ids=str)
def test_twice_the_eager_error(make_case, outcome, here, tiles, dtype, granularity, sizes):
    tiles(64, 128, 128, entries=2048)
    tokens, *rest = sizes
    fused_error, eager_error, size = defaultdict(float), defaultdict(float), defaultdict(float)
    for seed in range(6):
        case = make_case((2, tokens), *rest, dtype=dtype, trainable=torch.float32, granularity=granularity, seed=seed)
        case = here(case)
        g = torch.Generator().manual_seed(seed)
        grad_y = torch.randn(2, tokens, rest[1], generator=g).to(case["x"])
        grad_logit = torch.randn((2,) if granularity == "sample" else (2, tokens), generator=g).to(case["x"])
        exact = outcome(case.to(torch.float64), "eager", grad_y, grad_logit)
        fused, eager = (outcome(case, which, grad_y, grad_logit) for which in ("fused", "eager"))
        for name, reference in exact.items():
            fused_error[name] += squared(fused[name].double() - reference)
            eager_error[name] += squared(eager[name].double() - reference)
            size[name] += squared(reference)
    report = {n: ((fused_error[n] / size[n]) ** 0.5, (eager_error[n] / size[n]) ** 0.5) for n in size}
    assert not {n: errors for n, errors in report.items() if not errors[0] <= 2 * errors[1]}
    assert 0 < max(e for _, e in report.values()) < 0.1


@pytest.mark.parametrize("fold", ["kernel", "prep"])
def test_the_fold_costs_no_digits(make_case, case_of, here, tiles, fold):
    """A sample's mean logit: the rounding of P = s W1 B is shared by all tokens, so the mean does not reduce it."""
    tiles(256, 512, 64, fold=fold)
    fused_error = eager_error = 0.0
    for seed in range(8):
        case = here(make_case((4, 64), 64, 1280, 4, 16, dtype=torch.float32, granularity="sample", seed=seed))
        # Without biases nothing but the fold's own result is left in the logit.
        case = case_of([torch.zeros_like(t) if i in (7, 9) else t for i, t in enumerate(case.tensors)], case)
        exact = case.to(torch.float64).eager()[1]
        fused_error += squared(case.fused()[1].double() - exact)
        eager_error += squared(case.eager()[1].double() - exact)
    assert fused_error**0.5 <= 2 * eager_error**0.5


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("rank", [4, 8, 16])
def test_the_gate_is_fp32_whatever_x_is(make_case, here, tiles, dtype, granularity, rank):
    tiles(128, 512, 64)
    case = here(make_case((2, 64), 320, 320, rank, 16, dtype=dtype, trainable=torch.float32, granularity=granularity))
    exact = case.to(torch.float64).eager()[1]
    assert squared(case.fused()[1].double() - exact) ** 0.5 < 1e-6 * squared(exact) ** 0.5
