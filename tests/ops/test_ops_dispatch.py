"""Choosing, forcing and falling back between backends."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from lordfast.ops import _native, available_backends, dispatch, pgd_step, use_backend
from lordfast.ops.backends import Backend
from lordfast.ops.backends._base import Kernel


def step(dtype=torch.float32):
    x, x0, grad = torch.linspace(-1, 1, 18).reshape(3, 2, 3).to(dtype)
    return pgd_step(x, x0, grad, step_size=0.1, eps=2.0)


class Extra:
    """A made-up backend, tried before all others, that counts its calls and refuses what it is told to."""

    def __init__(self):
        self.calls, self.why, self.absent = [], None, None

    def backend(self):
        reference = dispatch.BACKENDS["reference"].kernels
        kernels = {
            op: Kernel(
                lambda *args, op=op: (self.calls.append(op), reference[op].run(*args))[1], lambda *args: self.why
            )
            for op in ("lord_forward", "lord_backward")
        }
        return Backend(name="extra", priority=99, missing=lambda: self.absent, kernels=kernels)


@pytest.fixture
def extra(monkeypatch):
    extra = Extra()
    monkeypatch.setattr(dispatch, "BACKENDS", {"extra": extra.backend(), **dispatch.BACKENDS})
    monkeypatch.setattr(dispatch, "_said", set())
    dispatch._ordered.cache_clear()
    yield extra
    dispatch._ordered.cache_clear()


def test_available_backends():
    found = available_backends()
    assert list(found) == ["triton", "native", "reference"]
    assert found["reference"] == "ok"
    assert found["triton"] == "ok" or "no CUDA device" in found["triton"] or "not installed" in found["triton"]
    assert (found["native"] == "ok") == _native.available
    assert found["native"] == "ok" or _native.reason in found["native"]


def test_the_first_that_takes_the_case_runs(make_case, extra):
    case = make_case().leaves()
    case.fused()[0].sum().backward()
    assert extra.calls == ["lord_forward", "lord_backward"]


def test_a_refusal_falls_back_and_is_logged_once(make_case, extra, caplog):
    extra.why = "it only runs on Sundays"
    case = make_case()
    with caplog.at_level(logging.INFO, "lordfast.ops"):
        results = [case.fused() for _ in range(3)]
    assert extra.calls == []
    assert torch.equal(results[0][0], case.fused(backend="reference")[0])
    expected = "lord_forward: backend extra can't run this (it only runs on Sundays); using reference"
    # In float64, which the native backend refuses as well.
    assert [text for text in map(logging.LogRecord.getMessage, caplog.records) if "extra" in text] == [expected]
    assert len(caplog.records) == 2


def test_a_missing_backend_falls_back_and_is_logged_once(make_case, extra, caplog):
    extra.absent = "no such device"
    with caplog.at_level(logging.INFO, "lordfast.ops"):
        make_case().fused()
        make_case().fused()
    assert extra.calls == []
    assert caplog.text.count("no such device") == 1


def test_forced_backends_raise(make_case, extra):
    case = make_case()
    extra.why = "it only runs on Sundays"
    with pytest.raises(ValueError, match="backend='extra' was forced but can't run lord_forward here: it only runs on"):
        case.fused(backend="extra")
    with (
        use_backend("triton"),
        pytest.raises(ValueError, match="'triton' was forced but can't run lord_forward here: "),
    ):
        case.fused()
    extra.why = None
    with use_backend("extra"), pytest.raises(ValueError, match=r"'extra' was forced .* it has no kernel for pgd_step"):
        step()


def test_the_forward_decides_for_the_backward(make_case, extra):
    case = make_case().leaves()
    with use_backend("reference"):
        y, _ = case.fused()
    y.sum().backward()
    assert extra.calls == []
    y, _ = case.fused(backend="extra")
    with use_backend("reference"):
        y.sum().backward()
    assert extra.calls == ["lord_forward", "lord_backward"]


def test_argument_over_context_over_environment(make_case, extra, monkeypatch):
    case = make_case()
    monkeypatch.setenv("LORDFAST_BACKEND", "reference")
    case.fused()
    assert extra.calls == []
    with use_backend("extra"):
        case.fused()
        assert len(extra.calls) == 1
        case.fused(backend="reference")
        assert len(extra.calls) == 1
        with use_backend("reference"):
            case.fused()
        with use_backend(None):
            case.fused()
        assert len(extra.calls) == 1
        case.fused()
        assert len(extra.calls) == 2
    case.fused()
    assert len(extra.calls) == 2


def test_use_backend_restores_after_an_error(make_case, extra):
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    make_case().fused()
    assert extra.calls == ["lord_forward"]


def test_names_are_checked(monkeypatch):
    with (
        pytest.raises(ValueError, match="name is 'gpu'; expected None or one of 'triton', 'native', 'reference'"),
        use_backend("gpu"),
    ):
        pass
    monkeypatch.setenv("LORDFAST_BACKEND", "gpu")
    with pytest.raises(ValueError, match="the environment variable LORDFAST_BACKEND is 'gpu'; expected"):
        step()


def test_environment_forces(monkeypatch):
    monkeypatch.setenv("LORDFAST_BACKEND", "triton")
    with pytest.raises(ValueError, match="LORDFAST_BACKEND=triton was forced but can't run pgd_step here: "):
        step()


def test_native_that_is_not_there(monkeypatch, caplog):
    expected = step()
    monkeypatch.setattr(_native, "C", None)
    monkeypatch.setattr(_native, "reason", "no such file")
    monkeypatch.setattr(dispatch, "_said", set())
    assert available_backends()["native"] == "no such file"
    with caplog.at_level(logging.INFO, "lordfast.ops"):
        assert torch.equal(step(), expected)
    assert "pgd_step: backend native can't run this (no such file); using reference" in caplog.text
    with use_backend("native"), pytest.raises(ValueError, match="can't run pgd_step here: no such file"):
        step()


def test_native_takes_no_float64(make_case, monkeypatch):
    monkeypatch.setattr(_native, "C", SimpleNamespace(cpu_isa=lambda: "avx2"))  # no kernel of it must be asked
    assert step(torch.float64).dtype == torch.float64
    with use_backend("native"), pytest.raises(ValueError, match=r"float32, bfloat16 and float16 only.*torch.float64"):
        step(torch.float64)
    case = make_case().leaves()
    case.fused()[0].sum().backward()
    with use_backend("native"), pytest.raises(ValueError, match=r"float32, bfloat16 and float16 only.*torch.float64"):
        case.fused()


@pytest.mark.skipif(not _native.available, reason=f"no native extension: {_native.reason}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_native_is_chosen_on_the_cpu(make_case, monkeypatch, dtype):
    seen = []
    native = dispatch.BACKENDS["native"].kernels
    spied = {op: Kernel(lambda *args, k=k: (seen.append(1), k.run(*args))[1], k.refuses) for op, k in native.items()}
    backend = Backend(name="native", priority=10, missing=lambda: None, kernels=spied)
    monkeypatch.setattr(dispatch, "BACKENDS", {"native": backend, "reference": dispatch.BACKENDS["reference"]})
    dispatch._ordered.cache_clear()
    y, _ = make_case(dtype=dtype, trainable=torch.float32).leaves().fused()
    y.sum().backward()
    dispatch._ordered.cache_clear()
    assert len(seen) == 2
