"""Which backends suit a case best: measured tables, one file a device, shipped with the package or made by its user.

A table is JSON: `device` (its key), `date`, `versions`, and `rows` of `op`, `dtype`, `M`, `K`, `N` and `ratio`, the
time of each measured backend over that of the bare operation in the same run. A case takes the order of the nearest
measured one; where nothing was measured, or the difference is noise, the backends' priorities decide.
"""

from __future__ import annotations

import json
import logging
import math
import os
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lordfast.files import default_cache_dir
from lordfast.ops import _native

from .backends._base import first_tensor

ENV_VARIABLE = "LORDFAST_DISPATCH_TABLE"
SHIPPED = Path(__file__).parent / "tables"
NOISE = 0.05  # of a ratio: medians of the same code differ by as much between runs

_log = logging.getLogger("lordfast.ops")


class Case(NamedTuple):
    """What a table knows a call by. For pgd_step M is the batch, K and N the elements of a sample."""

    op: str
    dtype: torch.dtype
    M: int
    K: int
    N: int


class Row(NamedTuple):
    """One measured case and the backends' times over the bare operation's."""

    case: Case
    ratio: tuple[tuple[str, float], ...]  # by backend, the fastest first

    @property
    def tiers(self) -> tuple[tuple[str, ...], ...]:
        """The measured backends, the fastest first; those as fast as the fastest, within NOISE, stand together."""
        limit = (1 + NOISE) * self.ratio[0][1] if self.ratio else 0.0
        together = tuple(name for name, time in self.ratio if time <= limit)
        return (together, *((name,) for name, time in self.ratio if time > limit))


class Table(NamedTuple):
    """The measured rows of one device, and where they come from."""

    source: str
    made: str
    rows: tuple[Row, ...]


def device_key(device: torch.device) -> str:
    """The name of a device in tables and file names: `cpu-` with the instruction set in use, or the GPU's name."""
    if device.type == "cpu":
        return "cpu" if _native.C is None else f"cpu-{_native.C.cpu_isa()}"
    return _accelerator_key(device.type, device.index)


@cache
def _accelerator_key(kind: str, index: int | None) -> str:
    return torch.cuda.get_device_name(index).replace(" ", "-") if kind == "cuda" else kind


def case_of(op: str, args: tuple[Any, ...]) -> Case:
    """The case that an operation's arguments make, in the order of its schema."""
    if op == "pgd_step":
        x = first_tensor(args)
        batch = x.shape[0] if x.ndim else 1
        numel = x.numel() // max(batch, 1)
        return Case(op, x.dtype, batch, numel, numel)
    if op == "lord_backward":
        u, lord_A, lord_B, dtype = args[4], args[7], args[8], args[17]
        return Case(op, dtype, u.numel() // u.shape[-1], lord_A.shape[1], lord_B.shape[0])
    x, lord_B = args[0], args[4]
    first: Tensor = lord_B if isinstance(lord_B, Tensor) else lord_B[0]
    return Case(op, x.dtype, x.numel() // max(x.shape[-1], 1), x.shape[-1], first.shape[0])


def nearest_row(key: str, case: Case) -> Row | None:
    """The row of this device's table that the case takes its order from, None where there is none."""
    return _nearest(key, os.environ.get(ENV_VARIABLE, ""), case)


@lru_cache(maxsize=4096)
def _nearest(key: str, path: str, case: Case) -> Row | None:
    table = _table(key, path)
    # q, k and v together are three forwards to a table that has no rows of its own for them.
    ops = [case.op, "lord_forward"] if case.op == "lord_qkv_forward" else [case.op]
    for op in ops:
        rows = [row for row in table.rows if row.case[:2] == (op, case.dtype)] if table else []
        if rows:
            return min(rows, key=lambda row: _distance(row.case, case))
    return None


def _distance(a: Case, b: Case) -> float:
    """How many doublings apart two cases are, over the three sizes."""
    return sum(abs(math.log2(max(one, 1) / max(other, 1))) for one, other in zip(a[2:], b[2:], strict=True))


def table_of(key: str) -> Table | None:
    """This device's table: the one that `LORDFAST_DISPATCH_TABLE` names, else the user's, else the shipped one.

    Raises:
        ValueError: the environment variable names a file that is no table of this device.
    """
    return _table(key, os.environ.get(ENV_VARIABLE, ""))


@cache
def _table(key: str, path: str) -> Table | None:
    if path:
        return read_table(Path(path), key)
    for folder in (user_tables(), SHIPPED):
        file = folder / f"{key}.json"
        if not file.is_file():
            continue
        try:
            return read_table(file, key)
        except ValueError as error:
            _log.warning("%s: going on without this table", error)
    return None


def user_tables() -> Path:
    """The folder of tables that were measured on this machine; they win over the shipped ones."""
    return default_cache_dir() / "dispatch"


def read_table(path: Path, key: str) -> Table:
    """Read one table.

    Raises:
        ValueError: there is no such file, it is no table, or it is another device's.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(
            Row(
                Case(row["op"], getattr(torch, row["dtype"]), int(row["M"]), int(row["K"]), int(row["N"])),
                tuple(sorted(((str(n), float(t)) for n, t in row["ratio"].items()), key=lambda pair: pair[1])),
            )
            for row in content["rows"]
        )
        device, made = str(content["device"]), str(content["date"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no dispatch table ({type(error).__name__}: {error})") from error
    if device != key:
        raise ValueError(f"{path} is a dispatch table of {device}; expected one of {key}")
    return Table(str(path), made, rows)
