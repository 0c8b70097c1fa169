"""What a part of an evaluation is, and what it gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class PartResult:
    """What one part of an evaluation found.

    Attributes:
        summary: its entry in summary.json.
        rows: of metrics.jsonl.
        warnings: sentences for the person.
        unavailable: metric -> why it could not be measured; what has some is measured again when the run is resumed.
    """

    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    warnings: list[str]
    unavailable: dict[str, str] = field(default_factory=dict)


Part = Callable[[], PartResult]
"""Does the work of a part whose input was checked."""


def without(summary: dict[str, Any], metrics: tuple[str, ...], reason: object) -> PartResult:
    """The result of a part none of whose `metrics` could be measured."""
    missing = {name: {"unavailable": str(reason)} for name in metrics}
    return PartResult({**summary, **missing}, [], [], dict.fromkeys(metrics, str(reason)))
