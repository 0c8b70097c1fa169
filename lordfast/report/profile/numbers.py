"""profile.json: what a recording found, as plain numbers. Times are milliseconds of one step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lordfast.profiling.ceilings import Ceilings
from lordfast.profiling.count import Counted, Work, mfu
from lordfast.profiling.layers import Direction, Layer
from lordfast.profiling.recorder import Plan, Recording
from lordfast.profiling.trace_summary import PhaseTime, Spent, Summary

OUTSIDE = "outside of the layers"
REST = "outside of the phases"
Key = tuple[Layer | None, Direction]


@dataclass
class _Group:
    """Layers of one kind in one pass."""

    spent: Spent
    work: Work
    names: set[str]


def numbers(found: Recording, summary: Summary, plan: Plan, ceilings: Ceilings, dtype: str) -> dict[str, Any]:
    """Everything that was measured.

    Args:
        dtype: whose matrix-product rate is the ceiling.
    """
    counted = found.counted
    waits = _waits(summary, counted)
    passes: dict[str, Work] = {name: Work() for name in ("forward", "backward", "recompute")}
    for place, work in counted.work.items():
        passes[place.direction].add(work)
    model_flops = passes["forward"].flops + passes["backward"].flops
    return {
        "steps": {"timed": plan.timed, "traced": plan.traced},
        "seconds": found.mean,
        "seconds_each": found.seconds,
        "seconds_traced": found.traced_mean,
        "peak_bytes": found.peak_bytes,
        "ceilings": {"gbps": ceilings.gbps, "gflops": ceilings.gflops},
        "flops": {**{name: work.flops for name, work in passes.items()}, "model": model_flops},
        "bytes": sum(work.bytes for work in passes.values()),
        "mfu": mfu(model_flops, found.mean, ceilings, dtype),
        "on_device": summary.on_device,
        "step": {
            "wall_ms": summary.wall / 1e3,
            "busy_ms": summary.busy / 1e3,
            "launches": summary.launches,
            "waits": sum(row["per_step"] for row in waits),
        },
        "phases": _phases(summary, counted, waits),
        "kinds": [
            _group(kind, direction, group, ceilings, dtype) for (kind, direction), group in _kinds(summary, counted)
        ],
        "layers": _layers(summary, counted),
        "operations": _operations(summary),
        "gaps": [
            {"ms": gap.time / 1e3, "phase": _path(gap.phases), "after": gap.before, "before": gap.after}
            for gap in summary.gaps
        ],
        "waits": waits,
    }


def _path(phases: Iterable[str]) -> str:
    return "/".join(phases)


def _phases(summary: Summary, counted: Counted, waits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    work: dict[tuple[str, ...], Work] = defaultdict(Work)
    for place, done in counted.work.items():
        work[place.phases].add(done)
    rank = {path: index for index, path in enumerate(summary.phases)}

    def order(path: tuple[str, ...]) -> list[int]:
        """In the order in which they began, each before those within it."""
        return [rank[path[:depth]] for depth in range(1, len(path) + 1)]

    paths = sorted((path for path in summary.phases if path), key=order)
    rows = [_phase(_path(path), path, summary, work[path], waits) for path in paths]
    rest = _phase("", (), summary, work[()], waits)
    return [*rows, {**rest, "phase": REST, "wall_ms": rest["own_ms"]}]


def _phase(
    name: str, path: tuple[str, ...], summary: Summary, work: Work, waits: list[dict[str, Any]]
) -> dict[str, Any]:
    time = summary.phases.get(path, PhaseTime())
    return {
        "phase": name,
        "depth": max(0, len(path) - 1),
        "wall_ms": time.wall / 1e3,
        "own_ms": time.own / 1e3,
        "busy_ms": time.busy / 1e3,
        "device_ms": time.device / 1e3 if summary.on_device else None,
        "launches": time.launches,
        "waits": sum(row["per_step"] for row in waits if row["phase"] == name),
        "flops": work.flops,
        "bytes": work.bytes,
    }


def _kinds(summary: Summary, counted: Counted) -> list[tuple[tuple[str, str], _Group]]:
    groups: dict[tuple[str, str], _Group] = {}

    def group(layer: Layer | None, direction: str) -> _Group:
        kind = OUTSIDE if layer is None else layer.kind
        found = groups.setdefault((kind, direction), _Group(Spent(), Work(), set()))
        if layer is not None:
            found.names.add(layer.name)
        return found

    for (layer, direction), spent in summary.layers.items():
        target = group(layer, direction).spent
        target.time += spent.time
        target.launches += spent.launches
    for place, work in counted.work.items():
        group(place.layer, place.direction).work.add(work)
    return sorted(groups.items(), key=lambda item: -item[1].spent.time)


def _group(kind: str, direction: str, group: _Group, ceilings: Ceilings, dtype: str) -> dict[str, Any]:
    layers, seconds = len(group.names), group.spent.time / 1e6
    flops, moved = group.work.flops, group.work.bytes
    intensity = flops / moved if moved else None
    reached = flops / seconds / 1e9 if seconds and flops else None
    roof = None if not intensity else min(ceilings.gflops[dtype], intensity * ceilings.gbps)
    return {
        "kind": kind,
        "pass": direction,
        "layers": layers,
        "ms": group.spent.time / 1e3,
        "launches": group.spent.launches,
        "launches_per_layer": group.spent.launches / layers if layers else None,
        "flops": flops,
        "bytes": moved,
        "intensity": intensity,
        "gflops": reached,
        "gbps": moved / seconds / 1e9 if seconds and moved else None,
        "of_roof": reached / roof if reached and roof else None,
    }


def _layers(summary: Summary, counted: Counted) -> list[dict[str, Any]]:
    work: dict[Key, Work] = defaultdict(Work)
    for place, done in counted.work.items():
        work[place.layer, place.direction].add(done)
    rows = []
    for key in sorted({*summary.layers, *work} - {(None, d) for d in ("forward", "backward", "recompute")}, key=str):
        layer, direction = key
        spent, done = summary.layers.get(key, Spent()), work.get(key, Work())
        if layer is not None:
            rows.append(
                {
                    "layer": layer.name,
                    "kind": layer.kind,
                    "pass": direction,
                    "ms": spent.time / 1e3,
                    "launches": spent.launches,
                    "flops": done.flops,
                    "bytes": done.bytes,
                }
            )
    return rows


def _operations(summary: Summary, most: int = 15) -> list[dict[str, Any]]:
    ranked = sorted(summary.operations.items(), key=lambda item: -item[1].time)
    return [{"name": name, "ms": spent.time / 1e3, "calls": spent.launches} for name, spent in ranked[:most]]


def _waits(summary: Summary, counted: Counted) -> list[dict[str, Any]]:
    """What made the host wait, with the lines of code that the counted step found for it.

    On a CPU nothing waits. There it is what the counted step read, which leaves out what kernels of the CPU read
    themselves: those of a GPU are others.
    """
    found: dict[tuple[tuple[str, ...], str], float] = dict(summary.waits)
    if not summary.on_device:
        for (phases, operation, _), reads in counted.waits.items():
            key = (phases, f"aten::{operation}")
            found[key] = found.get(key, 0.0) + reads
    rows = []
    for (phases, name), times in sorted(found.items(), key=lambda item: -item[1]):
        short = name.rpartition("::")[2]
        lines = [
            {"line": line, "times": found_there}
            for (where, operation, line), found_there in counted.waits.most_common()
            if where == phases and operation == short
        ]
        rows.append({"phase": _path(phases), "operation": name, "per_step": times, "lines": lines})
    return rows
