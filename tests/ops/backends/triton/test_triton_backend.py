"""When the Triton backend is there, what it refuses, and that its table covers every case."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch

from lordfast.ops import available_backends
from lordfast.ops.backends import triton as backend
from lordfast.ops.backends.triton.configs import TABLE, candidates
from lordfast.ops.backends.triton.geometry import layout_of
from lordfast.ops.backends.triton.launch import recording

GPU = torch.cuda.is_available()


@pytest.mark.skipif(GPU, reason="there is a CUDA device")
def test_without_a_gpu(monkeypatch):
    assert available_backends()["triton"] == "ok"  # interpreted, as the fixtures here ask for
    monkeypatch.delenv("TRITON_INTERPRET")
    expected = "no CUDA device (TRITON_INTERPRET=1 runs it on CPU tensors, for tests)"
    assert available_backends()["triton"] == expected


def test_without_triton(monkeypatch):
    monkeypatch.setattr(backend, "_has_triton", lambda: False)
    assert available_backends()["triton"] == "triton is not installed"


def test_cpu_tensors_get_it_only_by_force(make_case):
    case = make_case(dtype=torch.float32).leaves()
    with recording() as made:
        case.fused()[0].sum().backward()
        assert not made
        case.fused(backend="triton" if not GPU else "reference")
        assert GPU or made


def test_importing_lordfast_imports_no_triton():
    code = (
        "import sys, torch; before = 'triton' in sys.modules; import lordfast.ops, lordfast.ops.backends.triton.cases;"
        "lordfast.ops.available_backends(); assert before or 'triton' not in sys.modules;"
        "assert not [m for m in sys.modules if m.startswith('lordfast.ops.backends.triton.kernels')]"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def refusal(case):
    with pytest.raises(ValueError, match="'triton' was forced but can't run lord_forward here") as caught:
        case.fused(backend="triton")
    return str(caught.value)


def test_refusals(make_case, here):
    assert "x is torch.float64" in refusal(here(make_case(dtype=torch.float64)))
    assert "one is torch.float64" in refusal(here(make_case(dtype=torch.float32, trainable=torch.float64)))
    assert "ranks up to 64, this is 65" in refusal(here(make_case(r=65, dtype=torch.float32)))


@pytest.mark.skipif(GPU, reason="the kernels are not interpreted")
def test_a_change_of_mind_about_the_interpreter_is_named(monkeypatch):
    monkeypatch.setattr(backend, "_interprets", lambda: False)
    assert "set after triton had been imported" in available_backends()["triton"]


def test_the_table_has_a_row_for_every_case():
    for kernel, itemsize in itertools.product(("forward", "rows", "dx"), (2, 4)):
        for rank, m, gate in itertools.product(range(1, 65), (1, 77, 511, 512, 513, 2048, 16384, 2**30), (1, 10**6)):
            rows = candidates(kernel, itemsize, rank, m, gate)
            assert rows and rows[0].fold == "kernel", (kernel, itemsize, rank, m, gate)
    assert len({(row.kernel, row.name) for row in TABLE}) == len(TABLE)
    assert all(row.why for row in TABLE)


def test_every_packing_holds_the_rank_and_all_the_parts():
    parts = {torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}
    for dtype, rank in itertools.product(parts, range(1, 65)):
        rq, g, d, c = layout_of(rank, dtype)
        assert rq >= rank and g * d >= parts[dtype] and g * rq >= 16 and c * rq >= 16 and c in (1, g)
        assert all(n & (n - 1) == 0 for n in (rq, g, c))
