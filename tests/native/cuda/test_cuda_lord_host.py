"""LoRD's CUDA kernels against Eq. 4-5 in float64, on a CPU."""

from __future__ import annotations

from collections import defaultdict

import pytest
import torch

import lordfast.ops as ops

HALF = [torch.bfloat16, torch.float16]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, *HALF], ids=str)
GRANULARITIES = pytest.mark.parametrize("granularity", ["token", "sample"])
FORWARD = ["lord.fold", "lord.down", "lord.update"]
BACKWARD = ["lord.down", "lord.gate_backward", "lord.outer", "lord.update", "lord.reduce"]


@pytest.fixture
def new_case(make_case):
    def make(lead, *sizes, dtype=torch.float32, **options):
        return make_case(lead, *sizes, dtype=dtype, trainable=torch.float32, **options)

    return make


def cotangents(case, seed=0):
    x, n = case["x"], case["lord_B"].shape[0]
    g = torch.Generator().manual_seed(seed)
    lead = x.shape[:1] if case.granularity == "sample" else x.shape[:-1]
    return torch.randn(*x.shape[:-1], n, generator=g).to(x.dtype), torch.randn(lead, generator=g)


def error(got, exact):
    return float((got.double() - exact).square().sum())


@GRANULARITIES
@DTYPES
@pytest.mark.parametrize("sizes", [(40, 320, 96, 4, 16), (70, 64, 320, 8, 8)], ids=str)
def test_twice_the_eager_error(on_host, new_case, outcome, dtype, granularity, sizes):
    tokens, *rest = sizes
    own, eager, size = defaultdict(float), defaultdict(float), defaultdict(float)
    # Over many draws together: the error of a lone scalar, such as b2's gradient, says little from one.
    for seed in range(8):
        case = new_case((2, tokens), *rest, dtype=dtype, granularity=granularity, seed=seed)
        grads = cotangents(case, seed)
        exact = outcome(case.to(torch.float64), "eager", *grads)
        for total, which in ((own, "fused"), (eager, "eager")):
            for name, t in outcome(case, which, *grads).items():
                total[name] += error(t, exact[name])
        for name, t in exact.items():
            size[name] += error(t, 0)
    report = {name: ((own[name] / size[name]) ** 0.5, (eager[name] / size[name]) ** 0.5) for name in size}
    assert len(report) == 12 and all(a <= 2 * b for a, b in report.values()), report


def assert_right(case, outcome, grads=None):
    """As above from one draw, whose eager error can be small by luck: a few roundings are always allowed."""
    grads = grads or cotangents(case)
    exact = outcome(case.to(torch.float64), "eager", *grads)
    got, eager = outcome(case, "fused", *grads), outcome(case, "eager", *grads)
    for name, t in exact.items():
        rounding = torch.finfo(got[name].dtype).eps
        allowed = max(2 * error(eager[name], t) ** 0.5, 16 * rounding * (1e-6 + error(t, 0) ** 0.5))
        assert error(got[name], t) ** 0.5 <= allowed, name


@GRANULARITIES
@DTYPES
@pytest.mark.parametrize("rank", [1, 3, 4, 8, 17, 64])
def test_every_rank(on_host, new_case, outcome, rank, dtype, granularity):
    assert_right(new_case((2, 9), 37, 41, rank, 5, dtype=dtype, granularity=granularity, activation="gelu"), outcome)


@GRANULARITIES
@pytest.mark.parametrize("activation", ["relu", "silu", "gelu"])
@pytest.mark.parametrize("hidden", [1, 2, 7, 8, 33, 64, 65, 130])
def test_every_gate(on_host, new_case, outcome, hidden, activation, granularity):
    assert_right(new_case((2, 5), 16, 8, 3, hidden, activation=activation, granularity=granularity), outcome)


@DTYPES
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 127, 129, 260])
def test_every_number_of_rows(on_host, new_case, outcome, tokens, dtype):
    assert_right(new_case((tokens,), 24, 16, 4, 8, dtype=dtype), outcome)


@DTYPES
@pytest.mark.parametrize("k", [1, 7, 8, 63, 64, 65, 512, 513, 1032])
def test_every_depth_and_width(on_host, new_case, outcome, k, dtype):
    assert_right(new_case((5,), k, 9, 4, 3, dtype=dtype), outcome)
    assert_right(new_case((5,), 9, k, 4, 3, dtype=dtype), outcome)


@GRANULARITIES
def test_rows_enough_for_every_loop(on_host, new_case, outcome, granularity):
    """Several tiles of rows for a block of each kernel, several splits; a thread of a sample's sum takes several."""
    assert_right(new_case((2, 4200), 8, 8, 4, 3, granularity=granularity), outcome)


@DTYPES
def test_without_a_base_layer(on_host, new_case, outcome, dtype):
    assert_right(new_case((2, 9), 24, 40, 4, 8, dtype=dtype, base=False), outcome)


