"""What an attack does and what a purifier undoes, over replicates: means and paired differences with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lordfast.evaluation.experiments.conditions import Condition, measure_names
from lordfast.evaluation.intervals import fieller_interval, student_interval

Estimate = dict[str, Any]
"""``value``, ``low``, ``high`` and ``n``, the replicates behind it. The ends are None where there is no interval."""

Values = Mapping[str, float]
"""Replicate -> distance."""


def mean_of(values: Sequence[float]) -> Estimate | None:
    """The mean with Student's 95 % interval; None of nothing."""
    if not values:
        return None
    low, high = student_interval(np.array(values, float))
    return {"value": float(np.mean(values)), "low": low, "high": high, "n": len(values)}


def paired_difference(one: Values, other: Values) -> Estimate | None:
    """The mean of `one` - `other` over the replicates that have both: what all of a replicate share cancels."""
    return mean_of([one[name] - other[name] for name in sorted(one) if name in other])


def recovered_share(clean: Values, attacked: Values, purified: Values) -> Estimate | None:
    """mean(attacked - purified) / mean(attacked - clean) over the replicates that have all three.

    A ratio of means, not a mean of ratios: in a single replicate, attacked - clean may be next to 0 or below it. The
    interval is Fieller's at 95 %, from both values of each replicate: it holds 0 where that of the paired difference
    does. Where the denominator may be 0 as well (Student's interval of it reaches 0), the share is not bounded and
    there is no interval.

    Returns:
        None without replicates, or where the attack worsened nothing on average: there is nothing to recover.
    """
    names = sorted(name for name in attacked if name in clean and name in purified)
    gains = np.array([attacked[name] - purified[name] for name in names])
    losses = np.array([attacked[name] - clean[name] for name in names])
    if not names or losses.mean() <= 0:
        return None
    low, high = fieller_interval(gains, losses)
    return {"value": float(gains.mean() / losses.mean()), "low": low, "high": high, "n": len(names)}


def table_rows(
    conditions: Sequence[Condition],
    found: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]],
    features: Sequence[str],
) -> list[dict[str, Any]]:
    """A row per condition: ``condition``, ``title``, ``eps``, ``purifier``, ``n``, and ``measures``.

    Each measure has ``features``, ``distance`` and the estimates ``mean``, ``against_clean`` (this - clean),
    ``against_unpurified`` (this - the same without the purifier) and ``recovered`` (of what the attack worsened); those
    that make no sense for the condition, or can't be told yet, are None.

    Args:
        found: condition -> replicate -> features -> distance -> value.
    """

    def values(name: str, spec: str, distance: str) -> Values:
        cells = found.get(name, {}).items()
        return {replicate: cell[spec][distance] for replicate, cell in cells if spec in cell}

    rows = []
    for condition in conditions:
        measures = []
        for spec, distance in measure_names(features):
            mine, clean = values(condition.name, spec, distance), values("clean", spec, distance)
            before = values(condition.before, spec, distance) if condition.before is not None else None
            attacked = before is not None and condition.eps is not None
            measures.append(
                {
                    "features": spec,
                    "distance": distance,
                    "mean": mean_of([mine[name] for name in sorted(mine)]),
                    "against_clean": paired_difference(mine, clean) if condition.name != "clean" else None,
                    "against_unpurified": paired_difference(mine, before) if before is not None else None,
                    "recovered": recovered_share(clean, before, mine) if before is not None and attacked else None,
                }
            )
        rows.append(
            {
                "condition": condition.name,
                "title": condition.title,
                "eps": condition.eps,
                "purifier": condition.purifier,
                "n": len(found.get(condition.name, {})),
                "measures": measures,
            }
        )
    return rows
