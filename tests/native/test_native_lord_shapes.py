"""LoRD on every instruction set: ranks, tails, strides, empty inputs, threads, and what is written where."""

import os
import subprocess
import sys

import pytest
import torch

from lordfast.ops import use_backend

UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
PARAMETERS = ("lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")


def cotangents(case, seed=5):
    y, logit = case.eager()
    g = torch.Generator().manual_seed(seed)
    return torch.randn(y.shape, generator=g).to(y.dtype), torch.randn(logit.shape, generator=g)


def assert_exact_but_for_rounding(got, expected, dtype):
    """y and dx are rounded to the dtype once, element by element; all else is fp32, judged by its largest element.

    4096 units of fp32 are what some hundred products and sums can lose, on the way through s = 2 and the gate.
    """
    for name, t in got.items():
        reference = expected[name]
        slack = 4096 * UNIT[torch.float32] * (reference.abs().max() + 1 if reference.numel() else 1)
        once = UNIT[dtype] * reference.abs() + 2.0**-25 if t.dtype == dtype != torch.float32 else 0
        assert t.shape == reference.shape
        assert ((t.double() - reference).abs() <= slack + once).all(), name


def check(case, lord, outcome, **options):
    grad_y, grad_logit = cotangents(case)
    got = lord(case, grad_y, grad_logit, **options)
    wide = case.to(torch.float64)
    expected = outcome(wide, "eager", grad_y, grad_logit)
    expected["u"] = wide["x"] @ wide["lord_A"].T
    assert_exact_but_for_rounding(got, expected, case["x"].dtype)


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("r", [1, 2, 3, 4, 5, 8, 17, 64])
def test_ranks(make_case, lord, outcome, isa, dtype, r, granularity):
    options = {"dtype": dtype, "trainable": torch.float32, "base": False, "granularity": granularity}
    check(make_case((3, 7), 37, 45, r, 6, **options), lord, outcome, guard=64)


# (lead, K, N, r, H): every remainder by the vectors and tiles, one of everything, and sums of more than one run.
SIZES = [
    *[((1, m), 16 + m, 64 - m, 4, 3) for m in (1, 2, 3, 4, 5, 15, 16, 17, 31, 33)],
    ((1, 1), 1, 1, 1, 1),
    ((2, 67), 3, 500, 2, 1),
    ((2, 67), 500, 3, 3, 70),
    ((5, 13), 64, 320, 4, 64),
    ((1, 70), 17, 31, 6, 130),
    ((1, 600), 20, 24, 4, 16),
]


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_sizes(make_case, lord, outcome, isa, dtype, sizes, granularity):
    options = {"dtype": dtype, "trainable": torch.float32, "base": False, "granularity": granularity}
    check(make_case(*sizes, **options), lord, outcome, guard=64)


@pytest.mark.parametrize("lead", [(0,), (0, 4), (3, 0)], ids=str)
@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("base", [True, False], ids=["linear", "delta"])
def test_no_rows(make_case, isa, dtype, lead, granularity, base):
    case = make_case(lead, 20, 24, dtype=dtype, trainable=torch.float32, base=base, granularity=granularity).leaves()
    with use_backend("native"):
        y, logit = case.fused()
        present = [t for t in case.tensors if t is not None]
        grads = torch.autograd.grad([y.sum(), logit.sum()], present)
    assert y.shape == (*lead, 24) and y.dtype == dtype
    assert logit.shape == (lead[:1] if granularity == "sample" else lead) and not logit.any()
    for t, grad in zip(present, grads, strict=True):
        assert torch.equal(grad, torch.zeros_like(t))


@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_the_base_is_added_to(make_case, outcome, isa, dtype, granularity):
    """The base's result is rounded by torch, the sum once more."""
    case = make_case((2, 19), 40, 50, 4, 8, dtype=dtype, trainable=torch.float32, granularity=granularity)
    cots = cotangents(case)
    exact = outcome(case.to(torch.float64), "eager", *cots)
    with use_backend("native"):
        got = outcome(case, "fused", *cots)
    for name, weight in (("y", case["weight"].T), ("x", case["weight"])):
        base = (case["x"] if name == "y" else cots[0]).double() @ weight.double()
        bound = UNIT[dtype] * (base.abs() + case["bias"].double().abs().max() + 1.02 * exact[name].abs())
        assert ((got[name].double() - exact[name]).abs() <= bound + 256 * UNIT[torch.float32]).all()


def expanded(t):
    return t[:1].expand_as(t)


