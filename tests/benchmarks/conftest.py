"""The scripts of benchmarks/ as modules, and a small results file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from lordfast.profiling.results import read_rows, write_rows

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """`script("plot")`: benchmarks/plot.py, imported, with the modules beside it at hand as for a script."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"lordfast_benchmarks_{name}", BENCHMARKS / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # Dataclasses look their own module up by name.
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results file: two layers in two dtypes and both directions, a PGD step; one variant red."""
    base = {
        "date": "2026-01-02T03:04:05Z",
        "device": "Some CPU",
        "device_key": "cpu-avx512",
        "threads": 1,
        "cpu_isa": "avx512",
        "lordfast": "0.1.0",
        "torch": "2.13.0",
        "timing": "perf_counter",
        "repeats": 9,
    }
    rows = []

    def add(times: dict[str, float], bare: str, **where: object) -> None:
        for variant, us in times.items():
            spread = {"median_us": us, "p20_us": us * 0.9, "p80_us": us * 1.2, "ratio_bare": us / times[bare]}
            backend = "reference" if variant == "lordfast" else ""
            rows.append({**base, **where, **spread, "variant": variant, "backend": backend, "gate": "ok"})

    for dtype, factor in (("fp32", 1.0), ("bf16", 0.5)):
        for case, k in (("sd15 image 16 8->8", 8), ("sd15 text 16 4->8", 4)):
            for direction, more in (("forward", 1.0), ("forward+backward", 2.5)):
                where = {"op": "lord_linear", "case": case, "M": 16, "K": k, "N": 8, "x_grad": int(k == 8)}
                where |= {"r": 4, "H": 64, "granularity": "token", "dtype": dtype, "direction": direction}
                us = 100 * factor * more
                times = {"bare_linear": us, "eager": 3 * us, "peft_lora_2r": 1.5 * us, "lordfast": 1.25 * us}
                add({**times, "lordfast:reference": 1.25 * us}, "bare_linear", **where)
                rows.append({**base, **where, "variant": "lordfast:madeup", "gate": "red: y 1 > 0"})
    step = {"op": "pgd_step", "case": "linf 2x8", "M": 2, "K": 8, "N": 8, "dtype": "fp32", "direction": "forward"}
    add({"inplace_add": 10, "copy": 7, "eager": 80, "lordfast": 15, "lordfast:reference": 900}, "inplace_add", **step)
    path = tmp_path / "ops.csv"
    write_rows(path, rows)
    assert len(read_rows(path)) == len(rows)
    return path
