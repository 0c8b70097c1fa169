"""The gate stands before the clock: wrong numbers are never timed, refusals say why, right ones get their ratios."""

from __future__ import annotations

import io
import math

import pytest
import torch
from rich.console import Console

from lordfast.ops.backends.reference.lord import lord_backward, lord_forward
from lordfast.ops.dispatch import BACKENDS
from lordfast.profiling.accuracy import Verdict
from lordfast.profiling.cases import LinearCase
from lordfast.profiling.costs import Cost
from lordfast.profiling.measure import Variant, measure
from lordfast.profiling.rounds import Effort
from lordfast.profiling.session import session
from lordfast.profiling.stopwatch import GraphStopwatch
from lordfast.profiling.watch import watch_backends

DIRECTIONS = ("forward", "forward+backward")
NAMES = ("x", "lord_A", "lord_B", "lord_B_adv", "w1", "b1", "w2", "b2")


def off(t: torch.Tensor) -> torch.Tensor:
    return t * 1.01


def wrong_forward(index):
    def run(*args):
        outputs = list(lord_forward(*args))
        outputs[index] = off(outputs[index])
        return tuple(outputs)

    return run


def wrong_backward(index):
    def run(*args):
        grads = lord_backward(*args)
        grads[index] = off(grads[index])
        return grads

    return run


def test_right_variants_are_timed_with_ratios(run_tiny):
    rows = run_tiny()
    names = ["bare_linear", "eager", "peft_lora_2r", "lordfast", "lordfast:reference"]
    for direction in DIRECTIONS:
        for name in names:
            row = rows[direction, name]
            assert row["gate"] == ("not checked" if name in ("bare_linear", "peft_lora_2r") else "ok"), row
            assert 0 < row["p20_us"] <= row["median_us"] <= row["p80_us"] and row["repeats"] == 2
            for column, other in (
                ("ratio_bare", "bare_linear"),
                ("ratio_eager", "eager"),
                ("ratio_peft", "peft_lora_2r"),
            ):
                assert row[column] == pytest.approx(row["median_us"] / rows[direction, other]["median_us"])
            assert row["ratio_eager_compiled"] is None
        assert rows[direction, "lordfast:reference"]["backend"] == "reference"
        assert 0 < rows[direction, "lordfast:reference"]["error"] < 1e-5
    bare = rows["forward", "bare_linear"]
    assert bare["gflops"] == pytest.approx(2 * 48 * 20 * 16 / bare["median_us"] / 1e3)
    assert (bare["M"], bare["K"], bare["N"], bare["x_grad"]) == (48, 20, 16, 1)