def every_second(t):
    return torch.stack([t, torch.full_like(t, float("nan"))], dim=-1).flatten(-2)[..., ::2]


def channels_first(t):
    return t.movedim(-1, 1).contiguous().movedim(1, -1)


@pytest.mark.parametrize("restride", [expanded, every_second, channels_first])
def test_strides_of_x_and_the_gradients(make_case, dtype, restride):
    case = make_case((3, 8), 20, 24, 4, 8, dtype=dtype, trainable=torch.float32)
    grad_y, grad_logit = cotangents(case)
    x, grad_y, logit_column = restride(case["x"]), restride(grad_y), torch.stack([grad_logit] * 2, dim=-1)[..., 0]
    assert not any(t.is_contiguous() for t in (x, grad_y, logit_column))
    results = []
    for tensors in ((x, grad_y, logit_column), [t.contiguous() for t in (x, grad_y, logit_column)]):
        leaves = case.with_x(tensors[0]).leaves(*PARAMETERS, "weight", "bias")
        leaves = leaves.with_x(tensors[0].detach().requires_grad_())
        with use_backend("native"):
            y, logit = leaves.fused()
            results.append([y, logit, *torch.autograd.grad([y, logit], leaves.tensors, tensors[1:])])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_threads_and_runs_give_the_same_bits(make_case, lord, isa, dtype, granularity):
    options = {"dtype": dtype, "trainable": torch.float32, "base": False, "granularity": granularity}
    case = make_case((3, 111), 150, 130, 5, 9, **options)
    grads = cotangents(case)
    first = lord(case, *grads)
    for threads in (1, 2, 3, 7):
        for name, t in lord(case, *grads, threads=threads).items():
            assert torch.equal(t, first[name]), (threads, name)


@pytest.mark.parametrize("which", ["grad_y", "grad_logit"])
@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_either_gradient_alone(make_case, lord, outcome, isa, which, granularity):
    case = make_case((3, 7), 20, 24, 3, 8, dtype=torch.float32, base=False, granularity=granularity)
    grad_y, grad_logit = cotangents(case)
    got = lord(case, *((grad_y, None) if which == "grad_y" else (None, grad_logit)))
    scale = (1, 0) if which == "grad_y" else (0, 1)
    expected = outcome(case.to(torch.float64), "eager", scale[0] * grad_y, scale[1] * grad_logit)
    expected["u"] = case["x"].double() @ case["lord_A"].double().T
    assert_exact_but_for_rounding(got, expected, torch.float32)


SUBSETS = [("x",), ("lord_A",), ("lord_B",), ("lord_B_adv",), ("w1",), ("b1",), ("w2",), ("b2",), PARAMETERS]


@pytest.mark.parametrize("needs", SUBSETS, ids="-".join)
@pytest.mark.parametrize("granularity", ["token", "sample"])
def test_a_gradient_does_not_depend_on_which_others_are_wanted(make_case, lord, isa, needs, granularity):
    case = make_case((3, 50), 20, 24, 3, 8, dtype=torch.bfloat16, trainable=torch.float32, granularity=granularity)
    grads = cotangents(case)
    everything, some = lord(case, *grads), lord(case, *grads, needs=needs, guard=64)
    for name in needs:
        assert torch.equal(some[name], everything[name]), name


# Fills what malloc hands out with 0x7f7f7f7f, 3e38 as a float, and prints a checksum of all results.
PROGRAM = """
import torch
from lordfast.ops import Gate, lord_linear
g = torch.Generator().manual_seed(0)
rand = lambda *shape: torch.randn(shape, generator=g)
for granularity in ("token", "sample"):
    for r in (1, 4, 5):
        shapes = [(3, 50, 37), (45, 37), (45,), (r, 37), (45, r), (45, r), (9, 45), (9,), (9,), ()]
        t = [rand(*shape).requires_grad_() for shape in shapes]
        y, logit = lord_linear(*t[:6], Gate(*t[6:]), 0.5, granularity=granularity, backend="native")
        grads = torch.autograd.grad([y.square().sum(), logit.sum()], t)
        print(*[x.double().sum().item().hex() for x in (y, logit, *grads)])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the variable is glibc's")
def test_working_memory_is_written_before_it_is_read(tmp_path):
    printed = []
    for fill in ("0", "128"):
        environment = {**os.environ, "MALLOC_PERTURB_": fill, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", PROGRAM]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0] == printed[1] and "nan" not in printed[0] and "inf" not in printed[0]
