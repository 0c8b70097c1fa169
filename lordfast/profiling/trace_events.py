"""A trace of torch.profiler in Chrome's format, read back: every event with its step, its phases and its layer."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lordfast.ranges import PHASE

from .layers import LAYER, Direction, Layer

STEP = "step:"
"""What the mark of a step begins with; its number follows."""

OTHER_THREADS = "other threads"
"""The phase of what threads did that the steps don't wait for."""

_HOST = {"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"}
_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
_NODE = "autograd::engine::evaluate_function"


@dataclass(eq=False)
class Event:
    """An event of the trace; times in microseconds.

    Attributes:
        kind: ``cpu_op``, ``user_annotation``, ``cuda_runtime``, ``kernel``, ``gpu_memcpy`` and so on, as in the trace.
        number: autograd's sequence number of an operation that makes a node, and of the node in a backward pass.
        correlation: what a launch and its kernels share.
        step: which step it began in, None outside of all.
        phases: those that were open, the outermost first; `layer` and `direction` likewise.
    """

    name: str
    kind: str
    thread: tuple[Any, Any]
    start: float
    end: float
    number: int | None = None
    correlation: int | None = None
    parent: Event | None = None
    step: int | None = None
    phases: tuple[str, ...] = ()
    layer: Layer | None = None
    direction: Direction = "forward"

    @property
    def duration(self) -> float:
        return self.end - self.start

    @property
    def is_operation(self) -> bool:
        """Whether work is done in it: an operation of ATen's or of a library's, or code that was compiled."""
        if self.name.startswith("## Call CompiledFxGraph"):
            return True
        others = ("autograd::", "torch::autograd", PHASE, LAYER)
        return self.kind == "cpu_op" and "::" in self.name and not self.name.startswith(others)

    @property
    def inside_operation(self) -> bool:
        """Whether an event around it is an operation."""
        above = self.parent
        while above is not None:
            if above.is_operation:
                return True
            above = above.parent
        return False


@dataclass
class Timeline:
    """The events of a trace: of the host, each after the one it lies in, and of the device, in the order they began.

    Attributes:
        marks: which phase was open when.
    """

    host: list[Event]
    device: list[Event]
    marks: Marks

    @property
    def steps(self) -> list[Event]:
        """The marks of the steps, in order."""
        return [event for event in self.host if event.name.startswith(STEP)]


def read_events(trace: Mapping[str, Any]) -> Timeline:
    """The events of a trace; what lies outside of its steps has no step.

    Raises:
        ValueError: there is no step in it.
    """
    threads: dict[tuple[Any, Any], list[Event]] = defaultdict(list)
    device: list[Event] = []
    for raw in trace["traceEvents"]:
        kind = raw.get("cat")
        if raw.get("ph") != "X" or kind not in _HOST | _DEVICE:
            continue
        args, start = raw.get("args", {}), float(raw["ts"])
        thread = (raw.get("pid"), raw.get("tid"))
        number, correlation = args.get("Sequence number"), args.get("correlation")
        event = Event(raw["name"], kind, thread, start, start + float(raw["dur"]), number, correlation)
        (device if kind in _DEVICE else threads[thread]).append(event)
    main = next((name for name, events in threads.items() if any(e.name.startswith(STEP) for e in events)), None)
    if main is None:
        raise ValueError("trace: expected marks of steps in it, got none")
    for events in threads.values():
        _nest(events)
    layers = _place_main(threads[main])
    marks = Marks(threads[main])
    for name, events in threads.items():
        if name != main:
            _place_other(events, marks, layers)
    # The main thread first: gaps are those of its events.
    host = threads.pop(main) + [event for events in threads.values() for event in events]
    device.sort(key=lambda event: event.start)
    _place_device(device, host)
    return Timeline(host, device, marks)


def _nest(events: list[Event]) -> None:
    """Sort one thread's events and give each the one that it lies in."""
    events.sort(key=lambda event: (event.start, -event.end))
    above: list[Event] = []
    for event in events:
        while above and above[-1].end <= event.start:
            above.pop()
        event.parent = above[-1] if above else None
        above.append(event)


def _place(event: Event, layers: Mapping[int, Layer | None]) -> None:
    """Step, phases and layer of an event, from those of its parent and its own name."""
    above = event.parent
    if above is not None:
        event.step, event.phases = above.step, above.phases
        event.layer, event.direction = above.layer, above.direction
    if event.name.startswith(STEP):
        event.step = int(event.name.removeprefix(STEP))
    elif event.name.startswith(PHASE):
        event.phases = (*event.phases, event.name.removeprefix(PHASE))
    elif event.name.startswith(LAYER):
        event.layer = Layer.of_mark(event.name)
        # A layer's forward pass within a backward pass is gradient checkpointing.
        event.direction = "forward" if event.direction == "forward" else "recompute"
    elif event.name.startswith(_NODE):
        event.direction = "backward"
        event.layer = None if event.number is None else layers.get(event.number)


def _place_main(events: list[Event]) -> dict[int, Layer | None]:
    """Place the events of the thread that runs the steps; returns the layer of each of autograd's numbers.

    An operation bears the number of the next node to be made, so of several with one number the last has made it.
    """
    layers: dict[int, Layer | None] = {}
    for event in events:
        _place(event, layers)
        if event.number is not None and event.direction == "forward":
            layers[event.number] = event.layer
    return layers


class Marks:
    """The steps and phases of the main thread, by time."""

    def __init__(self, events: Iterable[Event]) -> None:
        self._marks = [event for event in events if event.name.startswith((STEP, PHASE))]
        self._starts = [mark.start for mark in self._marks]

    def at(self, time: float) -> Event | None:
        """The innermost one that is open at `time`."""
        index = bisect_right(self._starts, time) - 1
        found = self._marks[index] if index >= 0 else None
        while found is not None and (found.end <= time or not found.name.startswith((STEP, PHASE))):
            found = found.parent
        return found


def _place_other(events: Iterable[Event], marks: Marks, layers: Mapping[int, Layer | None]) -> None:
    """Place the events of another thread: autograd's, which works for the phase that waits for it, or any."""
    for event in events:
        _place(event, layers)
        if event.parent is None:
            mark = marks.at(event.start)
            event.step = None if mark is None else mark.step
            event.phases = mark.phases if mark is not None and event.name.startswith(_NODE) else (OTHER_THREADS,)


def _place_device(device: Iterable[Event], host: Iterable[Event]) -> None:
    launches = {e.correlation: e for e in host if e.correlation is not None}
    for event in device:
        launch = None if event.correlation is None else launches.get(event.correlation)
        if launch is not None:
            event.parent = launch
            event.step, event.phases = launch.step, launch.phases
            event.layer, event.direction = launch.layer, launch.direction
