"""The l2 step: against float64 with a derived bound, and bit for bit between threads, batches and instruction sets."""

import math

import pytest
import torch

SIZES = [1, 7, 15, 17, 1000, 4096, 4097, 9000]
UNIT = 2.0**-24  # fp32's unit roundoff
UNIT_OF = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # of the rounding to a 16-bit dtype
BUDGETS = {"inside": (0.01, 10.0), "on the ball": (0.2, 0.3), "one pixel": (2 / 255, 8 / 255)}


def definition(x, x0, g, *, step_size, eps, low=-1.0, high=1.0, direction=1):
    """Eq. 6 with an l2 ball in float64, and a bound on the error of the same in fp32 with double norms.

    e: what each element of the perturbation d loses, two roundings in the step and one in each of the two additions.
    The norm loses at most ||e||; the factor, its product and the last addition are rounded once each, then the result
    to its dtype.
    """
    x, x0, g = x.double(), x0.double(), g.double()
    step_size, eps, low, high = torch.tensor([step_size, eps, low, high]).double()  # as fp32, as the kernel has them
    norm = torch.linalg.vector_norm(g, dim=1, keepdim=True)
    moves = (norm > 0) & norm.isfinite()
    step = torch.where(moves, direction * step_size * g / norm, torch.zeros_like(g))
    d = x + step - x0
    dist = torch.linalg.vector_norm(d, dim=1, keepdim=True)
    shrink = torch.where(dist > eps, eps / dist, torch.ones_like(dist))
    free = x0 + d * shrink

    e = UNIT * (2 * step.abs() + (x + step).abs() + d.abs())
    e_norm = torch.linalg.vector_norm(e, dim=1, keepdim=True) / dist.clamp(min=1e-300)
    bound = shrink * (e + d.abs() * (e_norm + 2 * UNIT)) + UNIT * free.abs()
    return torch.clamp(free, low, high), bound


def assert_close_to(got, expected, bound):
    # Second-order terms, and the spacing of the smallest subnormals.
    bound = 1.01 * (bound + UNIT_OF[got.dtype] * (expected.abs() + bound)) + 2.0**-24 * (got.dtype == torch.float16)
    bound = bound + 2.0**-126
    excess = ((got.double() - expected).abs() / bound).max()
    assert excess <= 1.0, f"an error of {excess:.3g} times its bound"


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("budget", list(BUDGETS))
@pytest.mark.parametrize("numel", SIZES)
def test_within_the_bound_of_float64(pgd_step, step_inputs, isa, dtype, numel, budget, direction):
    x, x0, g = step_inputs(3, numel, dtype, seed=numel)
    g[:, 0] = 1e-3  # never a zero gradient, whatever numel
    step_size, eps = BUDGETS[budget]
    options = {"step_size": step_size, "eps": eps, "direction": direction}
    assert_close_to(pgd_step(x, x0, g, "l2", **options), *definition(x, x0, g, **options))


