"""Traces: what was planted in a loop shows where it was planted, and made-up events of a GPU are read rightly."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lordfast.adapter import LordConfig
from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.fusion import optimize
from lordfast.profiling.layers import Layer, find_layers
from lordfast.profiling.recorder import Plan, Recording, record
from lordfast.profiling.trace_events import OTHER_THREADS, Timeline, read_events
from lordfast.profiling.trace_layers import TRACK, add_backward_layers
from lordfast.profiling.trace_summary import Summary, summarize_trace
from lordfast.ranges import phase

SLEEP = 0.05


class Net(nn.Module):
    """Two layers, the second checkpointed on request."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)
        self.checkpointed = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return checkpoint(self.second, x, use_reentrant=False) if self.checkpointed else self.second(x)


def traced(net: Net, plan: Plan, work: Callable[[Tensor], Any]) -> Recording:
    x = torch.ones(3, 6)
    with record(plan, find_layers({"net": net}), torch.device("cpu")) as recorder:
        for _ in range(plan.total):
            work(x)
            recorder.step()
    return recorder.found


@pytest.fixture(scope="module")
def planted() -> tuple[Recording, Timeline, Summary]:
    net = Net()

    def work(x: Tensor) -> None:
        with phase("forward"):
            y = net(x)
            with phase("inner"):
                loss = y.sum()
        with phase("think"):
            time.sleep(SLEEP)
        with phase("backward"):
            loss.backward()
        with phase("log"):
            loss.item()

    found = traced(net, Plan(warmup=1, timed=2, traced=3), work)
    timeline = read_events(found.trace)
    return found, timeline, summarize_trace(timeline)


FIRST, SECOND = Layer("net.first", "net projection"), Layer("net.second", "net projection")


def test_a_step_is_as_long_as_the_clock_says(planted: tuple[Recording, Timeline, Summary]) -> None:
    found, timeline, summary = planted
    assert len(found.seconds) == 2 and found.mean == pytest.approx(sum(found.seconds) / 2, rel=0.05)
    assert summary.steps == len(timeline.steps) == 3 and not summary.on_device
    assert SLEEP <= summary.wall / 1e6 <= found.traced_mean * 1.001
    assert found.traced_mean < 2 * summary.wall / 1e6, "of one step"
    assert found.peak_bytes is None


def test_phases_nest_and_add_up(planted: tuple[Recording, Timeline, Summary]) -> None:
    phases = planted[2].phases
    assert [path for path in phases if path] == [
        ("forward",), ("forward", "inner"), ("think",), ("backward",), ("log",),
    ]  # fmt: skip
    forward = phases["forward",]
    assert forward.own == pytest.approx(forward.wall - phases["forward", "inner"].wall)
    assert sum(p.own for p in phases.values()) == pytest.approx(phases[()].wall) == pytest.approx(planted[2].wall)
    assert sum(p.busy for p in phases.values()) == pytest.approx(planted[2].busy)
    assert forward.busy > 0 and phases["forward", "inner"].launches == 1, "one sum"


def test_a_planted_sleep_is_the_longest_gap(planted: tuple[Recording, Timeline, Summary]) -> None:
    summary = planted[2]
    assert [gap.phases for gap in summary.gaps[:3]] == [("think",)] * 3
    assert all(gap.time >= SLEEP * 1e6 for gap in summary.gaps[:3])
    assert summary.gaps[3].time < SLEEP * 1e6
    assert summary.gaps[0].before == "aten::sum"
    assert summary.phases["think",].busy == 0 and summary.phases["think",].own >= SLEEP * 1e6
    assert summary.wall - summary.busy >= SLEEP * 1e6


def test_layers_have_their_operations_in_both_passes(planted: tuple[Recording, Timeline, Summary]) -> None:
    layers = planted[2].layers
    # A product with its bias is one. Backward: the gradients of weight and bias, and of the input where it wants one.
    assert {(layer.name, way): spent.launches for (layer, way), spent in layers.items() if layer is not None} == {
        ("net.first", "forward"): 1,
        ("net.second", "forward"): 1,
        ("net.first", "backward"): 2,
        ("net.second", "backward"): 3,
    }
    assert layers[None, "forward"].launches == 2, "the sum of the outputs, and the one its backward pass begins with"
    assert all(spent.time > 0 for spent in layers.values())
    assert planted[2].launches == sum(spent.launches for spent in layers.values())
    assert planted[2].launches == sum(p.launches for p in planted[2].phases.values())


def test_the_counted_step_agrees(planted: tuple[Recording, Timeline, Summary]) -> None:
    counted = planted[0].counted
    flops = {(place.layer, place.direction): work.flops for place, work in counted.work.items() if work.flops}
    assert flops == {
        (FIRST, "forward"): 2 * 3 * 6 * 5,
        (SECOND, "forward"): 2 * 3 * 5 * 4,
        (FIRST, "backward"): 2 * 3 * 6 * 5,
        (SECOND, "backward"): 2 * 2 * 3 * 5 * 4,
    }
    assert {(phases, name): n for (phases, name, _), n in counted.waits.items()} == {
        (("log",), "_local_scalar_dense"): 1
    }


