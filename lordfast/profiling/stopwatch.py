"""One timed call, on inputs that the caches don't hold any more.

A layer of a network is called once a step, and everything else runs in between: its weights, and mostly its inputs,
come from memory. So each call takes the next of several input sets (weights included), and the sets together are at
least twice as large as the last cache. Timing the same few megabytes over and over would measure the cache.

On a CPU a call is timed alone. On CUDA one graph holds a call on each set and is replayed: that leaves out Python and
the launches, which a network under CUDA graphs does not pay either.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import torch

from .accuracy import Outputs

S = TypeVar("S")
Run = Callable[[S], Outputs]
Within = Callable[[], AbstractContextManager[Any]]


def sets_needed(bytes_of_a_set: float, cache: int, *, least: int = 3, most: int = 256) -> int:
    """How many input sets make every call find cold caches: at least twice the cache's size together."""
    return max(least, min(most, math.ceil(2 * cache / max(bytes_of_a_set, 1))))


class Rotation(Generic[S]):
    """Hands out input sets in turn, to all variants together: what one just read is not the next one's input."""

    def __init__(self, sets: Sequence[S]) -> None:
        self.sets = sets
        self._at = -1

    def next(self) -> S:
        """The set that has not been used for longest."""
        self._at = (self._at + 1) % len(self.sets)
        return self.sets[self._at]


class CpuStopwatch(Generic[S]):
    """Seconds of one call, on the next input set."""

    timing = "perf_counter"

    def __init__(
        self, run: Run[S], rotation: Rotation[S], within: Within, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._run, self._rotation, self._within, self._clock = run, rotation, within, clock

    def __call__(self) -> float:
        inputs = self._rotation.next()
        with self._within():
            start = self._clock()
            # Kept until the clock has stopped: freeing the outputs is not the operation's work.
            outputs = self._run(inputs)
            seconds = self._clock() - start
        del outputs
        return seconds


class LaunchStopwatch(Generic[S]):
    """Seconds of one call on CUDA without a graph, all sets in a row: small operations are bound by their launches."""

    timing = "launches"

    def __init__(self, run: Run[S], rotation: Rotation[S], within: Within) -> None:
        self._run, self._rotation, self._within = run, rotation, within
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self) -> float:
        with self._within():
            torch.cuda.synchronize()
            self._start.record()
            for inputs in self._rotation.sets:
                self._run(inputs)
            self._end.record()
            self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3 / len(self._rotation.sets)


class GraphStopwatch(Generic[S]):
    """Seconds of one call on CUDA: a captured graph with a call on each set, timed by events.

    Attributes:
        outputs: what the graph writes for the first set, as the last replay left it.
    """

    timing = "cuda graph"

    def __init__(self, run: Run[S], rotation: Rotation[S], within: Within) -> None:
        sets = rotation.sets
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._calls = len(sets)
        self._graph = torch.cuda.CUDAGraph()
        # Capture wants every lazy initialisation done, on a stream that is not the default one.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with within(), torch.cuda.stream(side):
            for inputs in sets[:3]:
                run(inputs)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        with within(), torch.cuda.graph(self._graph):
            self.outputs = run(sets[0])
            for inputs in sets[1:]:
                run(inputs)
        torch.cuda.synchronize()

    def poisoned_outputs(self) -> Outputs:
        """The first set's outputs after a replay over NaN: work that the graph missed stays visible."""
        with torch.no_grad():
            for tensor in self.outputs.values():
                tensor.fill_(math.nan)
        self._graph.replay()
        torch.cuda.synchronize()
        return self.outputs

    def __call__(self) -> float:
        self._start.record()
        self._graph.replay()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3 / self._calls