@DTYPES
@pytest.mark.parametrize("offset", [1, 3])
def test_rows_that_start_off_a_boundary(on_host, new_case, outcome, dtype, offset):
    case = new_case((3, 5), 16, 8, 4, 8, dtype=dtype, base=False)
    memory = torch.full((3 * 5 * 16 + 8,), float("nan"), dtype=dtype)
    x = memory[offset : offset + 3 * 5 * 16].view(3, 5, 16).copy_(case["x"])
    for got, expected in zip(case.with_x(x).fused(), case.fused(), strict=True):
        assert torch.equal(got, expected)


def test_strides(on_host, new_case, outcome, case_of):
    case = new_case((4, 6), 7, 5, 3, 4, base=False)
    turned = case_of([None if t is None else t.T.contiguous().T if t.ndim == 2 else t for t in case.tensors], case)
    turned = turned.with_x(case["x"].transpose(0, 1).contiguous().transpose(0, 1))
    for got, expected in zip(turned.fused(), case.fused(), strict=True):
        assert torch.equal(got, expected)
    wide = new_case((4, 6), 7, 5, 3, 4).leaves()
    y, logit = wide.fused()
    # Gradients that are expanded scalars.
    expected = torch.autograd.grad([y, logit], wide.tensors, [torch.ones_like(y), torch.ones_like(logit)])
    y, logit = wide.fused()
    for got, want in zip(torch.autograd.grad(y.sum() + logit.sum(), wide.tensors), expected, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("wanted", [("x",), ("lord_A",), ("lord_B",), ("lord_B_adv",), ("w1",), ("b1",), ("w2",),
                                    ("b2",), ("x", "w1"), ("lord_A", "lord_B_adv", "b2")], ids="-".join)  # fmt: skip
@GRANULARITIES
def test_what_nobody_wants_is_skipped(on_host, new_case, wanted, granularity):
    case = new_case((2, 9), 24, 16, 3, 8, granularity=granularity)
    grad_y, grad_logit = cotangents(case)
    whole, part = case.leaves(), case.leaves(*wanted)
    everything = torch.autograd.grad(whole.fused(), [whole[name] for name in wanted], [grad_y, grad_logit])
    some = torch.autograd.grad(part.fused(), [part[name] for name in wanted], [grad_y, grad_logit])
    for got, expected in zip(some, everything, strict=True):
        assert torch.equal(got, expected)


@GRANULARITIES
@pytest.mark.parametrize("which", [0, 1], ids=["y alone", "gate_logit alone"])
def test_one_output_alone(on_host, new_case, granularity, which):
    case = new_case((2, 9), 24, 16, 3, 8, granularity=granularity)
    names = ["x", "lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2"]
    cotangent = cotangents(case)[which]
    results = []
    for backend in ("cuda_on_host", "reference"):
        leaves = case.leaves()
        with ops.use_backend(backend):
            out = leaves.fused()[which]
            results.append(torch.autograd.grad(out, [leaves[n] for n in names], cotangent, allow_unused=True))
    for name, got, expected in zip(names, *results, strict=True):
        torch.testing.assert_close(got, expected, msg=name)


@GRANULARITIES
def test_launches(on_host, new_case, granularity):
    case = new_case((2, 9), 24, 16, 3, 8, granularity=granularity)
    forward, backward = list(FORWARD), list(BACKWARD)
    if granularity == "sample":
        forward.insert(2, "lord.sample_mean")
        backward.insert(1, "lord.sample_backward")
    for wanted, expected in (((), backward), (("x",), [k for k in backward if k not in ("lord.outer", "lord.reduce")])):
        leaves = case.leaves(*wanted)
        y, logit = leaves.fused()
        assert on_host.take_launched() == forward
        (y.sum() + logit.sum()).backward()
        assert on_host.take_launched() == expected


@GRANULARITIES
@pytest.mark.parametrize("lead", [(0,), (2, 0), (0, 3)], ids=str)
def test_no_rows(on_host, new_case, lead, granularity):
    if granularity == "sample" and len(lead) == 1:
        lead = (0, 0)
    case = new_case(lead, 24, 16, 3, 8, granularity=granularity).leaves()
    y, logit = case.fused()
    assert y.shape == (*lead, 16) and logit.shape == (lead[:1] if granularity == "sample" else lead)
    assert (logit == 0).all()
    for t, grad in zip(case.tensors, torch.autograd.grad(y.sum() + logit.sum(), case.tensors), strict=True):
        assert grad.shape == t.shape and (grad == 0).all()


@DTYPES
def test_a_nan_stays_in_its_row(on_host, new_case, dtype):
    case = new_case((20,), 24, 16, 3, 8, dtype=dtype)
    clean = case.fused()
    x = case["x"].clone()
    x[7, 3] = float("nan")
    for got, expected in zip(case.with_x(x).fused(), clean, strict=True):
        assert got[7].isnan().all()
        assert torch.equal(torch.cat([got[:7], got[8:]]), torch.cat([expected[:7], expected[8:]]))


@GRANULARITIES
@pytest.mark.parametrize("sizes", [(40, 320, 96, 4, 16), (5, 1100, 40, 17, 70)], ids=str)
def test_no_thread_reads_what_another_has_not_yet_written(on_host, new_case, outcome, granularity, sizes):
    tokens, *rest = sizes
    case = new_case((2, tokens), *rest, dtype=torch.bfloat16, granularity=granularity)
    grads = cotangents(case)
    expected = outcome(case, "fused", *grads)
    for order in (1, 2):
        on_host.set_order(order)
        for name, t in outcome(case, "fused", *grads).items():
            assert torch.equal(t, expected[name]), name


def test_the_fold_costs_no_digits(on_host, new_case, case_of):
    """A sample's mean logit: the rounding of P = s W1 B is shared by all tokens, so the mean does not reduce it."""
    own = eager = 0.0
    for seed in range(8):
        case = new_case((2, 16), 64, 1280, 4, 16, granularity="sample", seed=seed)
        # Without biases nothing but the fold's own result is left in the logit.
        case = case_of([torch.zeros_like(t) if i in (7, 9) else t for i, t in enumerate(case.tensors)], case)
        exact = case.to(torch.float64).eager()[1]
        own, eager = own + error(case.fused()[1], exact), eager + error(case.eager()[1], exact)
    assert own**0.5 <= 2 * eager**0.5


def alternating(*shape):
    """Numbers of order one on top of +-4096, which cancel in sums: what is left has lost 12 bits if summed in fp32."""
    sign = 1.0 - 2.0 * (torch.arange(shape[0]) % 2)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return 4096.0 * sign.reshape(-1, *[1] * (len(shape) - 1)) + noise


def test_the_fold_is_summed_in_double(on_host, new_case, case_of):
    case = new_case((6,), 16, 258, 3, 4)
    replaced = {"lord_B": alternating(258, 3), "w1": torch.ones(4, 258), "b1": torch.zeros(4)}
    names = ("x", "weight", "bias", "lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")
    case = case_of([replaced.get(name, t) for name, t in zip(names, case.tensors, strict=True)], case)
    exact = case.to(torch.float64).eager()[1]
    assert error(case.fused()[1], exact) ** 0.5 <= 1e-6 * error(exact, 0) ** 0.5


def test_the_gradient_of_the_fold_is_summed_in_double(on_host, new_case, case_of):
    """All rows alike, the gate in its linear part: dP is the sum of grad_logit times numbers that all rows share."""
    case = new_case((500,), 16, 8, 3, 4, activation="relu")
    x, weight, bias, a, b, b_adv, w1, b1, _, b2 = case.tensors
    powers = torch.tensor([1.0, -2.0, 0.5, 4.0])  # exact factors
    case = case_of([x[:1].expand(500, 16), weight, bias, a, b, b_adv, w1, b1.abs() + 100, powers, b2], case)
    results = []
    for which, dtype in (("fused", torch.float32), ("eager", torch.float64)):
        leaves = case.to(dtype).leaves("w1")
        results.append(torch.autograd.grad(getattr(leaves, which)()[1], leaves["w1"], alternating(500).to(dtype))[0])
    assert error(*results) ** 0.5 <= 1e-6 * error(results[1], 0) ** 0.5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dtype": torch.float64}, "float32, bfloat16 and float16 only, this is torch.float64"),
        ({"r": 65}, "ranks up to 64, this is 65"),
        ({"trainable": torch.bfloat16}, "parameters in float32 only, lord_A is torch.bfloat16"),
    ],
    ids=str,
)
def test_refusals(on_host, make_case, change, expected):
    case = make_case(**{"dtype": torch.float32, "trainable": torch.float32, **change})
    with pytest.raises(ValueError, match=expected):
        case.fused()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("sizes", (6, 4, 4, 65, 2, 0), "rank is 65, expected 1 to 64"),
        ("sizes", (6, 4, 4, 4, 2, 4), "batch is 4, expected 0, or a divisor of m"),
        ("sizes", (-1, 4, 4, 4, 2, 0), "m is -1, expected 0 or more"),
        ("sizes", (2**40, 2**30, 4, 4, 2, 0), "m is .*, expected a number of rows"),
        ("activation", "tanh", "activation is 'tanh', expected 'relu', 'silu' or 'gelu'"),
        ("dtype", "float64", "dtype is 'float64'"),
        ("x", 0, "x is a null pointer, expected"),
        ("y", 4097, "y is 4097, expected an address aligned to the dtype"),
        ("parameters", [4096, 4096, 4096, 4096, 4096, 4096, 0], "b2 is a null pointer, expected"),
        ("workspace_bytes", 3, "workspace_bytes is 3, expected .* or more"),
        ("workspace", 8, "workspace is 8, expected an address on a 16-byte boundary"),
    ],
)
def test_bad_arguments(on_host, name, value, expected):
    arguments = {
        **{"x": 4096, "y": 4096, "u": 4096, "gate_logit": 4096, "parameters": [4096] * 7, "sizes": (6, 4, 4, 4, 2, 0)},
        **{"dtype": "float32", "activation": "relu", "scaling": 1.0, "accumulate": True, "workspace": 4096},
        **{"workspace_bytes": 1000, "device": 0, "stream": 0},
    }
    with pytest.raises(ValueError, match=f"^{expected}"):
        on_host.cuda_lord_forward(**{**arguments, name: value})
