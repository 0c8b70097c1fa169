"""Fixtures around lordfast._C: the module, the instruction sets, and its functions on tensors."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from lordfast.ops import _native

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@pytest.fixture(scope="session")
def native() -> Any:
    """lordfast._C. An installation without it is broken, so its absence fails the tests instead of skipping them."""
    assert _native.available, _native.reason
    return _native.C


@pytest.fixture(params=["avx512_bf16", "avx512", "avx2", "portable"])
def isa(request: pytest.FixtureRequest, native: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each instruction set in turn, forced by the environment variable."""
    if request.param not in native.available_isas():
        pytest.skip(f"this CPU has no {request.param}, only {native.available_isas()}")
    monkeypatch.setenv("LORDFAST_CPU_ISA", request.param)
    assert native.cpu_isa() == request.param
    yield request.param


@pytest.fixture(params=list(DTYPE_NAMES), ids=list(DTYPE_NAMES.values()))
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="session")
def pgd_step(native: Any) -> Callable[..., torch.Tensor]:
    """pgd_step(x, x0, g, norm, ...) on (batch, numel) tensors; into a NaN-poisoned tensor unless out is given."""

    def call(
        x: torch.Tensor,
        x0: torch.Tensor,
        g: torch.Tensor,
        norm: str = "linf",
        *,
        step_size: float = 2 / 255,
        eps: float = 8 / 255,
        low: float = -1.0,
        high: float = 1.0,
        direction: int = 1,
        threads: int = 1,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if out is None:
            out = torch.full_like(x, float("nan"))
        assert all(t.is_contiguous() and t.dtype == x.dtype and t.shape == x.shape for t in (x0, g, out))
        batch, numel = x.shape
        pointers = (x.data_ptr(), x0.data_ptr(), g.data_ptr(), out.data_ptr())
        name = DTYPE_NAMES[x.dtype]
        native.pgd_step(*pointers, batch, numel, name, norm, step_size, eps, low, high, direction, threads)
        return out

    return call


@pytest.fixture(scope="session")
def assert_same_bits() -> Callable[[torch.Tensor, torch.Tensor], None]:
    """Equal bit for bit, signs of zeros included; any NaN equals any other."""

    def check(got: torch.Tensor, expected: torch.Tensor) -> None:
        assert got.dtype == expected.dtype and got.shape == expected.shape
        as_int = torch.int32 if got.dtype == torch.float32 else torch.int16
        differ = got.contiguous().view(as_int) != expected.contiguous().view(as_int)
        differ &= ~(got.isnan() & expected.isnan())
        where = differ.nonzero()
        if len(where):
            first = tuple(where[0].tolist())
            pytest.fail(f"{len(where)} elements differ, first at {first}: {got[first]} for {expected[first]}")

    return check


@pytest.fixture(scope="session")
def step_inputs() -> Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(x_adv, x_orig, grad) of shape (batch, numel): images in [-1, 1], perturbed in and out of the ball."""

    def make(batch: int, numel: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        x0 = torch.rand(batch, numel, generator=generator) * 2 - 1
        x = x0 + 0.03 * torch.randn(batch, numel, generator=generator)
        g = torch.randn(batch, numel, generator=generator) * 1e-3
        g[torch.rand(batch, numel, generator=generator) < 0.1] = 0.0
        return x.to(dtype), x0.to(dtype), g.to(dtype)

    return make


@pytest.fixture(scope="session")
def lord(native: Any) -> Callable[..., dict[str, torch.Tensor]]:
    """lord(case, grad_y, grad_logit, threads=1, needs=all, guard=0): what the two functions write, without a base.

    Everything is written into NaN-poisoned tensors; `guard` elements on either side of each must stay as they are.
    """
    names = ("x", "lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")

    def call(
        case: Any,
        grad_y: torch.Tensor | None = None,
        grad_logit: torch.Tensor | None = None,
        *,
        threads: int = 1,
        needs: tuple[str, ...] = names,
        guard: int = 0,
    ) -> dict[str, torch.Tensor]:
        x, (r, k), (n, _), h = case["x"], case["lord_A"].shape, case["lord_B"].shape, len(case["b1"])
        per_sample = case.granularity == "sample"
        m = x.numel() // k
        batch = x.shape[0] if per_sample else 1
        memories = []

        def poisoned(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
            count = math.prod(shape)
            memory = torch.full((guard + count + guard,), -77.0, dtype=dtype)
            memories.append((memory, count))
            return memory[guard : guard + count].fill_(math.nan).view(shape)

        lead = tuple(x.shape[:-1])
        out = {"y": poisoned((*lead, n), x.dtype), "gate_logit": poisoned(lead[:1] if per_sample else lead)}
        out["u"] = poisoned((*lead, r))
        sizes = (batch, m // batch if batch else 0, k, n, r, h)
        weights = tuple(case[name].data_ptr() for name in names[1:])
        options = (sizes, weights, DTYPE_NAMES[x.dtype], case.activation, case.scaling, per_sample, False, threads)
        results = [out[name].data_ptr() for name in ("y", "gate_logit", "u")]
        native.cpu_lord_forward(x.data_ptr(), *results, *options)
        grads = {name: poisoned(case[name].shape, case[name].dtype) for name in needs}
        native.cpu_lord_backward(
            0 if grad_y is None else grad_y.data_ptr(),
            0 if grad_logit is None else grad_logit.data_ptr(),
            x.data_ptr() if "lord_A" in needs else 0,
            *results[1:],
            tuple(grads[name].data_ptr() if name in needs else 0 for name in names),
            *options,
        )
        for memory, count in memories:
            assert (memory[:guard] == -77).all() and (memory[guard + count :] == -77).all()
        return {**out, **grads}

    return call
