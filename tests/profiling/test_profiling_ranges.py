"""Phases: nothing until they are recorded, nested marks then, and nothing to torch.compile."""

from __future__ import annotations

import nvtx
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lordfast.ranges import open_phases, phase, recording


@pytest.fixture
def nvtx_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    monkeypatch.setattr(nvtx, "push_range", lambda name, domain: calls.append(f"{domain}+{name}"))
    monkeypatch.setattr(nvtx, "pop_range", lambda domain: calls.append(f"{domain}-"))
    return calls


def test_off_they_are_one_empty_context(nvtx_calls: list[str]) -> None:
    assert phase("a") is phase("b")
    with profile(activities=[ProfilerActivity.CPU]) as found, phase("a"), phase("b"):
        assert open_phases() == ()
        torch.ones(2)
    assert not nvtx_calls and not [e.name for e in found.events() if "phase:" in e.name]


def test_on_they_nest_in_the_trace_and_in_nvtx(nvtx_calls: list[str]) -> None:
    with profile(activities=[ProfilerActivity.CPU]) as found, recording():
        with phase("a"):
            with phase("b"):
                assert open_phases() == ("a", "b")
            assert open_phases() == ("a",)
        assert open_phases() == ()
    events = {e.name: e.time_range for e in found.events() if e.name.startswith("phase:")}
    a, b = events["phase:a"], events["phase:b"]
    assert a.start <= b.start <= b.end <= a.end
    assert nvtx_calls == ["lordfast+phase:a", "lordfast+phase:b", "lordfast-", "lordfast-"]


def test_an_error_closes_them() -> None:
    with pytest.raises(ValueError, match="out"), recording(), phase("a"), phase("b"):
        raise ValueError("out")
    assert open_phases() == ()
    assert phase("a") is phase("b"), "and switches them off"


def test_torch_compile_traces_through_them() -> None:
    def run(x: torch.Tensor) -> torch.Tensor:
        with phase("a"):
            x = x * 2
        with phase("b"):
            return x + 1

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert compiled(torch.ones(2)).tolist() == [3, 3]
    with recording():
        assert compiled(torch.ones(2)).tolist() == [3, 3]
