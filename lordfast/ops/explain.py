"""Why the dispatcher runs a case where it does, in words: for `lordfast info --explain`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from . import dispatch
from .choice import case_of, device_key, nearest_row, table_of


@dataclass(frozen=True)
class Candidate:
    """One backend for one case: its measured ratio to the bare operation, and why it can't run (None if it can)."""

    backend: str
    ratio: float | None
    why_not: str | None


@dataclass(frozen=True)
class Explanation:
    """What decides one operation on one case.

    Attributes:
        op: the operation.
        device: the device's key in the tables.
        table: the table and the row in it that set the order, or that there is none.
        forced: what forces a backend, "" if nothing does.
        candidates: in the order in which they are tried, those for other devices last.
        runs: the backend that runs; "" where the forced one can't.
    """

    op: str
    device: str
    table: str
    forced: str
    candidates: tuple[Candidate, ...]
    runs: str


def explain_lord(
    m: int, n: int, k: int, dtype: torch.dtype, device: torch.device, r: int = 4, hidden: int = 16
) -> list[Explanation]:
    """Which backend runs `lord_forward` and `lord_backward` for M tokens of a (K -> N) layer, and why.

    Args:
        m: tokens. n: outputs. k: inputs.
        dtype: x's.
        device: where.
        r: LoRD's rank. hidden: the gate's width.

    Raises:
        ValueError: a size is not positive, or the dispatch table that the environment names can't be read.
    """
    for name, size in (("M", m), ("N", n), ("K", k), ("r", r), ("hidden", hidden)):
        if size < 1:
            raise ValueError(f"{name} is {size}; expected 1 or more")
    # Shapes are all that a refusal looks at: nothing is computed, and memory that is not touched is not taken.
    half: dict[str, Any] = {"dtype": dtype, "device": device}
    full: dict[str, Any] = {"device": device}
    x, weight = torch.empty(m, k, **half), torch.empty(n, k, **half)
    small = [torch.empty(s, **full) for s in ((r, k), (n, r), (n, r), (hidden, n), (hidden,), (hidden,), ())]
    logit, u = torch.empty(m, **full), torch.empty(m, r, **full)
    options = (1.0, False, "silu")
    forward = (x, weight, None, *small, *options)
    needs = [True, False, False, *[True] * 7]
    backward = (torch.empty(m, n, **half), None, x, logit, u, weight, None, *small, *options, dtype, needs)
    return [explain("lord_forward", forward), explain("lord_backward", backward)]


def explain(op: str, args: tuple[Any, ...]) -> Explanation:
    """Which backend the dispatcher runs `op` on for these arguments (those of its schema, without `backend`)."""
    device = dispatch.first_tensor(args).device
    key = device_key(device)
    row, table = nearest_row(key, case_of(op, args)), table_of(key)
    ratios = {} if row is None else dict(row.ratio)
    ordered = dispatch.candidates(op, args)
    candidates = [Candidate(b.name, ratios.get(b.name), dispatch.why_not(b, op, args)) for b in ordered]
    for name, backend in dispatch.BACKENDS.items():
        if backend not in ordered:
            why = dispatch.why_not(backend, op, args) or f"it is not for {device.type} tensors unless forced"
            candidates.append(Candidate(name, None, why))
    forced = dispatch.forced_backend(None) or os.environ.get(dispatch.ENV_VARIABLE, "")
    able = [c.backend for c in candidates if c.why_not is None and forced in ("", c.backend)]
    where = "none for this device: by priority"
    if table is not None:
        where = f"{table.source} ({table.made}), "
        where += (
            "no row of this dtype: by priority" if row is None else "nearest row M {} K {} N {}".format(*row.case[2:])
        )
    return Explanation(op, key, where, forced, tuple(candidates), able[0] if able else "")
