"""One case on random numbers: what the tuner checks and times."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..reference import lord as reference
from .backward import INPUTS, lord_backward
from .cases import Case
from .configs import Config
from .forward import lord_forward, lord_qkv_forward

# How far from float64 a configuration may be. Faults, a miscompiled kernel's or a wrong tile's, are of order one; what
# is to pass is rounding in another order, of small sums of large terms at times.
_TIMES_THE_REFERENCE = 4.0
_ROUNDING = 1e-4


class Trial:
    """Random arguments of a case, and the outputs that the reference backend has for them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._generator = torch.Generator(case.device).manual_seed(0)
        self._options: tuple[Any, ...] = (2.0, case.per_sample, case.activation)
        with torch.no_grad():
            self._args = self._backward_args() if case.op == "lord_backward" else self._forward_args()
            self._exact = self._by_reference(self._args, torch.float64)
            own = self._by_reference(self._args, case.dtype)
        self._allowed = [
            _TIMES_THE_REFERENCE * _distance(a, b) + _ROUNDING for a, b in zip(own, self._exact, strict=True)
        ]

    def run(self, configs: Mapping[str, Config]) -> list[Tensor]:
        """The operation's outputs by these configurations."""
        if self.case.op == "lord_backward":
            return lord_backward(configs, *self._args)
        if self.case.op == "lord_qkv_forward":
            return list(itertools.chain(*lord_qkv_forward(configs["forward"], *self._args)))
        return list(lord_forward(configs["forward"], *self._args))

    def complaint(self, outputs: list[Tensor]) -> str | None:
        """What is wrong with a configuration's outputs, or None."""
        for i, (got, exact, allowed) in enumerate(zip(outputs, self._exact, self._allowed, strict=True)):
            distance = _distance(got, exact)
            if not distance <= allowed:  # NaN is no pass
                return f"output {i} is {distance:.1e} from the reference, at most {allowed:.1e} is expected"
        return None

    def _rand(self, *shape: int, fan: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
        return (torch.randn(shape, generator=self._generator, device=self.case.device) / fan**0.5).to(dtype)

    def _projection(self) -> list[Any]:
        c = self.case
        base = (
            [self._rand(c.n, c.k, fan=c.k, dtype=c.dtype), self._rand(c.n, dtype=c.dtype)] if c.base else [None, None]
        )
        branches = [self._rand(c.r, c.k, fan=c.k), self._rand(c.n, c.r, fan=c.r), self._rand(c.n, c.r, fan=c.r)]
        return [
            *base,
            *branches,
            self._rand(c.h, c.n, fan=c.n),
            self._rand(c.h),
            self._rand(c.h, fan=c.h),
            self._rand(),
        ]

    def _x(self) -> Tensor:
        # A sample gate gets two samples if it can, so that one's tokens can't pass for the other's.
        batch = 2 if self.case.m % 2 == 0 else 1
        return self._rand(batch, self.case.m // batch, self.case.k, dtype=self.case.dtype)

    def _forward_args(self) -> tuple[Any, ...]:
        if self.case.op == "lord_forward":
            return (self._x(), *self._projection(), *self._options)
        return (self._x(), *map(list, zip(*(self._projection() for _ in range(3)), strict=True)), *self._options)

    def _backward_args(self) -> tuple[Any, ...]:
        x, parameters = self._x(), self._projection()
        y, gate_logit, u = reference.lord_forward(x, *parameters, *self._options)
        dy, g = self._rand(*y.shape, dtype=y.dtype), self._rand(*gate_logit.shape)
        needs = [name == "x" or (self.case.trains and name not in ("weight", "bias")) for name in INPUTS]
        x_if_read = x if self.case.trains else None
        return (dy, g, x_if_read, gate_logit, u, *parameters, *self._options, self.case.dtype, needs)

    def _by_reference(self, args: tuple[Any, ...], dtype: torch.dtype) -> list[Tensor]:
        if dtype == torch.float64:
            args = tuple(_widened(a) for a in args)
        if self.case.op == "lord_backward":
            return reference.lord_backward(*args)
        if self.case.op == "lord_forward":
            return list(reference.lord_forward(*args))
        x, *roles = args[:10]
        calls = [reference.lord_forward(x, *(role[i] for role in roles), *self._options) for i in range(3)]
        return list(itertools.chain(*zip(*calls, strict=True)))


def _widened(a: Any) -> Any:
    if isinstance(a, Tensor):
        return a.double()
    if isinstance(a, list) and isinstance(a[0], Tensor):
        return [t.double() for t in a]
    return torch.float64 if isinstance(a, torch.dtype) else a


def _distance(got: Tensor, exact: Tensor) -> float:
    return float((got.double() - exact).norm() / exact.norm().clamp(min=1e-30))
