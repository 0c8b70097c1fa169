"""Steps of a loop under observation: some to warm up, some timed, some traced, one counted."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lordfast.ranges import Mark, recording

from .backward_ranges import backward_ranges
from .count import Counted, counting
from .layers import Layer, tracking
from .trace_events import STEP


@dataclass(frozen=True)
class Plan:
    """How many steps of which kind; they come in this order.

    Attributes:
        warmup: nobody looks at these.
        timed: these run as they always do, between two readings of the clock.
        traced: under torch's profiler, after one that is thrown away, in which it settles.
    """

    warmup: int = 2
    timed: int = 5
    traced: int = 3

    @property
    def total(self) -> int:
        """All steps, the counted one and the profiler's own included."""
        return self.warmup + self.timed + 1 + self.traced + 1


@dataclass
class Recording:
    """What was found.

    Attributes:
        seconds: of each timed step; a device may still be at work when a step ends, `mean` counts that in.
        mean: of a timed step.
        traced_mean: of a traced step.
        trace: in Chrome's format.
        counted: of one step.
        peak_bytes: the most memory in use on a CUDA device in the timed steps, None elsewhere.
    """

    seconds: list[float] = field(default_factory=list)
    mean: float = 0.0
    traced_mean: float = 0.0
    trace: dict[str, Any] = field(default_factory=dict)
    counted: Counted = field(default_factory=Counted)
    peak_bytes: int | None = None


class Recorder:
    """Call `step` after each step of a loop of ``plan.total`` of them; made by `record`."""

    def __init__(
        self,
        plan: Plan,
        layers: Mapping[nn.Module, Layer],
        device: torch.device,
        *,
        nvtx_backward: bool = False,
        on_step: Callable[[], None] | None = None,
    ) -> None:
        self.found = Recording()
        self._plan, self._layers, self._device = plan, layers, device
        self._nvtx_backward, self._on_step = nvtx_backward, on_step
        self._done = 0
        self._open = ExitStack()
        self._mark: Mark | None = None
        self._profiler: Any = None
        self._began = self._last = 0.0
        self._change()

    def step(self, *_: Any) -> None:
        """Another step of the loop is done."""
        self._done += 1
        now, plan = time.perf_counter(), self._plan
        if plan.warmup < self._done <= plan.warmup + plan.timed:
            self.found.seconds.append(now - self._last)
        self._last = now
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None
        self._change()
        if self._on_step is not None:
            self._on_step()

    def _change(self) -> None:
        """Whatever begins or ends where `_done` steps are done."""
        plan, done = self._plan, self._done
        settle = plan.warmup + plan.timed
        count = settle + 1 + plan.traced
        if done == plan.warmup:
            self._synchronize()
            if self._device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self._device)
            self._began = self._last = time.perf_counter()
        if done == settle:
            self._synchronize()
            self.found.mean = (time.perf_counter() - self._began) / plan.timed
            if self._device.type == "cuda":
                self.found.peak_bytes = torch.cuda.max_memory_allocated(self._device)
            self._start_trace()
        if done == settle + 1:
            self._synchronize()
            self._began = time.perf_counter()
        if settle < done < count:
            self._mark = Mark(f"{STEP}{done - settle - 1}")
            self._mark.__enter__()
        if done == count:
            self._synchronize()
            self.found.traced_mean = (time.perf_counter() - self._began) / plan.traced
            self._stop_trace()
            self.found.counted = self._open.enter_context(counting(self._layers))
        if done == count + 1:
            self._open.close()

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _start_trace(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            kinds.append(ProfilerActivity.CUDA)
        self._open.enter_context(recording())
        self._open.enter_context(tracking(self._layers, mark=True))
        if self._nvtx_backward:
            self._open.enter_context(backward_ranges(self._layers))
        self._profiler = self._open.enter_context(profile(activities=kinds))

    def _stop_trace(self) -> None:
        self._open.close()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            if not path.exists():
                raise OSError(f"{path}: the profiler could not write its trace; expected room for it")
            self.found.trace = json.loads(path.read_text(encoding="utf-8"))
        self._profiler = None

    def close(self) -> None:
        """End what is open, also in the middle."""
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None
        self._open.close()


@contextmanager
def record(plan: Plan, layers: Mapping[nn.Module, Layer], device: torch.device, **options: Any) -> Iterator[Recorder]:
    """A `Recorder` that leaves nothing behind, however the loop ends.

    Args:
        layers: the model's layers, from `find_layers`, followed while steps are traced and counted.
        options: ``nvtx_backward``, also leave NVTX ranges for layers in backward passes, which costs time there;
            ``on_step``, called after each step.

    Raises:
        ValueError: a plan without timed or traced steps, or with a negative number.
    """
    for name, least in (("warmup", 0), ("timed", 1), ("traced", 1)):
        if getattr(plan, name) < least:
            raise ValueError(f"{name}: expected at least {least}, got {getattr(plan, name)}")
    recorder = Recorder(plan, layers, device, **options)
    try:
        yield recorder
    finally:
        recorder.close()
