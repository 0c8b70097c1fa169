"""The gate before the clock: a variant is timed only if its numbers are right.

Right is: for every output and gradient, ||err|| / ||exact|| against float64 on the same inputs is at most twice that
of the eager formula in the same dtype. Errors are pooled over several input sets, and tensors named "kind/..." with
the others of their kind. The gate's four gradients are judged as one: the root of their errors' mean square, against
the largest of eager's four. The error of a lone number, as b2's gradient is one, says little from a few draws. No limit
is below fp32's own precision.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

Outputs = Mapping[str, Tensor]
LIMIT = 2.0
# Half a unit in the last place of fp32: eager can be that near by luck, nobody has to be nearer than twice that.
FLOOR = 2.0**-24
GATE_PARAMETERS = frozenset({"w1", "b1", "w2", "b2"})


@dataclass(frozen=True)
class Verdict:
    """`gate` is a result's column: "ok" or "red: why". `error` is that of the tensor nearest to its limit."""

    gate: str
    error: float

    @property
    def ok(self) -> bool:
        """Whether the variant may be timed."""
        return self.gate == "ok"


def relative_errors(got: Sequence[Outputs], exact: Sequence[Outputs]) -> dict[str, float]:
    """||got - exact|| / ||exact|| by kind, pooled over the draws; infinite where shapes or names differ."""
    wrong: dict[str, float] = defaultdict(float)
    size: dict[str, float] = defaultdict(float)
    for mine, truth in zip(got, exact, strict=True):
        for name, reference in truth.items():
            kind, tensor = name.partition("/")[0], mine.get(name)
            if tensor is None or tensor.shape != reference.shape:
                wrong[kind] = math.inf
                continue
            wrong[kind] += float((tensor.detach().double() - reference).square().sum())
            size[kind] += float(reference.double().square().sum())
    return {kind: _ratio(wrong[kind], size[kind]) for kind in wrong}


def _ratio(wrong: float, size: float) -> float:
    if not size:
        return 0.0 if wrong == 0 else math.inf
    return math.sqrt(wrong / size)


def judge(errors: Mapping[str, float], eager: Mapping[str, float]) -> Verdict:
    """Compare a variant's errors with the eager formula's; NaN is never right."""
    errors, eager = _gate_together(errors, _rms), _gate_together(eager, max)
    limits = {name: LIMIT * max(error, FLOOR) for name, error in eager.items()}
    red = [name for name in limits if not errors[name] <= limits[name]]
    if red:
        said = ", ".join(f"{name} {errors[name]:.2e} > {limits[name]:.2e}" for name in red)
        return Verdict(f"red: {said}", max(errors[name] for name in red))
    worst = max(limits, key=lambda name: errors[name] / limits[name])
    return Verdict("ok", errors[worst])


def _gate_together(errors: Mapping[str, float], together: Callable[[Sequence[float]], float]) -> dict[str, float]:
    found = {name: error for name, error in errors.items() if name not in GATE_PARAMETERS}
    gate = [error for name, error in errors.items() if name in GATE_PARAMETERS]
    # max() overlooks a NaN that does not come first.
    return found | ({"gate": math.nan if any(map(math.isnan, gate)) else together(gate)} if gate else {})


def _rms(errors: Sequence[float]) -> float:
    return math.sqrt(sum(error * error for error in errors) / len(errors))
