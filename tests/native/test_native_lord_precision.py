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


UNIT = 2.0**-24


def plain_case(make_case, m, k, n, r, **tensors):
    """No branch B', relu, one hidden unit, scaling 1, no biases; `tensors` are written into the case."""
    case = make_case((m,), k, n, r, 1, dtype=torch.float32, base=False, activation="relu", scaling=1.0)
    zeros = {name: torch.zeros_like(case[name]) for name in ("lord_B_adv", "b1", "b2")}
    for name, value in {**zeros, "w2": torch.ones(1), **tensors}.items():
        case[name].copy_(value)
    return case


def test_the_fold_is_summed_in_double(make_case, lord, isa):
    """With A = 1 and x = +-1 the logits are the entries of P, where they are positive, and of -P."""
    r = 64
    x = torch.cat([torch.eye(r), -torch.eye(r)])
    case = plain_case(make_case, 2 * r, r, 1280, r, x=x, lord_A=torch.eye(r))
    p = case["w1"].double() @ case["lord_B"].double()
    got = lord(case)["gate_logit"].double()
    # P is rounded once. Sums in fp32 would be off by some units of their largest part.
    assert ((got - torch.cat([p, -p], dim=1)[0].clamp(min=0)).abs() <= UNIT * p.abs().max()).all()
    assert torch.equal(got[:r] - got[r:], p[0].float().double())


def test_long_sums_are_blocked(make_case, lord, isa):
    """u and v, both from one kernel, over 5120 products.

    A sum of L numbers of random sign, one after the other, is off by about sqrt(L / 12) units. Runs of at most 24
    vectors, at most 54 of them, then make sqrt(2) + sqrt(4.5) = 3.6; on the widest vectors one long run would make 5.
    """
    k, m = 5120, 64
    case = make_case((m,), k, 3, 4, 2, dtype=torch.float32, base=False)
    exact = case["x"].double() @ case["lord_A"].double().T
    error = lord(case)["u"].double() - exact
    assert error.square().mean().sqrt() <= 3.6 * UNIT * exact.square().mean().sqrt()


def test_sums_over_many_rows_are_in_double(make_case, lord, isa):
    """2^19 equal rows: the gate's gradients are so many times those of one, but for 16 additions in fp32 a lane."""
    m = 2**19
    values = {"lord_A": 0.7, "lord_B": 1.1, "w1": 0.9}
    weights = {name: torch.full((1, 1), value) for name, value in values.items()}
    many, one = (plain_case(make_case, count, 1, 1, 1, x=torch.full((count, 1), 0.3), **weights) for count in (m, 1))
    needs = ("b1", "w2", "w1")
    got, single = (lord(case, None, torch.full((len(case["x"]),), 0.1), needs=needs) for case in (many, one))
    for name in needs:
        expected = m * single[name].double()
        assert ((got[name].double() - expected).abs() <= 16 * UNIT * expected.abs()).all(), name
