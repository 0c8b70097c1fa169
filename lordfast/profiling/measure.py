"""A benchmark case from its variants to its rows: numbers first, then the clock, all variants in the same run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Generic

import torch

from .accuracy import LIMIT, Outputs, Verdict, judge, relative_errors
from .costs import Cost
from .results import Row
from .rounds import Effort, Timing, time_in_turn
from .stopwatch import CpuStopwatch, GraphStopwatch, LaunchStopwatch, Rotation, Run, S, Within
from .watch import watch_backends

RATIOS = {"ratio_eager": "eager", "ratio_eager_compiled": "eager_compiled", "ratio_peft": "peft_lora_2r"}
NOT_CHECKED = "not checked"

_log = logging.getLogger("lordfast.profiling")
Stopwatch = CpuStopwatch[Any] | LaunchStopwatch[Any] | GraphStopwatch[Any]
Exact = Callable[[str, S], Outputs]


@dataclass(frozen=True)
class Variant(Generic[S]):
    """One way to compute a case, in one direction.

    Attributes:
        run: one call on an input set; what it returns is checked.
        check: what the gate runs instead, for a `run` that changes its inputs.
        within: a context that is open around every call, outside the clock.
        checked: False for what has no formula to be held against.
        optional: it may fail for reasons of its own (no compiler): a refusal, not a wrong result.
        cost: compulsory work, None where nobody knows.
    """

    name: str
    direction: str
    run: Run[S]
    check: Run[S] | None = None
    within: Within = nullcontext
    checked: bool = True
    optional: bool = False
    cost: Cost | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from the other variants of the case."""
        return self.direction, self.name


@dataclass(frozen=True)
class Checked:
    """What the gate found: the verdict, and the backends that ran."""

    verdict: Verdict
    backends: str = ""


def measure(
    variants: Sequence[Variant[S]],
    sets: Sequence[S],
    exact: Exact[S],
    *,
    bare: str,
    effort: Effort,
    device: torch.device,
    make_stopwatch: Callable[[Variant[S], Rotation[S]], Stopwatch] | None = None,
) -> list[Row]:
    """Check every variant, time those that are right in turn, and make a row of each.

    Args:
        sets: the input sets that calls take in turn; the first `effort.draws` are checked.
        exact: (direction, set) -> the outputs in float64.
        bare: the name of the variant that `ratio_bare` refers to. Ratios are of medians, within a direction.
        make_stopwatch: how to time a variant; the device decides by default.
    """
    checked: dict[tuple[str, str], Checked] = {}
    truths: dict[str, list[Outputs]] = {}
    for direction in dict.fromkeys(v.direction for v in variants):
        truths[direction] = [exact(direction, inputs) for inputs in sets[: effort.draws]]
        checked |= _check([v for v in variants if v.direction == direction], sets, truths[direction])
    rotation = Rotation(sets)
    make_stopwatch = make_stopwatch or (_cuda_stopwatch if device.type == "cuda" else _cpu_stopwatch)
    stopwatches: dict[tuple[str, str], Stopwatch] = {}
    for v in variants:
        if checked[v.key].verdict.gate not in ("ok", NOT_CHECKED):
            continue
        watch = make_stopwatch(v, rotation)
        replayed = _check_replay(v, watch, truths[v.direction][:1])
        if replayed is None:
            stopwatches[v.key] = watch
        else:
            checked[v.key] = Checked(replayed, checked[v.key].backends)
    timings = time_in_turn(stopwatches, effort)
    ordered = sorted(variants, key=lambda v: list(truths).index(v.direction))
    return [_row(v, checked[v.key], stopwatches.get(v.key), timings, bare) for v in ordered]


def _check(
    variants: Sequence[Variant[S]], sets: Sequence[S], truths: Sequence[Outputs]
) -> dict[tuple[str, str], Checked]:
    """The gate of one direction."""
    eager: dict[str, float] = {}
    found: dict[tuple[str, str], Checked] = {}
    # The eager formula sets the limits, so it goes first.
    for v in sorted(variants, key=lambda v: v.name != "eager"):
        if not v.checked:
            found[v.key] = Checked(Verdict(NOT_CHECKED, 0.0))
            continue
        try:
            with v.within(), watch_backends() as seen:
                got = [(v.check or v.run)(inputs) for inputs in sets[: len(truths)]]
        except Exception as error:
            found[v.key] = Checked(_failed(v, error))
            continue
        errors = relative_errors(got, truths)
        if v.name == "eager":
            eager = errors
        found[v.key] = Checked(judge(errors, eager), "+".join(seen))
        if not found[v.key].verdict.ok:
            _log.warning("%s, %s: %s", v.name, v.direction, found[v.key].verdict.gate)
    return found


def _failed(v: Variant[S], error: Exception) -> Verdict:
    """A backend that is forced refuses a case with a ValueError; anything else that it raises is a wrong result."""
    said = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, torch.OutOfMemoryError):
        return Verdict("refused: out of memory", float("nan"))
    if v.optional:
        return Verdict(f"refused: {said[:300]}", float("nan"))
    if isinstance(error, ValueError) and v.name.startswith("lordfast"):
        return Verdict(f"refused: {' '.join(str(error).split())}", float("nan"))
    _log.warning("%s, %s: %s", v.name, v.direction, said)
    return Verdict(f"red: {said[:300]}", float("nan"))


def _cpu_stopwatch(v: Variant[S], rotation: Rotation[S]) -> Stopwatch:
    return CpuStopwatch(v.run, rotation, v.within)


def _cuda_stopwatch(v: Variant[S], rotation: Rotation[S]) -> Stopwatch:
    try:
        return GraphStopwatch(v.run, rotation, v.within)
    except RuntimeError as error:
        _log.warning("%s, %s: no CUDA graph (%s); timed by launches", v.name, v.direction, str(error).splitlines()[0])
        torch.cuda.synchronize()
        return LaunchStopwatch(v.run, rotation, v.within)


def _check_replay(v: Variant[S], watch: Stopwatch, truth: Sequence[Outputs]) -> Verdict | None:
    """None where a graph's replay computes the case again; a kernel on a stream of its own would be missing in it.

    A `run` that changes its inputs is not held against the first result.
    """
    if not isinstance(watch, GraphStopwatch) or not v.checked or v.check is not None:
        return None
    errors = relative_errors([watch.poisoned_outputs()], truth)
    # One draw only, and coarse: what is missing is NaN.
    worst = max(errors.values())
    return None if worst <= 0.1 * LIMIT else Verdict(f"red: the replayed CUDA graph is wrong by {worst:.2e}", worst)


def _row(
    v: Variant[S],
    checked: Checked,
    watch: Stopwatch | None,
    timings: Mapping[tuple[str, str], Timing],
    bare: str,
) -> Row:
    row: Row = {"direction": v.direction, "variant": v.name, "backend": checked.backends, "gate": checked.verdict.gate}
    if v.checked and checked.verdict.error == checked.verdict.error:
        row["error"] = checked.verdict.error
    timing = timings.get(v.key)
    if timing is None or watch is None:
        return row
    row |= {"timing": watch.timing, "repeats": timing.repeats}
    row |= {f"{name}_us": getattr(timing, name) * 1e6 for name in ("median", "p20", "p80")}
    for column, name in {"ratio_bare": bare, **RATIOS}.items():
        other = timings.get((v.direction, name))
        row[column] = timing.median / other.median if other is not None else None
    if v.cost is not None:
        row |= {"gbps": v.cost.bytes / timing.median / 1e9, "gflops": v.cost.flops / timing.median / 1e9}
    return row
