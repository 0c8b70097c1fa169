"""Layers in the backward pass, as a track of their own in the trace: the profiler sees only autograd's nodes."""

from __future__ import annotations

from typing import Any

from .layers import LAYER
from .trace_events import Event, Timeline

TRACK = "layers, backward"
_THREAD = 10**6 + 1


def add_backward_layers(trace: dict[str, Any], timeline: Timeline) -> int:
    """Add to `trace` an event for every stretch in which a backward pass works for one layer; returns how many.

    Args:
        timeline: the events of `trace`.
    """
    stretches: list[list[Event]] = []
    for event in sorted(timeline.host, key=lambda event: event.start):
        node = event.parent is None or event.parent.direction == "forward"
        if event.direction != "backward" or not node or event.step is None:
            continue
        if not stretches or stretches[-1][-1].layer != event.layer:
            stretches.append([])
        stretches[-1].append(event)
    found = [stretch for stretch in stretches if stretch[0].layer is not None]
    if not found:
        return 0
    process = timeline.steps[0].thread[0]
    events = trace["traceEvents"]
    events.append({"ph": "M", "name": "thread_name", "pid": process, "tid": _THREAD, "args": {"name": TRACK}})
    for stretch in found:
        first, last = stretch[0], max(event.end for event in stretch)
        events.append(
            {
                "ph": "X",
                "cat": "layers",
                "name": first.layer.mark.removeprefix(LAYER) if first.layer is not None else "",
                "pid": process,
                "tid": _THREAD,
                "ts": first.start,
                "dur": last - first.start,
                "args": {"nodes": len(stretch)},
            }
        )
    return len(found)
