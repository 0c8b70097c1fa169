"""Measured tables: which one is read, what it says about a case, and that the dispatcher obeys it."""

from __future__ import annotations

import json
import logging

import pytest
import torch

from lordfast.ops import _native, choice, dispatch, explain
from lordfast.ops.choice import Case

CPU = torch.device("cpu")


def row(op="lord_forward", dtype="float32", sizes=(64, 32, 16), **ratio):
    return {"op": op, "dtype": dtype, **dict(zip("MKN", sizes, strict=True)), "ratio": ratio}


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No table but those that a test writes."""

    def clear():
        choice._table.cache_clear()
        choice._nearest.cache_clear()

    clear()
    monkeypatch.setenv("LORDFAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(choice.ENV_VARIABLE, raising=False)
    monkeypatch.setattr(choice, "SHIPPED", tmp_path / "shipped")
    yield
    clear()


@pytest.fixture
def write(tmp_path):
    def write(where, *rows, device=None):
        folder = {"user": tmp_path / "cache" / "dispatch", "shipped": tmp_path / "shipped", "own": tmp_path}[where]
        folder.mkdir(parents=True, exist_ok=True)
        key = choice.device_key(CPU)
        file = folder / f"{key}.json"
        file.write_text(json.dumps({"device": device or key, "date": "2000-01-01", "versions": {}, "rows": rows}))
        return file

    return write


def fastest(case):
    found = choice.nearest_row(choice.device_key(CPU), case)
    return None if found is None else sum(found.tiers, ())


CASE = Case("lord_forward", torch.float32, 64, 32, 16)


def test_own_table_over_the_users_over_the_shipped(write, monkeypatch):
    assert fastest(CASE) is None
    choice._table.cache_clear(), choice._nearest.cache_clear()
    write("shipped", row(reference=1.0, native=2.0))
    assert fastest(CASE) == ("reference", "native")
    choice._table.cache_clear(), choice._nearest.cache_clear()
    write("user", row(native=1.0, reference=2.0))
    assert fastest(CASE) == ("native", "reference")
    monkeypatch.setenv(choice.ENV_VARIABLE, str(write("own", row(triton=1.0))))
    assert fastest(CASE) == ("triton",)


def test_the_nearest_measured_case_decides(write):
    write(
        "shipped",
        row(sizes=(64, 32, 16), a=1.0),
        row(sizes=(64, 32, 160), b=1.0),
        row(sizes=(4096, 32, 16), c=1.0),
        row(dtype="bfloat16", d=1.0),
        row(op="lord_backward", e=1.0),
    )
    assert fastest(CASE) == ("a",)
    assert fastest(CASE._replace(N=60)) == ("b",)  # 1.4 doublings below 160, 1.9 above 16
    assert fastest(CASE._replace(N=40)) == ("a",)
    assert fastest(CASE._replace(M=600)) == ("c",)
    assert fastest(CASE._replace(M=0)) == ("a",)
    assert fastest(CASE._replace(dtype=torch.bfloat16, M=10**6)) == ("d",)
    assert fastest(CASE._replace(op="lord_backward")) == ("e",)
    assert fastest(CASE._replace(op="lord_qkv_forward")) == ("a",)  # three forwards
    assert fastest(CASE._replace(dtype=torch.float16)) is None
    assert fastest(CASE._replace(op="pgd_step")) is None


@pytest.mark.parametrize("broken", ["{", "[]", '{"device": "x"}', '{"device": "x", "date": "", "rows": [{"op": 1}]}'])
def test_broken_tables(write, monkeypatch, caplog, broken):
    file = write("shipped", row(native=1.0))
    file.write_text(broken)
    with caplog.at_level(logging.WARNING, "lordfast.ops"):
        assert fastest(CASE) is None
    assert str(file) in caplog.text and "no dispatch table" in caplog.text
    monkeypatch.setenv(choice.ENV_VARIABLE, str(file))
    with pytest.raises(ValueError, match="no dispatch table"):
        fastest(CASE)


def test_tables_of_other_devices(write, monkeypatch):
    monkeypatch.setenv(choice.ENV_VARIABLE, str(write("own", row(native=1.0), device="NVIDIA-H200")))
    with pytest.raises(ValueError, match="is a dispatch table of NVIDIA-H200; expected one of cpu"):
        fastest(CASE)
    monkeypatch.setenv(choice.ENV_VARIABLE, "/nowhere.json")
    with pytest.raises(ValueError, match=r"/nowhere\.json is no dispatch table \(FileNotFoundError"):
        fastest(CASE)


def test_device_keys(monkeypatch):
    assert choice.device_key(CPU) == f"cpu-{_native.C.cpu_isa()}"
    monkeypatch.setenv("LORDFAST_CPU_ISA", "portable")
    assert choice.device_key(CPU) == "cpu-portable"
    monkeypatch.setattr(_native, "C", None)
    assert choice.device_key(CPU) == "cpu"
    assert choice.device_key(torch.device("meta")) == "meta"


def test_cases_of_calls(make_case, monkeypatch):
    seen = []
    order = dispatch.candidates
    monkeypatch.setattr(
        dispatch, "candidates", lambda op, args: (seen.append(choice.case_of(op, args)), order(op, args))[1]
    )
    case = make_case((2, 3), 7, 5, dtype=torch.float32).leaves("x", "lord_B")
    case.fused()[0].sum().backward()
    x = torch.zeros(3, 2, 4)
    dispatch.run("pgd_step", "", x, x, x, x.clone(), 0.1, 0.1, -1.0, 1.0, "linf", 1)
    assert seen == [
        Case("lord_forward", torch.float32, 6, 7, 5),
        Case("lord_backward", torch.float32, 6, 7, 5),
        Case("pgd_step", torch.float32, 3, 8, 8),
    ]


def test_the_dispatcher_obeys(make_case, write, monkeypatch):
    ran = []

    def spy(backend):
        kernels = {
            op: dispatch.BACKENDS["reference"]
            .kernels[op]
            .__class__(
                lambda *args, op=op: (ran.append(backend), dispatch.BACKENDS["reference"].kernels[op].run(*args))[1]
            )
            for op in ("lord_forward",)
        }
        return dispatch.Backend(name=backend, priority=0, missing=lambda: None, kernels=kernels)

    monkeypatch.setattr(dispatch, "BACKENDS", {**dispatch.BACKENDS, "first": spy("first"), "second": spy("second")})
    dispatch._ordered.cache_clear()
    try:
        write(
            "shipped", row(sizes=(6, 7, 5), second=1.0, reference=1.5), row(sizes=(6000, 7, 5), first=1.0, second=2.0)
        )
        make_case((2, 3), dtype=torch.float32).fused()
        make_case((2, 3000), dtype=torch.float32).fused()
    finally:
        dispatch._ordered.cache_clear()
    assert ran == ["second", "first"]


def test_noise_does_not_outrank_priority(make_case, write, monkeypatch):
    args = (*make_case((2, 3), dtype=torch.float32).tensors, 2.0, False, "silu")

    def order(**ratio):
        write("shipped", row(sizes=(6, 7, 5), **ratio))
        choice._table.cache_clear(), choice._nearest.cache_clear()
        return [b.name for b in dispatch.candidates("lord_forward", args)]

    assert order(reference=1.0, native=1.04) == ["native", "reference"]
    assert order(reference=1.0, native=1.06) == ["reference", "native"]
    assert order(reference=1.0) == ["reference", "native"]  # measured before unmeasured


def test_explanations(write):
    write("shipped", row(sizes=(4096, 320, 320), reference=1.25))
    forward, backward = explain.explain_lord(3000, 320, 300, torch.float32, CPU)
    assert forward.op == "lord_forward" and forward.device == choice.device_key(CPU)
    assert "nearest row M 4096 K 320 N 320" in forward.table and "2000-01-01" in forward.table
    assert (forward.candidates[0].backend, forward.candidates[0].ratio) == ("reference", 1.25)
    assert forward.runs == "reference"
    assert "no row of this dtype" in backward.table
    triton = next(c for c in forward.candidates if c.backend == "triton")
    assert triton.why_not
    with dispatch.use_backend("triton"):
        assert (explain.explain_lord(8, 8, 8, torch.float32, CPU)[0].forced, forward.forced) == ("triton", "")
        assert explain.explain_lord(8, 8, 8, torch.float32, CPU)[0].runs == ""
    with pytest.raises(ValueError, match="K is 0; expected 1 or more"):
        explain.explain_lord(1, 1, 0, torch.float32, CPU)


def test_what_is_explained_is_what_runs(make_case, monkeypatch):
    """Over real cases: the backend named runs the same bits as the dispatcher's own choice."""
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        case = make_case((4, 5), 24, 16, dtype=dtype)
        runs = explain.explain_lord(20, 16, 24, dtype, CPU, r=3, hidden=4)[0].runs
        assert torch.equal(case.fused()[0], case.fused(backend=runs)[0])