def test_operations_are_ranked_without_those_they_call(planted: tuple[Recording, Timeline, Summary]) -> None:
    operations = planted[2].operations
    assert operations["aten::addmm"].launches == 2
    assert sum(spent.time for spent in operations.values()) == pytest.approx(planted[2].busy)


def test_the_trace_is_chromes_with_a_track_for_the_backward_pass(planted: tuple[Recording, Timeline, Summary]) -> None:
    found, timeline, _ = planted
    trace = json.loads(json.dumps(found.trace))
    assert add_backward_layers(trace, timeline) == 2 * 3
    events = trace["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X"]
    assert {"phase:forward", "phase:inner", "phase:backward", "phase:log", "step:0", FIRST.mark} <= set(names)
    (track,) = [e["tid"] for e in events if e.get("name") == "thread_name" and e["args"]["name"] == TRACK]
    layers = [e for e in events if e.get("tid") == track and e["ph"] == "X"]
    assert [e["name"] for e in layers] == ["net projection|net.second", "net projection|net.first"] * 3
    backward = [e for e in timeline.host if e.name == "phase:backward" and e.step is not None]
    for i, mark in enumerate(backward):
        one, other = layers[2 * i : 2 * i + 2]
        assert (
            mark.start <= one["ts"] <= one["ts"] + one["dur"] <= other["ts"] <= other["ts"] + other["dur"] <= mark.end
        )


def test_what_is_computed_again_is_a_pass_of_its_own() -> None:
    net = Net()
    net.checkpointed = True
    found = traced(net, Plan(warmup=0, timed=1, traced=1), lambda x: net(x).sum().backward())
    layers = summarize_trace(read_events(found.trace)).layers
    assert layers[SECOND, "recompute"].launches == layers[SECOND, "forward"].launches == 1
    assert (FIRST, "recompute") not in layers
    assert layers[SECOND, "backward"].launches == 3


def test_nothing_stays_behind_when_the_loop_fails() -> None:
    net = Net()
    with pytest.raises(RuntimeError, match="halfway"):

        def work(x: Tensor) -> None:
            net(x)
            if net.first._forward_hooks:
                raise RuntimeError("halfway")

        traced(net, Plan(warmup=0, timed=1, traced=1), work)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert phase("a") is phase("b")


def test_attention_that_is_optimised_stays_so(demo_model: LatentDiffusion) -> None:
    demo_model.unet.add_adapter(LordConfig(r=4, lord_alpha=32), adapter_name="lord")
    optimize(demo_model)
    latents, text = torch.randn(1, 4, 16, 16), demo_model.embed(["one"])
    plan = Plan(warmup=0, timed=1, traced=1)
    with torch.no_grad(), record(plan, find_layers({"unet": demo_model.unet}), torch.device("cpu")) as recorder:
        for _ in range(plan.total):
            demo_model.predict(latents, torch.tensor([3]), text)
            recorder.step()
    operations = summarize_trace(read_events(recorder.found.trace)).operations
    assert operations["lordfast::lord_qkv_forward"].launches == 10, "one for each self-attention"


def test_compiled_modules_are_followed_from_outside() -> None:
    class Block(nn.Linear):
        # torch.compile passes over the forward of torch's own modules.
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight, self.bias)

    net, graphs = Net(), []
    net.second = Block(5, 4)

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    net.second.compile(backend=backend, fullgraph=True)
    call = net.second._compiled_call_impl
    compiled = Layer("net.second", "net Block, compiled")
    assert set(find_layers({"net": net}).values()) == {FIRST, compiled}
    found = traced(net, Plan(warmup=1, timed=1, traced=1), lambda x: net(x).sum().backward())
    assert len(graphs) == 1, "nothing was compiled again"
    assert net.second._compiled_call_impl is call
    layers = summarize_trace(read_events(found.trace)).layers
    assert layers[compiled, "forward"].launches == 1 and layers[compiled, "backward"].launches == 3
    flops = {place.layer: work.flops for place, work in found.counted.work.items() if place.direction == "forward"}
    assert flops[compiled] == 2 * 3 * 5 * 4


@pytest.mark.parametrize("bad", [{"warmup": -1}, {"timed": 0}, {"traced": 0}])
def test_a_plan_has_steps(bad: dict[str, int]) -> None:
    with (
        pytest.raises(ValueError, match=f"{next(iter(bad))}: expected at least"),
        record(Plan(**bad), {}, torch.device("cpu")),
    ):
        pass


def test_a_trace_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="trace: expected marks of steps"):
        read_events({"traceEvents": []})


