"""The benchmark of `pgd_step`: against the eager formula, and against the bandwidth of an in-place add and of a copy.

A step reads three arrays and writes one, an in-place add reads two and writes one, a copy reads one and writes one. The
"percent of an in-place add's bandwidth" is (4 arrays / time of a step) / (3 arrays / time of an add), both measured in
the same run on tensors of the same size: the quotient of the two rows' `gbps`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lordfast.ops import available_backends, pgd_step, use_backend

from . import costs
from .accuracy import Outputs
from .baselines import eager_pgd
from .machine import DTYPES, cache_bytes
from .measure import Variant, measure
from .results import Row
from .rounds import Effort
from .stopwatch import sets_needed

SHAPES = ((4, 3, 512, 512), (8, 3, 1024, 1024))
NORMS = ("linf", "l2")


@dataclass
class PgdSet:
    """The arrays of one step, and one more for the add and the copy to write."""

    x_adv: Tensor
    x_orig: Tensor
    grad: Tensor
    scratch: Tensor


def make_sets(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, count: int, seed: int = 0
) -> list[PgdSet]:
    """`count` sets: images in [-1, 1], iterates up to 16 grey levels away from them, small gradients."""
    g = torch.Generator(device).manual_seed(seed)

    def uniform(scale: float) -> Tensor:
        return (torch.rand(shape, generator=g, device=device) * 2 - 1) * scale

    sets = []
    for _ in range(count):
        x = uniform(1)
        grad = torch.randn(shape, generator=g, device=device) * 1e-3
        arrays = ((x + uniform(32 / 255)).clamp(-1, 1), x, grad, torch.zeros(shape, device=device))
        sets.append(PgdSet(*(t.to(dtype) for t in arrays)))
    return sets


def numbers(norm: str, numel: int) -> dict[str, Any]:
    """Step and budget in the units of [-1, 1]: 2 and 8 grey levels; for l2, the norms of uniform noise of that size."""
    scale = 1.0 if norm == "linf" else math.sqrt(numel / 3)
    return {"step_size": 4 / 255 * scale, "eps": 16 / 255 * scale, "low": -1.0, "high": 1.0, "norm": norm}


def bench_pgd(
    shape: tuple[int, ...], norm: str, dtype_name: str, device: torch.device, effort: Effort, seed: int = 0
) -> list[Row]:
    """Check and time one step on images of `shape`; rows with everything but the machine's columns."""
    dtype = DTYPES[dtype_name]
    numel, size = math.prod(shape), dtype.itemsize
    how = numbers(norm, numel // shape[0])
    count = sets_needed(2 * numel * size, cache_bytes(device), least=effort.draws)
    sets = make_sets(shape, dtype, device, count, seed)

    def exact(direction: str, s: PgdSet) -> Outputs:
        return {"x": eager_pgd(s.x_adv.double(), s.x_orig.double(), s.grad.double(), **how)}

    variants = _variants(how, costs.pgd_step(numel, size, norm), numel, size)
    rows = measure(variants, sets, exact, bare="inplace_add", effort=effort, device=device)
    each = numel // shape[0]
    case = f"{norm} {'x'.join(map(str, shape))}"
    labels = {"op": "pgd_step", "case": case, "M": shape[0], "K": each, "N": each, "dtype": dtype_name}
    return [{**labels, **row} for row in rows]


def _variants(how: dict[str, Any], cost: costs.Cost, numel: int, size: int) -> list[Variant[PgdSet]]:
    def fused(s: PgdSet) -> Outputs:
        return {"x": pgd_step(s.x_adv, s.x_orig, s.grad, **how, out=s.x_adv)}

    def fused_on_a_copy(s: PgdSet) -> Outputs:
        return fused(replace(s, x_adv=s.x_adv.clone()))

    add = partial(Variant[PgdSet], direction="forward")
    found = [
        add("copy", run=_returning(lambda s: s.scratch.copy_(s.x_adv)), checked=False, cost=costs.copy(numel, size)),
        add(
            "inplace_add",
            run=_returning(lambda s: s.scratch.add_(s.grad)),
            checked=False,
            cost=costs.inplace_add(numel, size),
        ),
        add("eager", run=_returning(lambda s: eager_pgd(s.x_adv, s.x_orig, s.grad, **how)), cost=cost),
        add("lordfast", run=fused, check=fused_on_a_copy, cost=cost),
    ]
    for name, status in available_backends().items():
        if status == "ok":
            more: dict[str, Any] = {"within": partial(use_backend, name), "check": fused_on_a_copy, "cost": cost}
            found.append(add(f"lordfast:{name}", run=fused, **more))
    return found


def _returning(function: Callable[[PgdSet], Tensor]) -> Callable[[PgdSet], Outputs]:
    return lambda s: {"x": function(s)}
