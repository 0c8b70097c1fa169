"""The CUDA step has the bits of the CPU's, for both norms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [1, 3, 7, 8, 17, 1000, 4095, 4097, 9001]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-7, 1e-40, 6e-8, 65504.0, math.inf, -math.inf, math.nan]
OPTIONS = {"step_size": 0.03, "eps": 0.05, "low": -1.0, "high": 1.0, "direction": 1}


@pytest.fixture
def on_cuda(on_host, dtype_names):
    """on_cuda(x, x0, g, norm, out=None, **options) on (batch, numel) tensors, through the real binding."""

    def call(x, x0, g, norm="linf", out=None, **options):
        out = torch.full_like(x, math.nan) if out is None else out
        batch, numel = x.shape
        numbers = {**OPTIONS, **options}
        size = on_host.cuda_pgd_step_workspace(norm, batch, numel)
        workspace = torch.full((size + 16,), 255, dtype=torch.uint8)
        start = -workspace.data_ptr() % 16
        arrays = {"x_adv": x, "x_orig": x0, "grad": g, "out": out}
        on_host.cuda_pgd_step(
            **{name: t.data_ptr() for name, t in arrays.items()},
            **{"batch": batch, "numel": numel, "dtype": dtype_names[x.dtype], "norm": norm, **numbers},
            **{"workspace": workspace.data_ptr() + start, "workspace_bytes": size, "device": 0, "stream": 0},
        )
        assert (workspace[:start] == 255).all() and (workspace[start + size :] == 255).all()
        return out

    return call


@pytest.fixture
def on_cpu(pgd_step):
    return lambda *tensors, **options: pgd_step(*tensors, **{**OPTIONS, **options})


@pytest.fixture(scope="session")
def dtype_names():
    return {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("numel", SIZES)
def test_the_bits_of_the_cpu(on_cuda, on_cpu, step_inputs, assert_same_bits, dtype, numel, norm):
    inputs = step_inputs(3, numel, dtype, seed=numel)
    for direction, step_size in ((1, 0.03), (-1, 0.3)):
        options = {"direction": direction, "step_size": step_size}
        assert_same_bits(on_cuda(*inputs, norm=norm, **options), on_cpu(*inputs, norm=norm, **options))


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("offsets", [(1, 1, 1, 1), (3, 3, 3, 3), (1, 0, 0, 0), (0, 1, 0, 3), (1, 2, 3, 5)], ids=str)
def test_arrays_that_start_anywhere(on_cuda, on_cpu, step_inputs, assert_same_bits, dtype, norm, offsets):
    for numel in (1, 5, 40, 4100):
        inputs = step_inputs(2, numel, dtype, seed=numel)
        placed = []
        for tensor, offset in zip(inputs, offsets, strict=False):
            memory = torch.full((2 * numel + 64,), math.nan, dtype=dtype)
            placed.append(memory[offset : offset + 2 * numel].view(2, numel).copy_(tensor))
        memory = torch.full((2 * numel + 128,), -77.0, dtype=dtype)
        start = 64 + offsets[3]
        out = memory[start : start + 2 * numel].view(2, numel).fill_(math.nan)
        on_cuda(*placed, norm=norm, out=out)
        assert_same_bits(out, on_cpu(*inputs, norm=norm))
        assert (memory[:start] == -77.0).all() and (memory[start + 2 * numel :] == -77.0).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("numel", [1, 1000, 9001])
def test_out_may_be_x_adv(on_cuda, on_cpu, step_inputs, assert_same_bits, dtype, norm, numel):
    x, x0, g = step_inputs(2, numel, dtype)
    expected = on_cpu(x, x0, g, norm=norm)
    assert_same_bits(on_cuda(x, x0, g, norm=norm, out=x), expected)


@pytest.mark.parametrize("direction", [1, -1])
def test_special_values(on_cuda, on_cpu, assert_same_bits, dtype, direction):
    grid = torch.tensor(list(itertools.product(SPECIAL, repeat=3)), dtype=dtype)
    inputs = tuple(grid[:, k].clone()[None] for k in range(3))
    options = {"direction": direction, "low": 0.0}
    assert_same_bits(on_cuda(*inputs, **options), on_cpu(*inputs, **options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("step_size", [2.0**-149, 2.0**-25, 1.5 * 2.0**-9, 3e38])
def test_every_16_bit_value_moved(on_cuda, on_cpu, assert_same_bits, dtype, step_size):
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)[None]
    options = {"step_size": step_size, "eps": 3e38, "low": -math.inf, "high": math.inf}
    assert_same_bits(on_cuda(x, x, torch.ones_like(x), **options), on_cpu(x, x, torch.ones_like(x), **options))


@pytest.mark.parametrize("poison", [0.0, math.nan, math.inf, 1e-30, 1e-44])
def test_l2_gradients_of_every_size(on_cuda, on_cpu, step_inputs, assert_same_bits, poison):
    x, x0, g = step_inputs(3, 1000, torch.float32)
    g[1] = poison if poison == 0.0 or poison < 1e-20 else g[1]
    g[1, 17] = poison
    assert_same_bits(on_cuda(x, x0, g, norm="l2"), on_cpu(x, x0, g, norm="l2"))


def test_a_nan_in_an_image_is_not_hidden(on_cuda, step_inputs, dtype):
    x, x0, g = step_inputs(2, 5000, dtype)
    x[0, 4999] = math.nan
    out = on_cuda(x, x0, g, norm="l2")
    assert out[0].isnan().all() and out[1].isfinite().all()


def test_more_than_one_wave_of_blocks(on_cuda, on_cpu, step_inputs, assert_same_bits):
    inputs = step_inputs(1, 2048 * 256 * 4 + 4003, torch.float32)
    assert_same_bits(on_cuda(*inputs), on_cpu(*inputs))


def test_more_samples_than_blocks(on_cuda, on_cpu, step_inputs, assert_same_bits):
    inputs = step_inputs(2048 + 5, 3, torch.float32)
    assert_same_bits(on_cuda(*inputs, norm="l2"), on_cpu(*inputs, norm="l2"))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_no_thread_reads_what_another_has_not_yet_written(on_host, on_cuda, step_inputs, assert_same_bits, norm):
    inputs = step_inputs(2, 300 * 4096 + 5 if norm == "l2" else 5000, torch.bfloat16)
    expected = on_cuda(*inputs, norm=norm)
    for order in (1, 2):
        on_host.set_order(order)
        assert_same_bits(on_cuda(*inputs, norm=norm), expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_through_the_operation(on_host, step_inputs, assert_same_bits, norm):
    """On images that are not contiguous, and on none at all."""
    from lordfast.ops import pgd_step, use_backend

    x, x0, g = (t.view(2, 10, 10, 3).permute(0, 3, 1, 2) for t in step_inputs(2, 300, torch.bfloat16))
    options = {"step_size": 0.1, "eps": 0.05, "norm": norm}
    got = pgd_step(x, x0, g, **options)
    assert on_host.take_launched() == [f"pgd_step.{k}" for k in (["linf"] if norm == "linf" else L2_LAUNCHES)]
    with use_backend("native"):
        assert_same_bits(got, pgd_step(x, x0, g, **options))
    assert pgd_step(x[:0], x0[:0], g[:0], **options).shape == (0, 3, 10, 10)


L2_LAUNCHES = ["l2_grad", "l2_dist", "l2_write"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("dtype", "float64", "'float32', 'bfloat16' or 'float16'"),
        ("workspace_bytes", 0, "64 or more"),
        ("workspace", 0, "the address of device memory"),
        ("workspace", 8, "16-byte boundary"),
        ("grad", 0, "the address"),
        ("direction", 0, "1 or -1"),
    ],
)
def test_bad_arguments(on_host, name, value, expected):
    memory = torch.zeros(64)
    size = on_host.cuda_pgd_step_workspace("l2", 1, 8)
    arguments = {
        **{key: memory.data_ptr() for key in ("x_adv", "x_orig", "grad", "out")},
        **{"batch": 1, "numel": 8, "dtype": "float32", "norm": "l2", **OPTIONS},
        **{"workspace": 4096, "workspace_bytes": size, "device": 0, "stream": 0},
    }
    expected = expected.replace("64", str(size))
    with pytest.raises(ValueError, match=f"^{name} is .*expected .*{expected}"):
        on_host.cuda_pgd_step(**{**arguments, name: value})
