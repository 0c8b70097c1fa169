"""The l-infinity step is bit-equal to its definition in torch, for every dtype and instruction set."""

import itertools
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SIZES = [0, 1, 7, 15, 16, 17, 1000, 4097]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-7, -1e-7, 1e-40, 6e-8, 65504.0, math.inf, -math.inf, math.nan]

HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])


def definition(x, x0, g, *, step_size=2 / 255, eps=8 / 255, low=-1.0, high=1.0, direction=1):
    """Eq. 6 of the LoRD paper in fp32, rounded once."""
    x32, x032, g32 = x.float(), x0.float(), g.float()
    sign = (g32 > 0).float() - (g32 < 0).float()
    inside = torch.clamp(x32 + (direction * step_size) * sign, x032 - eps, x032 + eps)
    return torch.clamp(inside, low, high).to(x.dtype)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("numel", SIZES)
def test_bit_equal_to_the_definition(pgd_step, step_inputs, assert_same_bits, isa, dtype, numel, direction):
    for batch in (1, 3):
        x, x0, g = step_inputs(batch, numel, dtype, seed=numel)
        assert_same_bits(pgd_step(x, x0, g, direction=direction), definition(x, x0, g, direction=direction))


def test_both_clamps_bind(pgd_step, step_inputs, isa):
    """Else the comparison above would also pass for a step without a projection."""
    x, x0, g = step_inputs(2, 1000, torch.float32)
    free = pgd_step(x, x0, g, eps=math.inf, low=-math.inf, high=math.inf)
    ball = pgd_step(x, x0, g, low=-math.inf, high=math.inf)
    assert ((free != ball).float().mean() > 0.1) and ((ball != pgd_step(x, x0, g)).float().mean() > 0.005)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-math.inf, 0.25), (0.1, 0.1)])
@pytest.mark.parametrize(("step_size", "eps"), [(0.0, 0.1), (1 / 255, 0.0), (3.0, 1e-3), (1e-3, math.inf)])
def test_budgets_and_ranges(pgd_step, step_inputs, assert_same_bits, isa, dtype, step_size, eps, bounds):
    x, x0, g = step_inputs(2, 33, dtype)
    options = {"step_size": step_size, "eps": eps, "low": bounds[0], "high": bounds[1]}
    assert_same_bits(pgd_step(x, x0, g, **options), definition(x, x0, g, **options))


@pytest.mark.parametrize("offsets", [(1, 0, 0, 0), (0, 1, 0, 3), (1, 2, 3, 5)])
def test_unaligned_arrays_and_guards(pgd_step, step_inputs, assert_same_bits, isa, dtype, offsets):
    """Arrays that start anywhere in memory; nothing is written outside out."""
    guard = -77.0
    for numel in SIZES:
        inputs = step_inputs(1, numel, dtype, seed=numel)
        placed = []
        for tensor, offset in zip(inputs, offsets, strict=False):
            memory = torch.full((numel + 64,), guard, dtype=dtype)
            placed.append(memory[offset : offset + numel].copy_(tensor[0])[None])
        memory = torch.full((numel + 128,), guard, dtype=dtype)
        start = 64 + offsets[3]
        out = memory[start : start + numel].fill_(math.nan)[None]
        pgd_step(*placed, out=out)
        assert_same_bits(out, definition(*inputs))
        assert (memory[:start] == guard).all() and (memory[start + numel :] == guard).all()


@pytest.mark.parametrize("numel", SIZES)
def test_out_may_be_x_adv(pgd_step, step_inputs, assert_same_bits, isa, dtype, numel):
    x, x0, g = step_inputs(2, numel, dtype)
    expected = definition(x, x0, g)
    assert_same_bits(pgd_step(x, x0, g, out=x), expected)


def test_inputs_stay_as_they_are(pgd_step, step_inputs, assert_same_bits, isa, dtype):
    inputs = step_inputs(2, 1000, dtype)
    before = [t.clone() for t in inputs]
    pgd_step(*inputs)
    for now, then in zip(inputs, before, strict=True):
        assert_same_bits(now, then)


