"""Layers in the backward pass, as a track of their own in the trace: the profiler sees only autograd's nodes."""

from __future__ import annotations

from typing import Any

from .layers import LAYER, Layer
from .trace_events import Event, Timeline

TRACK = "layers, backward"
_THREAD = 10**6 + 1


def add_backward_layers(trace: dict[str, Any], timeline: Timeline) -> int:
    """Add to `trace` an event for every stretch in which a backward pass works for one layer; returns how many.

    Args:
        timeline: the events of `trace`.
    """
    stretches: list[list[Event]] = []
    at_work: tuple[int, Layer] | None = None
    for event in sorted(timeline.host, key=lambda event: event.start):
        node = event.parent is None or event.parent.direction == "forward"
        # Gradients are added up in between, for no layer.
        if event.direction != "backward" or not node or event.step is None or event.layer is None:
            continue
        if at_work != (event.step, event.layer):
            stretches.append([])
        at_work = (event.step, event.layer)
        stretches[-1].append(event)
    if not stretches:
        return 0
    process = timeline.steps[0].thread[0]
    events = trace["traceEvents"]
    events.append({"ph": "M", "name": "thread_name", "pid": process, "tid": _THREAD, "args": {"name": TRACK}})
    for stretch in stretches:
        first, last = stretch[0], max(event.end for event in stretch)
        events.append(
            {
                "ph": "X",
                "cat": "layers",
                "name": "" if first.layer is None else first.layer.mark.removeprefix(LAYER),
                "pid": process,
                "tid": _THREAD,
                "ts": first.start,
                "dur": last - first.start,
                "args": {"nodes": len(stretch)},
            }
        )
    return len(stretches)
