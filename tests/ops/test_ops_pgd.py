"""pgd_step against the formula in numpy, its guarantees, and the native backend against the reference, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lordfast.ops import _native, pgd_step, use_backend

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
needs_native = pytest.mark.skipif(not _native.available, reason=f"no native extension: {_native.reason}")


def images(shape=(3, 2, 5, 7), dtype=torch.float32, seed=0, spread=0.1):
    """An original in [-1, 1], an iterate near it and a gradient with zeros in it."""
    g = torch.Generator().manual_seed(seed)
    x0 = torch.rand(shape, generator=g) * 2 - 1
    x = (x0 + spread * (torch.rand(shape, generator=g) * 2 - 1)).clamp(-1, 1)
    grad = torch.randn(shape, generator=g) * (torch.rand(shape, generator=g) > 0.2)
    return x.to(dtype), x0.to(dtype), grad.to(dtype)


def in_numpy(x, x0, grad, *, step_size, eps, low=-1.0, high=1.0, norm="linf", direction=1):
    dtype = x.dtype
    wide = np.float64 if norm == "l2" or dtype == torch.float64 else np.float32
    x, x0, grad = (t.to(torch.float64).numpy().astype(wide) for t in (x, x0, grad))
    if norm == "linf":
        moved = x + wide(direction * step_size) * np.nan_to_num(np.sign(grad))
        result = np.clip(np.clip(moved, x0 - wide(eps), x0 + wide(eps)), wide(low), wide(high))
    else:
        rows = []
        for xi, x0i, gi in zip(x, x0, grad, strict=True):
            length = np.sqrt((gi * gi).sum())
            d = xi - x0i + (direction * step_size * gi / length if 0 < length < np.inf else 0)
            far = np.sqrt((d * d).sum())
            rows.append(np.clip(x0i + (d * (eps / far) if far > eps else d), low, high))
        result = np.stack(rows) if rows else x
    return torch.from_numpy(result).to(dtype)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("step_size", [0.0, 0.03, 0.5])
def test_linf_is_the_formula(dtype, direction, step_size):
    options = {"step_size": step_size, "eps": 0.1, "low": -0.75, "high": 0.5, "direction": direction}
    with use_backend("reference"):
        got = pgd_step(*images(dtype=dtype), **options)
    assert torch.equal(got, in_numpy(*images(dtype=dtype), **options))
    if step_size:
        assert not torch.equal(got, images(dtype=dtype)[0])


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("reference", torch.float64)]
    + [
        pytest.param(b, d, marks=needs_native if b == "native" else ()) for b in ("reference", "native") for d in DTYPES
    ],
    ids=str,
)
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("eps", [0.0, 0.4, 5.0])
def test_l2_is_the_formula(backend, dtype, direction, eps):
    options = {"step_size": 0.3, "eps": eps, "norm": "l2", "direction": direction}
    with use_backend(backend):
        got = pgd_step(*images(dtype=dtype), **options)
    expected = in_numpy(*images(dtype=dtype), **options)
    unit = torch.finfo(dtype).eps  # results lie in [-1, 1]
    assert (got.double() - expected.double()).abs().max() <= (2 * unit if dtype != torch.float64 else 8 * unit)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([0.0, 0.05, 3.0]),
    step_size=st.floats(0, 2),
    eps=st.floats(0, 2),
    bounds=st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (-0.5, 0.25)]),
    norm=st.sampled_from(["linf", "l2"]),
    direction=st.sampled_from([1, -1]),
    dtype=st.sampled_from([*DTYPES, torch.float64]),
    backend=st.sampled_from([None, "reference"]),
)
def test_always_in_the_range_and_in_the_ball(seed, spread, step_size, eps, bounds, norm, direction, dtype, backend):
    low, high = bounds
    x, x0, grad = images((2, 3, 4), dtype, seed, spread)
    x0 = x0.clamp(low, high)  # as an original image is; then the range's clamp can't leave the ball
    with use_backend(backend):
        got = pgd_step(
            x, x0, grad, step_size=step_size, eps=eps, low=low, high=high, norm=norm, direction=direction
        ).double()
    assert low <= got.min() and got.max() <= high
    d = (got - x0.double()).flatten(1)
    # A value of at most 1 (and eps of at most 2) is rounded to the dtype once, after steps in float32.
    slack = torch.finfo(dtype).eps + 4 * torch.finfo(torch.float32 if dtype != torch.float64 else dtype).eps
    if norm == "linf":
        assert d.abs().max() <= eps + slack
    else:
        assert d.norm(dim=1).max() <= eps + slack * d.shape[1] ** 0.5


def test_a_step_ascends_or_descends():
    x, x0, grad = images(spread=0.0)
    for norm in ("linf", "l2"):
        for direction in (1, -1):
            moved = pgd_step(x, x0, grad, step_size=0.01, eps=1.0, norm=norm, direction=direction) - x
            assert direction * (moved * grad).sum() > 0


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_that_are_no_numbers(backend, dtype):
    x, x0, grad = images(dtype=dtype)
    grad[0, 0, 0, :4] = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0])
    with use_backend(backend):
        linf = pgd_step(x, x0, grad, step_size=0.05, eps=1.0)
        l2 = pgd_step(x, x0, grad, step_size=0.05, eps=100.0, norm="l2")
        still = pgd_step(x, x0, torch.zeros_like(grad), step_size=0.05, eps=100.0, norm="l2")
    assert torch.equal(linf, in_numpy(x, x0, grad, step_size=0.05, eps=1.0))
    assert torch.equal(linf[0, 0, 0, [0, 3]], x[0, 0, 0, [0, 3]])
    assert not torch.equal(linf[0, 0, 0, 1], x[0, 0, 0, 1])
    torch.testing.assert_close(l2[0], x[0], rtol=0, atol=2 * torch.finfo(dtype).eps)
    assert (l2[1:] != x[1:]).any(dim=(1, 2, 3)).all() or dtype == torch.bfloat16
    torch.testing.assert_close(still, x, rtol=0, atol=2 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_l2_steps_however_small_or_large_the_gradient_is(backend, scale):
    x, x0, grad = images()
    options = {"step_size": 0.3, "eps": 0.4, "norm": "l2"}
    with use_backend(backend):
        scaled, plain = pgd_step(x, x0, grad * scale, **options), pgd_step(x, x0, grad, **options)
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-6)
    assert (plain - x).abs().max() > 1e-3


def test_samples_do_not_see_each_other():
    x, x0, grad = images()
    for norm in ("linf", "l2"):
        options = {"step_size": 0.3, "eps": 0.4, "norm": norm}
        together = pgd_step(x, x0, grad, **options)
        alone = torch.cat([pgd_step(*(t[i : i + 1] for t in (x, x0, grad)), **options) for i in range(len(x))])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-7)


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("target", ["fresh", "x_adv", "x_orig", "grad", "strided"])
def test_out(backend, norm, target):
    options = {"step_size": 0.03, "eps": 0.1, "norm": norm}
    x, x0, grad = images()
    with use_backend(backend):
        expected = pgd_step(x, x0, grad, **options)
    nan = torch.full(x.shape, float("nan"))
    out = {"fresh": nan, "x_adv": x, "x_orig": x0, "grad": grad, "strided": nan.mT.contiguous().mT}[target]
    inputs = [t.clone() for t in (x, x0, grad)]
    version = out._version
    direct = target in ("fresh", "x_adv")  # what the native kernel writes itself; the rest falls back
    with use_backend(backend if direct else None):
        result = pgd_step(x, x0, grad, out=out, **options)
    assert result is out
    torch.testing.assert_close(out, expected, rtol=0, atol=0 if direct or norm == "linf" else 1e-6)
    assert out._version > version
    for t, before in zip((x, x0, grad), inputs, strict=True):
        assert t is out or torch.equal(t, before)


def test_out_that_overlaps_at_another_offset():
    x, x0, grad = images((2, 32))
    memory = torch.empty(80)
    shifted, out = memory[:64].view(2, 32), memory[5:69].view(2, 32)
    expected = pgd_step(x, x0, grad, step_size=0.03, eps=0.1)
    pgd_step(shifted.copy_(x), x0, grad, step_size=0.03, eps=0.1, out=out)
    assert torch.equal(out, expected)


def test_the_result_is_detached():
    x, x0, grad = images()
    x.requires_grad_()
    result = pgd_step(x, x0, grad, step_size=0.1, eps=0.1)
    assert not result.requires_grad and result.grad_fn is None
    saved = (x * 2).square()
    pgd_step(x, x0, grad, step_size=0.1, eps=0.1, out=x)
    assert x.requires_grad and x.is_leaf
    product = x.sin()
    pgd_step(x, x0, grad, step_size=0.1, eps=0.1, out=x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (product + saved).sum().backward()


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_native)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_strided_and_empty_inputs(backend, norm):
    options = {"step_size": 0.03, "eps": 0.1, "norm": norm}
    x, x0, grad = images()
    with use_backend(backend):
        expected = pgd_step(x, x0, grad, **options)
        last = [t.to(memory_format=torch.channels_last) for t in (x, x0, grad)]
        got = pgd_step(*last, **options)
        assert not last[0].is_contiguous() and got.is_contiguous()
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-7)
        for shape in ((0, 3, 4), (2, 0)):
            assert pgd_step(*[torch.zeros(shape)] * 3, **options).shape == shape
        flat = pgd_step(x[0, 0, 0], x0[0, 0, 0], grad[0, 0, 0], **options)  # (batch,): one number a sample
        torch.testing.assert_close(flat, in_numpy(x[0, 0, 0], x0[0, 0, 0], grad[0, 0, 0], **options))


@needs_native
@settings(max_examples=80, deadline=None)
@given(
    shape=st.one_of(st.tuples(st.integers(1, 3), st.integers(1, 70)), st.just((2, 3, 33, 31))),
    dtype=st.sampled_from(DTYPES),
    step_size=st.floats(0, 1),
    eps=st.floats(0, 1),
    direction=st.sampled_from([1, -1]),
    seed=st.integers(0, 1000),
    odd=st.sampled_from([None, float("nan"), float("inf"), -0.0]),
)
def test_native_is_the_reference_to_the_bit(shape, dtype, step_size, eps, direction, seed, odd):
    x, x0, grad = images(shape, dtype, seed)
    if odd is not None:
        grad.flatten()[:: max(1, grad.numel() // 5)] = odd
    options = {"step_size": step_size, "eps": eps, "direction": direction}
    results = []
    for backend in ("native", "reference"):
        with use_backend(backend):
            results.append(pgd_step(x, x0, grad, **options))
    assert torch.equal(results[0].view(torch.uint8), results[1].view(torch.uint8))