def gpu_trace() -> dict[str, Any]:
    """Two steps of a made-up GPU trace: a layer forward, its gradient in autograd's thread, and a value read."""
    layer = Layer("unet.mid", "UNet attention")
    events: list[dict[str, Any]] = [{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "python"}}]

    def add(kind: str, name: str, tid: int, start: float, end: float, **args: Any) -> None:
        events.append(
            {"ph": "X", "cat": kind, "name": name, "pid": 0 if kind in ("kernel", "gpu_memcpy") else 1, "tid": tid,
             "ts": base + start, "dur": end - start, "args": args}
        )  # fmt: skip

    for step in range(2):
        base, correlation, number = 5000.0 + 1000 * step, 10 * step, 5 + step
        add("cpu_op", f"step:{step}", 1, 0, 1000)
        add("user_annotation", "phase:forward", 1, 10, 300)
        # It makes no node: the number is that of the next one, which a layer makes.
        add("cpu_op", "aten::empty", 1, 12, 15, **{"Sequence number": number, "Fwd thread id": 0})
        add("cpu_op", layer.mark, 1, 20, 200)
        add("cpu_op", "aten::addmm", 1, 30, 60, **{"Sequence number": number, "Fwd thread id": 0})
        add("cuda_runtime", "cudaLaunchKernel", 1, 40, 45, correlation=correlation + 1)
        add("kernel", "gemm", 7, 100, 150, correlation=correlation + 1)
        # On another stream meanwhile.
        add("kernel", "small", 8, 110, 120, correlation=correlation + 1)
        add("user_annotation", "phase:backward", 1, 300, 800)
        node = {"Sequence number": number, "Fwd thread id": 1}
        add("cpu_op", "autograd::engine::evaluate_function: AddmmBackward0", 2, 350, 500, **node)
        add("cpu_op", "AddmmBackward0", 2, 352, 498, **node)
        add("cpu_op", "aten::mm", 2, 360, 400)
        add("cuda_runtime", "cudaLaunchKernel", 2, 370, 380, correlation=correlation + 2)
        add("kernel", "gemm", 7, 420, 520, correlation=correlation + 2)
        add("cpu_op", "aten::randn", 3, 100, 120)
        # It ends with the phase that it lies in, and another thread's work comes before the next phase.
        add("user_annotation", "phase:tail", 1, 700, 800)
        add("cpu_op", "autograd::engine::evaluate_function: SumBackward0", 2, 801, 803)
        add("cpu_op", "aten::expand", 2, 802, 803)
        add("user_annotation", "phase:log", 1, 805, 950)
        add("cpu_op", "aten::item", 1, 810, 945)
        add("cpu_op", "aten::_local_scalar_dense", 1, 812, 940)
        add("cuda_runtime", "cudaMemcpyAsync", 1, 820, 830, correlation=correlation + 3)
        add("gpu_memcpy", "Memcpy DtoH", 7, 840, 845, correlation=correlation + 3)
        add("cuda_runtime", "cudaStreamSynchronize", 1, 830, 938, correlation=correlation + 4)
    return {"traceEvents": events}


def test_events_of_a_gpu() -> None:
    timeline = read_events(gpu_trace())
    summary = summarize_trace(timeline)
    mid = Layer("unet.mid", "UNet attention")
    assert summary.on_device and summary.steps == 2
    assert (summary.wall, summary.busy, summary.launches) == (1000, 155, 4)
    assert {key: (spent.time, spent.launches) for key, spent in summary.layers.items()} == {
        (mid, "forward"): (60, 2),
        (mid, "backward"): (100, 1),
        (None, "forward"): (5, 1),
    }
    assert {name: (spent.time, spent.launches) for name, spent in summary.operations.items()} == {
        "gemm": (150, 2),
        "small": (10, 1),
        "Memcpy DtoH": (5, 1),
    }
    phases = {path: (p.wall, p.device, p.launches, p.waits) for path, p in summary.phases.items()}
    assert phases["forward",] == (290, 60, 2, 0)
    assert phases["backward",] == (500, 100, 1, 0)
    assert phases["log",] == (145, 5, 1, 1)
    assert summary.phases["backward",].busy == 40, "autograd's thread works for the phase that waits for it"
    assert summary.phases[()].busy == 1
    assert summary.phases[OTHER_THREADS,].busy == 20
    assert summary.waits == {(("log",), "cudaStreamSynchronize in aten::_local_scalar_dense"): 1}


def test_gaps_of_a_gpu_are_where_no_kernel_runs() -> None:
    gaps = summarize_trace(read_events(gpu_trace()), gaps=3).gaps
    # The last copy ends at 5845, the next step's first kernel begins at 6100.
    assert [(gap.time, gap.before, gap.after) for gap in gaps] == [
        (320, "gemm", "Memcpy DtoH"),
        (320, "gemm", "Memcpy DtoH"),
        (270, "gemm", "gemm"),
    ]
    assert gaps[0].phases == ("backward",)


def test_the_backward_track_takes_autograds_own_thread() -> None:
    trace = gpu_trace()
    assert add_backward_layers(trace, read_events(trace)) == 2
    first, second = trace["traceEvents"][-2:]
    assert (first["name"], first["ts"], first["dur"]) == ("UNet attention|unet.mid", 5350, 150)
    assert second["ts"] == 6350