def test_projects_each_sample_alone(pgd_step, isa):
    """A far sample lands on its ball, a near one is left inside."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.zeros(2, 500)
    x = torch.randn(2, 500, generator=generator) * torch.tensor([[0.1], [1e-4]])
    out = pgd_step(x, x0, torch.randn(2, 500, generator=generator), "l2", step_size=0.01, eps=0.5)
    dist = torch.linalg.vector_norm(out.double(), dim=1)
    # Around zero nothing but the factor and its product is rounded.
    assert abs(dist[0] - 0.5) <= 0.5 * 2.01 * UNIT and 0.005 < dist[1] < 0.02


@pytest.mark.parametrize("size", [1e-44, 1e-30, 1.0, 1e30, 3e38])
def test_scale_of_the_gradient_does_not_matter(pgd_step, step_inputs, isa, size):
    x, x0, g = step_inputs(2, 1000, torch.float32)
    g = torch.sign(g) * size
    options = {"step_size": 0.5, "eps": 0.6}
    assert_close_to(pgd_step(x, x0, g, "l2", **options), *definition(x, x0, g, **options))


@pytest.mark.parametrize("poison", [0.0, math.nan, math.inf, -math.inf])
def test_gradients_without_a_direction_move_nothing(pgd_step, step_inputs, isa, dtype, poison):
    """Zero, or not finite in one element: the sample is projected all the same, its neighbour steps as ever."""
    x, x0, g = step_inputs(2, 1000, dtype)
    options = {"step_size": 0.2, "eps": 0.3}
    neighbour = pgd_step(x[1:], x0[1:], g[1:], "l2", **options)
    g[0] = 0.0 if poison == 0.0 else g[0]
    g[0, 17] = poison
    out = pgd_step(x, x0, g, "l2", **options)
    expected, bound = definition(x, x0, torch.zeros_like(g), **options)
    assert_close_to(out[:1], expected[:1], bound[:1])
    assert torch.equal(out[1:], neighbour)


def test_a_nan_in_an_image_is_not_hidden(pgd_step, step_inputs, isa, dtype):
    x, x0, g = step_inputs(2, 100, dtype)
    x[0, 3] = math.nan
    out = pgd_step(x, x0, g, "l2", step_size=0.1, eps=0.2)
    assert out[0, 3].isnan() and out[1].isfinite().all()


@pytest.mark.parametrize("shape", [(1, 70000), (2, 20000), (5, 9001)])
def test_bits_do_not_depend_on_threads(pgd_step, step_inputs, assert_same_bits, isa, dtype, shape):
    inputs = step_inputs(*shape, dtype)
    options = {"step_size": 0.3, "eps": 0.5}
    one = pgd_step(*inputs, "l2", **options)
    for threads in (2, 3, 4, 7):
        assert_same_bits(pgd_step(*inputs, "l2", threads=threads, **options), one)


def test_bits_do_not_depend_on_the_batch(pgd_step, step_inputs, assert_same_bits, isa, dtype):
    inputs = step_inputs(5, 9001, dtype)
    options = {"step_size": 0.3, "eps": 0.5}
    together = pgd_step(*inputs, "l2", threads=2, **options)
    for b in range(5):
        alone = pgd_step(*(t[b : b + 1].clone() for t in inputs), "l2", **options)
        assert_same_bits(together[b : b + 1], alone)


@pytest.mark.parametrize("numel", SIZES)
def test_bits_do_not_depend_on_the_instruction_set(
    native, pgd_step, step_inputs, monkeypatch, assert_same_bits, dtype, numel
):
    inputs = step_inputs(2, numel, dtype, seed=numel)
    results = []
    for name in native.available_isas():
        monkeypatch.setenv("LORDFAST_CPU_ISA", name)
        results.append(pgd_step(*inputs, "l2", step_size=0.3, eps=0.5))
    for other in results[1:]:
        assert_same_bits(other, results[0])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("numel", [1, 17, 20000])
def test_out_may_be_x_adv_and_guards_stay(pgd_step, step_inputs, assert_same_bits, isa, dtype, numel, threads):
    x, x0, g = step_inputs(2, numel, dtype)
    options = {"step_size": 0.2, "eps": 0.3, "threads": threads}
    expected = pgd_step(x, x0, g, "l2", **options)
    memory = torch.full((2 * numel + 128,), -77.0, dtype=dtype)
    inside = memory[65 : 65 + 2 * numel].view(2, numel).copy_(x)
    pgd_step(inside, x0, g, "l2", out=inside, **options)
    assert_same_bits(inside, expected)
    assert (memory[:65] == -77.0).all() and (memory[65 + 2 * numel :] == -77.0).all()


@pytest.mark.parametrize("shape", [(0, 10), (3, 0), (0, 0)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_nothing_to_do(native, isa, dtype, shape, norm):
    """An empty tensor's address is null, and no error; nothing else is touched."""
    name = str(dtype).removeprefix("torch.")
    assert native.pgd_step(0, 0, 0, 0, *shape, name, norm, 0.1, 0.1, -1.0, 1.0, 1, 2) is None
