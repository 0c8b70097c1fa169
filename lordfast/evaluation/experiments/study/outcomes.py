"""What came out of a study: means, paired differences and the share of the gap that each method closes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lordfast.evaluation.experiments.effects import Estimate, mean_of, paired_difference, recovered_share
from lordfast.evaluation.experiments.grid import Result
from lordfast.evaluation.experiments.study.cells import StudyCells
from lordfast.evaluation.experiments.study.design import Dataset, Exposure
from lordfast.evaluation.experiments.study.measures import Measure, measures_of
from lordfast.evaluation.experiments.study.methods import CLEAN, PLAIN, Method
from lordfast.evaluation.experiments.study.tables import title_of

Values = dict[str, float]
"""Replicate -> value."""


def table_rows(cells: StudyCells, done: Mapping[str, Result]) -> list[dict[str, Any]]:
    """A row per dataset, exposure and method: ``measures`` has, by key, what `effects` says."""
    if not cells.config.draw:
        return []
    measures = measures_of(cells.design.features)
    rows = []
    for dataset in cells.design.datasets:
        found = _values(cells, dataset, measures, done)
        for exposure in cells.design.exposures(dataset):
            for method in cells.design.of(exposure):
                if exposure.attack is None and method.name == PLAIN:
                    # It is the clean LoRA's row.
                    continue
                rows.append(_row(cells, dataset, exposure, method, measures, found))
    return rows


_Found = dict[tuple[Exposure, str], dict[str, dict[str, float | str]]]
"""(exposure, method) -> measure -> replicate -> value, or why there is none."""


def _values(cells: StudyCells, dataset: Dataset, measures: Sequence[Measure], done: Mapping[str, Result]) -> _Found:
    found: _Found = {}
    for exposure in cells.design.exposures(dataset):
        for method in cells.design.of(exposure):
            here = found.setdefault((exposure, method.name), {measure.key: {} for measure in measures})
            for one in cells.replicates[dataset.name]:
                names = (cells.measured(one, exposure, method), cells.compared(one, exposure, method))
                results = {**done.get(names[0], {}), "likeness": done.get(names[1], {}).get("summary", {})}
                for measure in measures:
                    value = measure.read(results)
                    if value is not None:
                        here[measure.key][one.name] = value
    return found


def _row(
    cells: StudyCells, dataset: Dataset, exposure: Exposure, method: Method, measures: Sequence[Measure], found: _Found
) -> dict[str, Any]:
    mine = found[exposure, method.name]
    none: dict[str, dict[str, float | str]] = {}
    clean, attacked = (found.get(key, none) for key in ((Exposure(), CLEAN), (exposure, PLAIN)))
    entries = {}
    for measure in measures:
        values = mine[measure.key]
        numbers = _numbers(values)
        reasons = sorted({value for value in values.values() if isinstance(value, str)})
        if not values and not any(cell[measure.key] for cell in found.values()):
            continue
        entry: dict[str, Any] = {**(mean_of(list(numbers.values())) or _nothing()), "values": numbers}
        if reasons and not numbers:
            entry["unavailable"] = reasons[0]
        entry |= effects(
            numbers,
            clean=None if method.name == CLEAN else _numbers(clean.get(measure.key, {})),
            attacked=None if exposure.attack is None else _numbers(attacked.get(measure.key, {})),
            is_attacked=method.name == PLAIN,
            better=measure.better,
        )
        entries[measure.key] = entry
    counts = [entry["n"] for entry in entries.values()]
    return {
        "dataset": dataset.name,
        "method": method.name,
        "title": title_of(method.name),
        "attack": exposure.attack,
        "eps": exposure.eps,
        "budget": None if exposure.eps is None else dataset.eps.index(exposure.eps),
        "proportion": exposure.proportion,
        "exposure": exposure.title,
        "n": max(counts, default=0),
        "measures": entries,
    }


def effects(
    values: Values,
    *,
    clean: Values | None,
    attacked: Values | None,
    is_attacked: bool = False,
    better: str = "lower",
) -> dict[str, Estimate | None]:
    """What a method does to a measure, over the replicates that have all that is needed.

    Args:
        values: of the method.
        clean: of the LoRA of clean pictures; None for itself.
        attacked: of the plain LoRA of the same attacked pictures; None where nothing was attacked.
        is_attacked: the method is that plain LoRA.
        better: for measures of which more is better, the gap is the other way round, and the share the same.

    Returns:
        ``against_clean`` and ``against_lora``: paired differences, method - other; ``gap_closed``: mean(attacked -
        method) / mean(attacked - clean), with Fieller's interval over replicates. None where it makes no sense.
    """
    sign = 1.0 if better == "lower" else -1.0
    other = attacked is not None and not is_attacked
    gap = None
    if clean is not None and attacked is not None and other:
        turned = [{name: sign * value for name, value in each.items()} for each in (clean, attacked, values)]
        gap = recovered_share(turned[0], turned[1], turned[2])
    return {
        "against_clean": paired_difference(values, clean) if clean is not None else None,
        "against_lora": paired_difference(values, attacked) if attacked is not None and other else None,
        "gap_closed": gap,
    }


def _numbers(values: Mapping[str, float | str]) -> Values:
    return {name: value for name, value in values.items() if not isinstance(value, str)}


def _nothing() -> Estimate:
    return {"value": None, "low": None, "high": None, "n": 0}


def columns(cells: StudyCells, rows: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The measures that any row has."""
    there = {key for row in rows for key in row["measures"]}
    found = [measure for measure in measures_of(cells.design.features) if measure.key in there]
    return [{"key": one.key, "title": one.title, "better": one.better} for one in found]


def gate_rows(cells: StudyCells, done: Mapping[str, Result]) -> list[dict[str, Any]]:
    """A row per dataset, LoRD, attack and budget: AUROC of lambda and its means, over replicates.

    ``cells`` holds the mean over replicates of ``auroc``, ``lambda_clean`` and ``lambda_attacked`` for every layer and
    timestep.
    """
    rows = []
    for dataset in cells.design.datasets:
        exposures = {(e.attack, e.eps): e for e in cells.design.exposures(dataset) if e.attack is not None}
        for method in cells.design.gates:
            for exposure in exposures.values():
                names = {one.name: cells.gate(one, exposure, method) for one in cells.replicates[dataset.name]}
                found = {one: done[name]["detection"] for one, name in names.items() if name in done}
                rows.append(
                    {
                        "dataset": dataset.name,
                        "method": method.lord,
                        "title": title_of(method.lord),
                        "attack": exposure.attack,
                        "eps": exposure.eps,
                        "n": len(found),
                        **_gate_means(found),
                    }
                )
    return rows


_GATE = ("auroc", "lambda_clean", "lambda_attacked")


def _gate_means(found: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    measures: dict[str, Any] = {}
    for key in _GATE:
        values = {one: float(detection[key]) for one, detection in found.items()}
        measures[key] = {**(mean_of(list(values.values())) or _nothing()), "values": values}
    parts = {}
    for part, labels in (("timesteps", ("timestep",)), ("cells", ("layer", "timestep"))):
        grouped: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for detection in found.values():
            for entry in detection[part]:
                grouped.setdefault(tuple(entry[label] for label in labels), []).append(entry)
        parts[part] = [
            {
                **dict(zip(labels, where, strict=True)),
                **{key: sum(entry[key] for entry in entries) / len(entries) for key in _GATE},
            }
            for where, entries in grouped.items()
        ]
    return {"measures": measures, **parts}
