"""From measurements to the table by which the dispatcher chooses a backend.

    {"device": "cpu-avx512", "versions": {...}, "date": "...", "threads": 1, "rows": [
        {"op": "lord_forward", "dtype": "bfloat16", "M": 4096, "K": 320, "N": 320,
         "ratio": {"native": 1.2, "reference": 1.4}}, ...]}

A ratio is a backend's time over that of the bare linear layer in the same run, or of an in-place add for `pgd_step`
(M = batch, K = N = elements per sample, and a row for each "norm"). `lord_backward` is forward + backward minus
forward, over the same of the bare layer; over the bare layer's forward where x wants no gradient, for then the bare
layer has no backward. Only right numbers count. Several measurements of one row (two gate widths, say) give their
geometric mean.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lordfast.files import write_atomic

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_PREFIX = "lordfast:"
_VERSIONS = ("lordfast", "commit", "torch", "triton", "cuda", "python", "driver")
# What one measurement is of: all rows that were timed in one run of one case.
_CASE = ("op", "case", "dtype", "M", "K", "N", "x_grad", "r", "H", "granularity")
Ratios = dict[str, float]


def dispatch_table(rows: Iterable[Mapping[str, str]]) -> dict[str, Any]:
    """The table from the rows of one device's results files.

    Raises:
        ValueError: there is nothing to choose by, or the rows are of several devices or thread counts.
    """
    rows = [row for row in rows if row["op"] in ("lord_linear", "pgd_step")]
    if not rows:
        raise ValueError("the results hold no rows of lord_linear or pgd_step")
    cases: dict[tuple[str, ...], dict[tuple[str, str], float]] = defaultdict(dict)
    for row in rows:
        if row["median_us"] and row["gate"] in ("ok", "not checked"):
            cases[tuple(row[name] for name in _CASE)][row["direction"], row["variant"]] = float(row["median_us"])
    found: dict[Any, list[Ratios]] = defaultdict(list)
    for key, times in cases.items():
        case = dict(zip(_CASE, key, strict=True))
        measured = _pgd(times) if case["op"] == "pgd_step" else _lord(times, case["x_grad"] == "1")
        norm = case["case"].split()[0] if case["op"] == "pgd_step" else ""
        where = (norm, _DTYPES[case["dtype"]], *(int(case[name]) for name in ("M", "K", "N")))
        for op, ratios in measured.items():
            if ratios:
                found[op, where].append(ratios)
    return {
        "device": _only(rows, "device_key"),
        "versions": {name: _versions(rows, name) for name in _VERSIONS},
        "date": max(row["date"] for row in rows),
        "threads": int(_only(rows, "threads")),
        "rows": [row for key, measured in sorted(found.items()) if (row := _row(key, measured))["ratio"]],
    }


def write_table(table: Mapping[str, Any], path: Path) -> None:
    """Write it as JSON, a line for each row."""
    head = json.dumps({name: value for name, value in table.items() if name != "rows"}, indent=2)
    lines = ",\n".join("    " + json.dumps(row) for row in table["rows"])
    text = head.removesuffix("\n}") + f',\n  "rows": [\n{lines}\n  ]\n}}\n'
    write_atomic(path, text.encode())


def _lord(times: Mapping[tuple[str, str], float], x_grad: bool) -> dict[str, Ratios]:
    def backward(variant: str) -> float | None:
        both, alone = (times.get((direction, variant)) for direction in ("forward+backward", "forward"))
        return None if both is None or alone is None else both - alone

    bare = times.get(("forward", "bare_linear"))
    bare_backward = backward("bare_linear") if x_grad else bare
    names = _backends(times)
    forwards = {name: times.get(("forward", _PREFIX + name)) for name in names}
    backwards = {name: backward(_PREFIX + name) for name in names}
    return {"lord_forward": _over(forwards, bare), "lord_backward": _over(backwards, bare_backward)}


def _pgd(times: Mapping[tuple[str, str], float]) -> dict[str, Ratios]:
    steps = {name: times.get(("forward", _PREFIX + name)) for name in _backends(times)}
    return {"pgd_step": _over(steps, times.get(("forward", "inplace_add")))}


def _backends(times: Mapping[tuple[str, str], float]) -> list[str]:
    return list(dict.fromkeys(v.removeprefix(_PREFIX) for _, v in times if v.startswith(_PREFIX)))


def _over(times: Mapping[str, float | None], bare: float | None) -> Ratios:
    """Differences of noisy times can come out as nothing: such a row says nothing."""
    if bare is None or bare <= 0:
        return {}
    return {name: time / bare for name, time in times.items() if time is not None and time > 0}


def _row(key: Any, measured: list[Ratios]) -> dict[str, Any]:
    op, (norm, dtype, m, k, n) = key
    # Backends that were right in every measurement, so that their means are of the same cases.
    names = [name for name in measured[0] if all(name in ratios for ratios in measured)]
    mean = {name: math.exp(sum(math.log(ratios[name]) for ratios in measured) / len(measured)) for name in names}
    row = {"op": op, "dtype": dtype, "M": m, "K": k, "N": n}
    return {**row, **({"norm": norm} if norm else {}), "ratio": {name: round(mean[name], 4) for name in sorted(mean)}}


def _only(rows: Iterable[Mapping[str, str]], name: str) -> str:
    values = sorted({row[name] for row in rows})
    if len(values) != 1:
        raise ValueError(f"the results are of several values of {name}: {', '.join(values)}; expected one")
    return values[0]


def _versions(rows: Iterable[Mapping[str, str]], name: str) -> str:
    return ", ".join(sorted({row[name] for row in rows if row[name]}))