def test_special_values(pgd_step, isa, dtype):
    """NaN, infinities, signed zeros and subnormals in every combination of the three inputs."""
    grid = torch.tensor(list(itertools.product(SPECIAL, repeat=3)), dtype=dtype)
    x, x0, g = (grid[:, k].clone()[None] for k in range(3))
    for direction in (1, -1):
        got = pgd_step(x, x0, g, direction=direction)
        expected = definition(x, x0, g, direction=direction)
        # As numbers: where -0 meets a bound of +0 torch gives one sign in its vector loop and the other in its tail.
        assert torch.equal(got.isnan(), expected.isnan())
        assert torch.equal(got.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))


def test_nan_gradient_moves_nothing(pgd_step, isa, dtype):
    x = torch.tensor([[0.25, -0.5, 0.0, 0.75, -0.125]], dtype=dtype)
    g = torch.full_like(x, math.nan)
    assert torch.equal(pgd_step(x, x, g), x)


def test_signs_of_zeros_agree_between_instruction_sets(native, pgd_step, monkeypatch, assert_same_bits, dtype):
    grid = torch.tensor(list(itertools.product(SPECIAL, repeat=3)), dtype=dtype)
    x, x0, g = (grid[:, k].clone()[None] for k in range(3))
    results = []
    for name in native.available_isas():
        monkeypatch.setenv("LORDFAST_CPU_ISA", name)
        results.append(pgd_step(x, x0, g, eps=0.5, low=0.0, direction=-1))
    for other in results[1:]:
        assert_same_bits(other, results[0])


@HALF
def test_every_16_bit_value_is_read_and_written_back(pgd_step, assert_same_bits, isa, dtype):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)[None]
    # direction -1: what a zero gradient adds is then -0, which leaves a -0 as it is.
    out = pgd_step(x, x, torch.full_like(x, math.nan), eps=1.0, low=-math.inf, high=math.inf, direction=-1)
    assert_same_bits(out, x)


@HALF
@pytest.mark.parametrize("exponent", [-149, -133, -25, -24, -15, -9, -1, 4])
def test_rounding_of_every_16_bit_value_moved(pgd_step, assert_same_bits, isa, dtype, exponent):
    """All values plus one step: ties, carries into the exponent, subnormals and overflow among the results."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)[None]
    for step_size in (2.0**exponent, 1.5 * 2.0**exponent, 3e38):
        options = {"step_size": step_size, "eps": 3e38, "low": -math.inf, "high": math.inf}
        g = torch.ones_like(x)
        assert_same_bits(pgd_step(x, x, g, **options), definition(x, x, g, **options))


def test_bits_do_not_depend_on_threads(pgd_step, step_inputs, assert_same_bits, isa, dtype):
    x, x0, g = step_inputs(3, 13001, dtype)
    expected = definition(x, x0, g)
    for threads in (1, 2, 3, 8):
        assert_same_bits(pgd_step(x, x0, g, threads=threads), expected)


floats = st.floats(width=32, allow_subnormal=False)
rows = st.lists(st.tuples(floats, floats, floats), min_size=1, max_size=40)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=rows,
    step_size=st.floats(0, 1e6, width=32),
    eps=st.floats(0, 1e6, width=32),
    direction=st.sampled_from([1, -1]),
)
def test_any_numbers(pgd_step, isa, dtype, rows, step_size, eps, direction):
    columns = torch.tensor(rows, dtype=torch.float64).to(dtype)
    x, x0, g = (columns[:, k].clone()[None] for k in range(3))
    options = {"step_size": step_size, "eps": eps, "direction": direction}
    got, expected = pgd_step(x, x0, g, **options), definition(x, x0, g, **options)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(nan=0.0), expected.nan_to_num(nan=0.0))
