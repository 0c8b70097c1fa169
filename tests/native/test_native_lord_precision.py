"""LoRD on every instruction set: at most twice as far from float64 as the unfolded eager formula in the same dtype."""

from collections import defaultdict
from functools import cache

import pytest
import torch

from lordfast.ops import use_backend

SEEDS = 12  # many draws together: the error of a lone scalar, such as b2's gradient, says little from one
# More vectors in a row than one run of the blocked sums on any instruction set, and tails everywhere.
TOKENS, K, N, R, H = 37, 411, 403, 4, 33


def squared(t: torch.Tensor) -> float:
    return float(t.double().square().sum())


@pytest.fixture(scope="module")
def draws(make_case, outcome):
    """(case, cotangents, float64 outcome) for every seed, and what the eager formula's squared errors add up to."""

    @cache
    def make(dtype, granularity, activation):
        found, eager_error, size = [], defaultdict(float), defaultdict(float)
        for seed in range(SEEDS):
            options = {"granularity": granularity, "activation": activation, "seed": seed}
            case = make_case((2, TOKENS), K, N, R, H, dtype=dtype, trainable=torch.float32, **options)
            g = torch.Generator().manual_seed(seed)
            grad_y = torch.randn(2, TOKENS, N, generator=g).to(dtype)
            grad_logit = torch.randn((2,) if granularity == "sample" else (2, TOKENS), generator=g).to(dtype)
            exact = outcome(case.to(torch.float64), "eager", grad_y, grad_logit)
            eager = outcome(case, "eager", grad_y, grad_logit)
            for name, reference in exact.items():
                eager_error[name] += squared(eager[name].double() - reference)
                size[name] += squared(reference)
            found.append((case, grad_y, grad_logit, exact))
        return found, eager_error, size

    return make


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_twice_the_eager_error(draws, outcome, isa, dtype, granularity, activation):
    found, eager_error, size = draws(dtype, granularity, activation)
    error = defaultdict(float)
    with use_backend("native"):
        for case, grad_y, grad_logit, exact in found:
            for name, got in outcome(case, "fused", grad_y, grad_logit).items():
                error[name] += squared(got.double() - exact[name])
    report = {n: ((error[n] / size[n]) ** 0.5, (eager_error[n] / size[n]) ** 0.5) for n in size}
    assert not {n: errors for n, errors in report.items() if not errors[0] <= 2 * errors[1]}


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
def test_the_activation_itself(make_case, lord, isa, activation):
    """The gate on z = x from far left to far right: r = H = 1 and every weight 1 leave act(z) and its derivative."""
    z = torch.cat([torch.linspace(-30, 30, 4001), torch.tensor([0.0, 1e-6, -1e-6, 90.0, -90.0, 300.0, -300.0])])
    case = make_case((len(z),), 1, 1, 1, 1, dtype=torch.float32, base=False, activation=activation, scaling=1.0)
    one = {name: torch.ones_like(case[name]) for name in ("lord_A", "lord_B", "w1", "w2")}
    zero = {name: torch.zeros_like(case[name]) for name in ("lord_B_adv", "b1", "b2")}
    for name, value in {**one, **zero, "x": z[:, None]}.items():
        case[name].copy_(value)
    got = lord(case, None, torch.ones_like(z))
    wide = z.double().requires_grad_()
    value = getattr(torch.nn.functional, activation)(wide)
    (slope,) = torch.autograd.grad(value.sum(), wide)
    # Two units in the last place of a number of order one, and of the result.
    unit = 2.0**-23
    for result, expected in ((got["gate_logit"], value.detach()), (got["x"][:, 0], slope)):
        excess = (result.double() - expected).abs() / (2 * unit * (1 + expected.abs()))
        assert excess.max() <= 1, f"{excess.max():.3g} at {z[excess.argmax()]}"


@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_stays_in_its_row(make_case, lord, isa, dtype, special):
    case = make_case((40,), 35, 21, 3, 5, dtype=dtype, trainable=torch.float32, base=False)
    plain = lord(case, torch.ones(40, 21, dtype=dtype))
    case["x"][17, 5] = special
    got = lord(case, torch.ones(40, 21, dtype=dtype))
    rows = torch.arange(40) != 17
    for name in ("y", "gate_logit", "u", "x"):
        assert torch.equal(got[name][rows], plain[name][rows]), name
    assert not got["y"][17].isfinite().any() and not got["u"][17].isfinite().any()
    assert got["lord_A"][:, 5].isnan().all() or not got["lord_A"][:, 5].isfinite().all()
