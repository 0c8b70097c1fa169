"""Operations that a backend can put together from another one of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ._base import Kernel


def qkv_of(forward: Kernel) -> Kernel:
    """`lord_qkv_forward` as three calls of a backend's `lord_forward`, one after the other."""
    return Kernel(_three_runs(forward.run), _first_refuses(forward.refuses))


def _three_runs(run: Callable[..., Any]) -> Callable[..., Any]:
    def three(x: Tensor, weight: list[Tensor], bias: list[Tensor], *rest: Any) -> tuple[list[Tensor], ...]:
        *lists, scaling, per_sample, activation = rest
        calls = [
            run(x, weight[p], bias[p] if bias else None, *(t[p] for t in lists), scaling, per_sample, activation)
            for p in range(3)
        ]
        return tuple(map(list, zip(*calls, strict=True)))

    return three


def _first_refuses(refuses: Callable[..., str | None]) -> Callable[..., str | None]:
    def first(x: Tensor, weight: list[Tensor], bias: list[Tensor], *rest: Any) -> str | None:
        *lists, scaling, per_sample, activation = rest
        first_of = (t[0] for t in lists)
        return refuses(x, weight[0], bias[0] if bias else None, *first_of, scaling, per_sample, activation)

    return first
