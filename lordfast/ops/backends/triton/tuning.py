"""Which configurations a case runs with: measured once per bucket and device, behind a check of what they compute.

On the first use of a bucket every matching row of the table computes random numbers; a row that fails to compile, to
launch or to agree with the reference is thrown out with a line in the log, the fastest of the others is kept in memory
and on disk. If none is left the backend refuses the bucket. Nothing is tuned while a CUDA graph is captured, which
can't be interrupted, nor by the interpreter: those take the first row that matches.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from .cases import Case
from .configs import Config, candidates
from .launch import INTERPRETED
from .store import Store

STEPS = {"lord_forward": ("forward",), "lord_qkv_forward": ("forward",), "lord_backward": ("rows", "dx")}

_log = logging.getLogger("lordfast.ops")


class _Trial(Protocol):
    def run(self, configs: Mapping[str, Config]) -> list[Tensor]: ...

    def complaint(self, outputs: list[Tensor]) -> str | None: ...


def measure(run: Callable[[], Any]) -> float:
    """Milliseconds of one run, the median of many with a cold L2."""
    from triton.testing import do_bench

    return float(do_bench(run, warmup=5, rep=25, return_mode="median"))


def may_tune(case: Case) -> bool:
    """Whether the case's device can be timed now."""
    return not INTERPRETED and case.device.type == "cuda" and not torch.cuda.is_current_stream_capturing()


class Tuner:
    """The configurations of every case, by kernel.

    `trial(case)` makes what is checked and timed by `measure`; `may_tune(case)` says whether now is a time for that.
    """

    def __init__(
        self,
        trial: Callable[[Case], _Trial],
        *,
        measure: Callable[[Callable[[], Any]], float] = measure,
        may_tune: Callable[[Case], bool] = may_tune,
        store: Store | None = None,
    ) -> None:
        self._trial, self._measure, self._may_tune = trial, measure, may_tune
        self._store = store or Store()
        self._known: dict[tuple[torch.device, str], dict[str, Config] | str] = {}
        self._met: dict[Case, dict[str, Config] | str] = {}  # the same without a bucket's name, which takes its time
        self._lock = threading.Lock()

    def configs(self, case: Case) -> dict[str, Config]:
        """One configuration for each kernel of the case's operation; the table's first where the case is refused."""
        found = self._look_up(case)
        return untuned(case) if isinstance(found, str) else found

    def refusal(self, case: Case) -> str | None:
        """Why no configuration is any good for this case, or None."""
        found = self._look_up(case)
        return found if isinstance(found, str) else None

    def _look_up(self, case: Case) -> dict[str, Config] | str:
        found = self._met.get(case)
        if found is not None:
            return found
        key = (case.device, case.bucket)
        with self._lock:  # autograd's threads come here too
            if key not in self._known:
                if not case.m or not self._may_tune(case):
                    return untuned(case)
                self._known[key] = self._stored(case) or self._tuned(case)
            self._met[case] = self._known[key]
            return self._known[key]

    def _stored(self, case: Case) -> dict[str, Config] | None:
        """The choice on disk, if its rows are still in the table."""
        names = self._store.read(case.device).get(case.bucket, {})
        rows = {step: {row.name: row for row in _candidates(case, step)} for step in STEPS[case.op]}
        if not all(names.get(step) in rows[step] for step in rows):
            return None
        return {step: rows[step][names[step]] for step in rows}

    def _tuned(self, case: Case) -> dict[str, Config] | str:
        trial, steps = self._trial(case), STEPS[case.op]
        complaints: dict[tuple[str, ...], str | None] = {}

        def good(configs: dict[str, Config]) -> bool:
            names = tuple(configs[step].name for step in steps)
            if names not in complaints:
                complaints[names] = why = _complaint(trial, configs)
                if why is not None:
                    _log.warning("%s: the Triton configuration %s is out: %s", case.bucket, "+".join(names), why)
            return complaints[names] is None

        combinations = itertools.product(*(_candidates(case, step) for step in steps))
        best = next((c for c in (dict(zip(steps, rows, strict=True)) for rows in combinations) if good(c)), None)
        if best is None:
            return f"none of its configurations computes this correctly here ({next(iter(complaints.values()))})"
        for step in steps:
            times = {
                row: self._measure(lambda configs={**best, step: row}: trial.run(configs))  # type: ignore[misc]
                for row in _candidates(case, step)
                if good({**best, step: row})
            }
            best[step] = min(times, key=lambda row: times[row])
        self._store.add(case.device, case.bucket, {step: best[step].name for step in steps})
        _log.debug("%s: tuned to %s", case.bucket, best)
        return best


def untuned(case: Case) -> dict[str, Config]:
    """The table's choice."""
    return {step: _candidates(case, step)[0] for step in STEPS[case.op]}


def _candidates(case: Case, step: str) -> tuple[Config, ...]:
    rows = candidates(step, case.dtype.itemsize, case.r, case.m, case.h * case.n)
    # Three projections in one launch are the point of q, k, v together: none of them gets a launch of its own for P.
    return tuple(row for row in rows if row.fold == "kernel" or case.op != "lord_qkv_forward")


def _complaint(trial: _Trial, configs: dict[str, Config]) -> str | None:
    try:
        return trial.complaint(trial.run(configs))
    except Exception as error:  # whatever a compiler, a driver or a launcher comes up with: other rows may still do
        return f"{type(error).__name__}: {error}".splitlines()[0]
