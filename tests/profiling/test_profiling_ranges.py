"""Phases: nothing until they are recorded, nested marks then, and nothing to torch.compile."""

from __future__ import annotations

import threading

import nvtx
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lordfast.profiling.backward_ranges import backward_ranges
from lordfast.profiling.layers import find_layers
from lordfast.ranges import open_phases, phase, recording


class Net(nn.Module):
    """Attention beside a residual, and a linear layer behind both."""

    def __init__(self, own: bool = True) -> None:
        super().__init__()
        self.attention = Attention(own)
        self.last = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x + self.attention(x=x))


class Attention(nn.Module):
    """Known by its name; around a layer within it work of its own, or only behind it."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own, self.ff = own, FeedForward()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ff(x.tanh() if self.own else x).exp()


class FeedForward(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


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


@pytest.mark.parametrize(("wanted", "own"), [(True, True), (True, False), (False, True)])
def test_a_backward_pass_leaves_ranges_by_layer(wanted: bool, own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(nvtx, "start_range", lambda name, domain: calls.append(name) or name)
    monkeypatch.setattr(nvtx, "end_range", lambda name: calls.append(f"end {name}"))
    net, x = Net(own), torch.ones(2, 4, requires_grad=wanted)
    names = ["net projection|net.last", "net attention|net.attention", "net feed-forward|net.attention.ff"]
    last, attention, inner = (f"layer:{name} backward" for name in names)
    # What is left of attention comes after the layer within it. Without a gradient for x nothing reaches that far, and
    # the end of the pass ends the last turn.
    turns = [last, attention, inner, *([attention] if own else [])] if wanted else [last]
    with backward_ranges(find_layers({"net": net})):
        net(x).sum().backward()
        assert calls == [call for turn in turns for call in (turn, f"end {turn}")]
    net(x).sum().backward()
    assert len(calls) == 2 * len(turns), "nothing stays behind"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_other_threads_are_in_no_phase() -> None:
    seen: list[tuple[str, ...]] = []

    def elsewhere() -> None:
        with phase("b"):
            seen.append(open_phases())

    with recording(), phase("a"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert seen == [("a",)]


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
