"""The table of an experiment's results.json, in one shape whichever experiment wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lordfast.report.numbers import Better, Measured

MEAN = "value"


@dataclass(frozen=True)
class Measure:
    """A column.

    Attributes:
        better: None where neither direction is.
    """

    key: str
    title: str
    better: Better | None


@dataclass(frozen=True)
class Row:
    """What one method did to pictures that were treated in one way.

    Attributes:
        method: its short name, such as ``lora``; "" where rows have none.
        title: of the method.
        attack: and its budget, such as ``ace 16/255``; "" for clean pictures.
        setting: what the pictures went through, share included; "" for clean ones.
        dataset: "" where there is one only.
        share: of the pictures that were attacked.
        n: replicates behind it.
        estimates: measure -> kind (`MEAN`, ``gap_closed``, ``against_clean``, ...) -> number with interval.
        reasons: measure -> why it is unavailable.
    """

    method: str
    title: str
    attack: str
    setting: str
    dataset: str
    share: float
    n: int
    estimates: Mapping[str, Mapping[str, Measured]]
    reasons: Mapping[str, str]

    def cell(self, key: str, kind: str = MEAN) -> Measured | str | None:
        """For a table: the number, or that it is unavailable."""
        found = self.estimates.get(key, {}).get(kind)
        return "unavailable" if found is None and kind == MEAN and key in self.reasons else found


def read_outcomes(results: Mapping[str, Any]) -> tuple[list[Measure], list[Row]]:
    """Columns and rows of a results.json."""
    found = results.get("rows") or []
    rows = [_read(row) for row in found if isinstance(row, Mapping)]
    given = results.get("columns")
    if given:
        return [Measure(c["key"], c.get("title", c["key"]), c.get("better")) for c in given], rows
    # In the order in which they come; distances, where it is not said.
    keys = dict.fromkeys(key for row in rows for key in row.estimates)
    return [Measure(key, key, "lower") for key in keys], rows


def _read(row: Mapping[str, Any]) -> Row:
    measures = row.get("measures") or {}
    if isinstance(measures, list):
        measures = {_distance(one): one for one in measures}
    entries = {key: entry for key, entry in measures.items() if isinstance(entry, Mapping)}
    attack, share = _attack(row), row.get("proportion")
    setting = str(row.get("exposure", attack))
    return Row(
        str(row.get("method") or ""),
        _title(row),
        attack,
        "" if setting == "clean" else setting,
        str(row.get("dataset") or ""),
        float(share) if isinstance(share, int | float) else 1.0,
        int(row.get("n") or 0),
        {key: _estimates(entry) for key, entry in entries.items()},
        {key: str(entry["unavailable"]) for key, entry in entries.items() if entry.get("unavailable")},
    )


_ALIASES = {"mean": MEAN, "recovered": "gap_closed"}


def _estimates(entry: Mapping[str, Any]) -> dict[str, Measured]:
    kinds: dict[str, Any] = {MEAN: dict(entry)}
    kinds |= {
        _ALIASES.get(kind, kind): one for kind, one in entry.items() if isinstance(one, dict) and kind != "values"
    }
    read = {kind: Measured.read(one) for kind, one in kinds.items()}
    return {kind: one for kind, one in read.items() if one is not None}


_DISTANCES = {"frechet": "Fréchet", "kernel": "kernel (KID)"}


def _distance(entry: Mapping[str, Any]) -> str:
    """What a distance of an experiment with purifiers is called."""
    if entry.get("features") == "pictures":
        return "change, grey levels"
    module, colon, _ = str(entry.get("features")).partition(":")
    features = module.rpartition(".")[2] if colon else module
    name = str(entry.get("distance"))
    return f"{_DISTANCES.get(name, name)}, {features}"


def _title(row: Mapping[str, Any]) -> str:
    if "condition" not in row:
        return str(row.get("title") or row.get("method", ""))
    purifier = row.get("purifier")
    if row.get("eps") is None:
        return f"clean, {purifier}" if purifier else "clean"
    return str(purifier or "not purified")


def _attack(row: Mapping[str, Any]) -> str:
    if not row.get("eps"):
        return ""
    return f"{row.get('attack') or 'attacked'} {row['eps']}"


def kinds_of(rows: Sequence[Row]) -> list[str]:
    """The kinds of estimates that any row has, besides the mean, in order."""
    return [
        kind
        for kind in dict.fromkeys(kind for row in rows for found in row.estimates.values() for kind in found)
        if kind != MEAN
    ]