@pytest.mark.parametrize("granularity", ["token", "sample"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_reference_passes_in_every_dtype(run_tiny, dtype, granularity):
    for seed in range(5):
        rows = run_tiny(dtype=dtype, granularity=granularity, seed=seed)
        for direction in DIRECTIONS:
            assert rows[direction, "lordfast:reference"]["gate"] == "ok"


@pytest.mark.parametrize(("index", "name"), [(0, "y"), (1, "gate_logit")])
def test_a_wrong_forward_is_red_and_not_timed(run_tiny, add_backend, index, name):
    add_backend("madeup", lord_forward=wrong_forward(index), lord_backward=lord_backward)
    rows = run_tiny()
    for direction in DIRECTIONS:
        row = rows[direction, "lordfast:madeup"]
        assert row["gate"].startswith(f"red: {name} ") and row["error"] > 1e-3
        assert not {"median_us", "ratio_bare", "gbps", "timing"} & row.keys()
    assert rows["forward", "lordfast"]["gate"] == "ok" and rows["forward", "lordfast"]["median_us"] > 0


@pytest.mark.parametrize(("index", "name"), list(enumerate(NAMES)))
def test_every_gradient_is_checked(run_tiny, add_backend, index, name):
    add_backend("madeup", lord_forward=lord_forward, lord_backward=wrong_backward(index))
    rows = run_tiny()
    assert rows["forward", "lordfast:madeup"]["gate"] == "ok"
    both = rows["forward+backward", "lordfast:madeup"]
    shown = name if name in ("x", "lord_A", "lord_B", "lord_B_adv") else "gate"
    assert both["gate"].startswith(f"red: {shown} ") and both["gate"].count(">") == 1 and "median_us" not in both


def test_a_refusal_says_why(run_tiny, add_backend):
    add_backend("madeup", lord_forward=lord_forward)
    rows = run_tiny()
    assert rows["forward", "lordfast:madeup"]["gate"] == "ok"
    both = rows["forward+backward", "lordfast:madeup"]
    assert both["gate"].startswith("refused: ") and "it has no kernel for lord_backward" in both["gate"]
    assert "median_us" not in both and "error" not in both


def test_a_kernel_that_crashes_is_red(run_tiny, add_backend):
    def crash(*args):
        raise RuntimeError("no such\nthing")

    add_backend("madeup", lord_forward=crash, lord_backward=crash)
    assert run_tiny()["forward", "lordfast:madeup"]["gate"] == "red: RuntimeError: no such thing"


def test_text_layers_have_no_dx(run_tiny):
    rows = run_tiny(LinearCase("sd15", tokens=24, k=20, n=16, batch=2, x_grad=False))
    assert {row["gate"] for row in rows.values()} <= {"ok", "not checked"} | {
        row["gate"] for row in rows.values() if row["gate"].startswith("refused: ")
    }
    assert rows["forward+backward", "lordfast"]["x_grad"] == 0 and rows["forward+backward", "lordfast"]["gate"] == "ok"
    # One call's compulsory FLOPs: the bare layer has nothing to do backwards.
    bare = [rows[direction, "bare_linear"] for direction in DIRECTIONS]
    assert bare[0]["gflops"] * bare[0]["median_us"] == pytest.approx(bare[1]["gflops"] * bare[1]["median_us"])


def test_wrong_numbers_make_the_exit_status(run_tiny, add_backend, tmp_path):
    text = io.StringIO()
    with session("cpu", 1, tmp_path / "good.csv", Console(file=text)) as run:
        run.run([("tiny", lambda: list(run_tiny().values()))], "test")
        assert run.finish() == 0
    add_backend("madeup", lord_forward=wrong_forward(0), lord_backward=lord_backward)
    with session("cpu", 1, tmp_path / "bad.csv", Console(file=text, width=200)) as run:
        run.run([("tiny", lambda: list(run_tiny().values()))], "test")
        assert run.finish() == 1
    assert "Not timed, its numbers are wrong" in text.getvalue() and "lordfast:madeup" in text.getvalue()


def test_watching_backends_leaves_no_trace():
    kernels = [kernel for backend in BACKENDS.values() for kernel in backend.kernels.values()]
    before = [kernel.run for kernel in kernels]
    with pytest.raises(RuntimeError, match="inside"), watch_backends() as seen:
        assert seen == [] and all(k.run is not run for k, run in zip(kernels, before, strict=True))
        raise RuntimeError("inside")
    assert all(k.run is run for k, run in zip(kernels, before, strict=True))


class _Replay(GraphStopwatch):
    """A graph whose replays give what the test says, after a capture that never happened."""

    def __init__(self, outputs):
        self._outputs = outputs

    def poisoned_outputs(self):
        return self._outputs

    def __call__(self):
        return 1.0


@pytest.mark.parametrize(("replayed", "fine"), [(2.0, True), (math.nan, False), (0.0, False)])
def test_a_graph_that_misses_the_work_is_red(replayed, fine):
    variants = [Variant("eager", "forward", lambda s: {"y": s * 2}, cost=Cost(1, 1))]
    rows = measure(
        variants,
        [torch.ones(3)] * 2,
        lambda direction, s: {"y": s.double() * 2},
        bare="eager",
        effort=Effort(2, 0.0, least=2, draws=1),
        device=torch.device("cpu"),
        make_stopwatch=lambda v, rotation: _Replay({"y": torch.full((3,), replayed)}),
    )
    assert (rows[0]["gate"] == "ok") == fine and ("median_us" in rows[0]) == fine
    if not fine:
        assert "the replayed CUDA graph is wrong" in rows[0]["gate"]


def test_an_optional_variant_that_fails_is_refused():
    def fail(s):
        raise ImportError("no compiler")

    variants = [
        Variant("eager", "forward", lambda s: {"y": s * 2}),
        Variant("eager_compiled", "forward", fail, optional=True),
    ]
    rows = measure(
        variants,
        [torch.ones(3)],
        lambda direction, s: {"y": s.double() * 2},
        bare="eager",
        effort=Effort(1, 0.0, least=1, draws=1),
        device=torch.device("cpu"),
    )
    assert [row["gate"] for row in rows] == ["ok", "refused: ImportError: no compiler"]
    assert Verdict("ok", 0.0).ok
