"""Where the time of a traced step goes: by phase, by layer and by operation; what was launched, gaps, and waits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields

from lordfast.ranges import PHASE

from .layers import Direction, Layer
from .trace_events import STEP, Event, Timeline

# Views, memory, and questions about dtypes: nothing is computed.
_FREE_NAMES = """
    as_strided _reshape_alias view alias detach lift_fresh expand t transpose permute select slice squeeze unsqueeze
    unbind split chunk narrow unfold diagonal view_as _unsafe_view resolve_conj resolve_neg
    empty empty_like empty_strided empty_permuted new_empty new_empty_strided resize_ set_
    result_type to is_nonzero item _local_scalar_dense
"""
_FREE = frozenset(f"aten::{name}" for name in _FREE_NAMES.split())
_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy", "cuStreamSynchronize")


@dataclass
class PhaseTime:
    """Of one phase in a step, on average; microseconds.

    Attributes:
        wall: from its beginning to its end.
        own: of that, outside of the phases within it. The rest are of this part alone:
        busy: the host was in operations.
        device: the device worked on what was launched there.
        launches: kernels, or on a CPU operations that compute.
        waits: times that the host waited for a GPU.
    """

    wall: float = 0.0
    own: float = 0.0
    busy: float = 0.0
    device: float = 0.0
    launches: float = 0.0
    waits: float = 0.0


@dataclass
class Spent:
    """Time at work, in microseconds, and launches, in a step on average."""

    time: float = 0.0
    launches: float = 0.0


@dataclass(frozen=True)
class Gap:
    """Time in which nothing ran: no operation on a CPU, no kernel on a GPU; with its phase and its neighbours."""

    time: float
    phases: tuple[str, ...]
    before: str
    after: str


@dataclass
class Summary:
    """A traced step, the average over `steps` of them; times in microseconds.

    Attributes:
        on_device: whether kernels of a GPU were traced; else times and launches are those of the CPU's operations.
        wall: of a step.
        busy: of that, something ran: an operation, or a kernel.
        phases: by path, in the order they came; the empty path is a step's time outside of all.
        layers: by layer (None outside of all) and pass.
        operations: by name; time outside of other operations on a CPU, all of it for a kernel.
        gaps: the longest, longest first.
        waits: how often the host waited for a GPU, by (phases, what made it).
    """

    steps: int
    on_device: bool
    wall: float = 0.0
    busy: float = 0.0
    launches: float = 0.0
    phases: dict[tuple[str, ...], PhaseTime] = field(default_factory=dict)
    layers: dict[tuple[Layer | None, Direction], Spent] = field(default_factory=dict)
    operations: dict[str, Spent] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    waits: dict[tuple[tuple[str, ...], str], float] = field(default_factory=dict)


def summarize_trace(timeline: Timeline, *, gaps: int = 12) -> Summary:
    """The average step of a trace.

    Args:
        gaps: how many gaps to keep.
    """
    marks = timeline.steps
    count = len(marks)
    host = [event for event in timeline.host if event.step is not None]
    device = [event for event in timeline.device if event.step is not None]
    summary = Summary(count, bool(device))
    summary.phases = _phases(host)
    top = [event for event in host if event.is_operation and not event.inside_operation]
    for event in top:
        summary.phases[event.phases].busy += event.duration
    if device:
        # What the last step launched may still run when the host is done with it.
        windows = [(marks[0].start, max(marks[-1].end, *(event.end for event in device)))]
        _device_work(summary, device)
        found = _between(device, windows)
    else:
        windows = [(mark.start, mark.end) for mark in marks]
        _host_work(summary, host, top)
        found = _between([event for event in top if event.thread == marks[0].thread], windows)
    _waits(summary, host)
    summary.wall = sum(end - start for start, end in windows)
    summary.busy = summary.wall - sum(end - start for start, end, *_ in found)
    summary.launches = sum(spent.launches for spent in summary.layers.values())
    _average(summary)
    longest = sorted(found, key=lambda gap: gap[0] - gap[1])[:gaps]
    for start, end, before, after in longest:
        mark = timeline.marks.at((start + end) / 2)
        names = ("" if event is None else event.name for event in (before, after))
        summary.gaps.append(Gap(end - start, () if mark is None else mark.phases, *names))
    return summary


def _average(summary: Summary) -> None:
    """Sums over the steps become what one step has."""
    for name in ("wall", "busy", "launches"):
        setattr(summary, name, getattr(summary, name) / summary.steps)
    for part in (summary.phases, summary.layers, summary.operations):
        for found in part.values():
            for entry in fields(found):
                setattr(found, entry.name, getattr(found, entry.name) / summary.steps)
    summary.waits = {place: times / summary.steps for place, times in summary.waits.items()}


def _phases(host: Iterable[Event]) -> dict[tuple[str, ...], PhaseTime]:
    times: dict[tuple[str, ...], PhaseTime] = defaultdict(PhaseTime)
    for event in host:
        found = times[event.phases]
        begins = event.phases != (() if event.parent is None else event.parent.phases)
        if event.name.startswith(STEP) or (begins and event.name.startswith(PHASE)):
            found.wall += event.duration
    for path, time in times.items():
        inner = (other.wall for deeper, other in times.items() if deeper and deeper[:-1] == path)
        time.own = max(0.0, time.wall - sum(inner))
    return dict(times)


def _host_work(summary: Summary, host: Sequence[Event], top: Iterable[Event]) -> None:
    """Layers and operations of a CPU: time of the outermost operations, launches of the innermost that compute."""
    layers: dict[tuple[Layer | None, Direction], Spent] = defaultdict(Spent)
    operations: dict[str, Spent] = defaultdict(Spent)
    for event in top:
        layers[event.layer, event.direction].time += event.duration
    inner: dict[Event, float] = defaultdict(float)
    computes: set[Event] = set()
    # From the inside out: whatever lies in an event comes after it.
    for event in reversed(host):
        if not event.is_operation:
            continue
        above = event.parent
        while above is not None and not above.is_operation:
            above = above.parent
        launched = event not in computes and event.name not in _FREE
        if launched:
            layers[event.layer, event.direction].launches += 1
            summary.phases[event.phases].launches += 1
        if above is not None:
            inner[above] += event.duration
            if launched or event in computes:
                computes.add(above)
        operations[event.name].time += max(0.0, event.duration - inner[event])
        operations[event.name].launches += 1
    summary.layers, summary.operations = dict(layers), dict(operations)


def _device_work(summary: Summary, device: Iterable[Event]) -> None:
    """Layers and operations of a GPU: its kernels, copies and fills."""
    layers: dict[tuple[Layer | None, Direction], Spent] = defaultdict(Spent)
    operations: dict[str, Spent] = defaultdict(Spent)
    for event in device:
        summary.phases[event.phases].device += event.duration
        summary.phases[event.phases].launches += 1
        for spent in (layers[event.layer, event.direction], operations[event.name]):
            spent.time += event.duration
            spent.launches += 1
    summary.layers, summary.operations = dict(layers), dict(operations)


def _between(
    ran: Sequence[Event], windows: Sequence[tuple[float, float]]
) -> list[tuple[float, float, Event | None, Event | None]]:
    """Where in the windows none of `ran` ran, with its neighbours; `ran` in the order of its beginnings."""
    found: list[tuple[float, float, Event | None, Event | None]] = []
    for start, end in windows:
        reached, before = start, None
        for event in ran:
            if event.end <= start or event.start >= end:
                continue
            if event.start > reached:
                found.append((reached, event.start, before, event))
            if event.end > reached:
                reached, before = event.end, event
        if end > reached:
            found.append((reached, end, before, None))
    return found


def _waits(summary: Summary, host: Iterable[Event]) -> None:
    for event in host:
        if event.name not in _WAITS:
            continue
        cause = event.parent
        while cause is not None and not cause.is_operation:
            cause = cause.parent
        name = event.name if cause is None else f"{event.name} in {cause.name}"
        summary.waits[event.phases, name] = summary.waits.get((event.phases, name), 0.0) + 1
        summary.phases[event.phases].waits += 1
