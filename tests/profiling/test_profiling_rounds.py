"""Rounds, percentiles and rotating inputs, by a clock that the tests turn."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from lordfast.profiling.rounds import Effort, summarize, time_in_turn
from lordfast.profiling.stopwatch import CpuStopwatch, Rotation, sets_needed


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def calls_of(seconds: dict[str, float], clock: Clock, log: list[str]):
    def call(name: str) -> float:
        log.append(name)
        clock.now += seconds[name]
        return seconds[name]

    return {name: (lambda name=name: call(name)) for name in seconds}


def test_every_round_has_every_call_once_in_changing_order():
    clock, log = Clock(), []
    found = time_in_turn(calls_of({"a": 1.0, "b": 2.0, "c": 3.0}, clock, log), Effort(20, 1e9), clock=clock)
    rounds = [tuple(log[i : i + 3]) for i in range(0, len(log), 3)]
    # One round to warm up, then the timed ones.
    assert len(rounds) == 21 and all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 3
    assert {name: t.median for name, t in found.items()} == {"a": 1.0, "b": 2.0, "c": 3.0}
    assert {t.repeats for t in found.values()} == {20}


def test_time_ends_the_rounds_but_not_below_the_least():
    clock, log = Clock(), []
    found = time_in_turn(calls_of({"a": 1.0, "b": 2.0}, clock, log), Effort(100, 30.0, least=5), clock=clock)
    assert found["a"].repeats == found["b"].repeats == 10
    clock, log = Clock(), []
    found = time_in_turn(calls_of({"a": 50.0}, clock, log), Effort(100, 30.0, least=4), clock=clock)
    assert found["a"].repeats == 4


def test_no_calls_no_rounds():
    assert time_in_turn({}, Effort()) == {}


def test_median_and_percentiles():
    timing = summarize([9.0, 1.0, 3.0, 5.0, 7.0, 11.0])
    assert (timing.median, timing.p20, timing.p80, timing.repeats) == (6.0, 3.0, 9.0, 6)
    assert summarize([4.0]).p80 == summarize([4.0]).p20 == summarize([4.0]).median == 4.0


def test_a_slow_moment_does_not_move_the_median():
    clock, delays = Clock(), iter([1.0, 1.0, 500.0, 1.0, 1.0, 1.0])

    def call() -> float:
        seconds = next(delays)
        clock.now += seconds
        return seconds

    assert time_in_turn({"a": call}, Effort(5, 1e9), clock=clock)["a"].median == 1.0


def test_the_stopwatch_times_the_call_and_nothing_around_it():
    clock, log = Clock(), []

    @contextmanager
    def within():
        clock.now += 100
        yield
        clock.now += 1000

    def run(inputs: str) -> dict:
        log.append(inputs)
        clock.now += 3
        return {}

    watch = CpuStopwatch(run, Rotation(["first", "second", "third"]), within, clock)
    assert [watch() for _ in range(4)] == [3, 3, 3, 3]
    assert log == ["first", "second", "third", "first"]


def test_variants_share_the_rotation():
    rotation = Rotation([1, 2, 3])
    seen: dict[str, list[int]] = {"a": [], "b": []}
    watches = [CpuStopwatch(lambda s, name=name: seen[name].append(s) or {}, rotation, Within) for name in seen]
    for _ in range(3):
        for watch in watches:
            watch()
    # What one has just read is not what the other one gets.
    assert seen == {"a": [1, 3, 2], "b": [2, 1, 3]}


class Within:
    def __enter__(self) -> None: ...

    def __exit__(self, *args: object) -> None: ...


@pytest.mark.parametrize(("size", "cache", "count"), [(10, 100, 20), (30, 100, 7), (1000, 100, 3), (1, 10**9, 256)])
def test_the_sets_are_twice_the_cache(size, cache, count):
    assert sets_needed(size, cache) == count
    assert count in (3, 256) or count * size >= 2 * cache
