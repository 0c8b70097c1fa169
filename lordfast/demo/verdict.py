"""From numbers to sentences: whichever way they went, and no further than their intervals carry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lordfast.report import Measured, Tile, judge
from lordfast.report.numbers import Better, Verdict, decimals, written

_GOOD: Literal["good"] = "good"
_BAD: Literal["bad"] = "bad"


@dataclass(frozen=True)
class Metric:
    """A number that every method has: where it stands in the summary, and what it means.

    `better` is None where neither direction is; such a metric is shown, and decides nothing.
    """

    title: str
    key: str
    better: Better | None
    explanation: str

    def read(self, found: Mapping[str, Any]) -> Measured | None:
        """From what the demo's summary holds of one method."""
        return Measured.read(found.get(self.key))


def _verdicts(
    metrics: Sequence[Metric], one: Mapping[str, Measured | None], other: Mapping[str, Measured | None]
) -> list[tuple[Metric, Measured, Measured, Verdict]]:
    found = []
    for metric in metrics:
        ours, theirs = one[metric.key], other[metric.key]
        if metric.better is not None and ours is not None and theirs is not None:
            found.append((metric, ours, theirs, judge(ours, theirs, metric.better)))
    return found


def contrast(
    question: str,
    metrics: Sequence[Metric],
    one: Mapping[str, Measured | None],
    other: Mapping[str, Measured | None],
    words: tuple[str, str],
    names: tuple[str, str],
) -> Tile:
    """Whether `one` is better than `other`, over all metrics.

    Args:
        words: the answers for better and for worse.
        names: of the two, in a word.
    """
    found = _verdicts(metrics, one, other)
    verdicts = {verdict for *_, verdict in found}
    lines = []
    for metric, ours, theirs, _ in found:
        digits = decimals((ours.value, theirs.value))
        lines.append(
            f"{metric.title}: {written(ours.value, digits)} {names[0]}, {written(theirs.value, digits)} {names[1]}"
        )
    if not found:
        return Tile(question, "Not measured")
    if {"better", "worse"} <= verdicts:
        return Tile(question, "Mixed: the measures disagree", lines)
    for verdict, word, tone in (("better", words[0], _GOOD), ("worse", words[1], _BAD)):
        count = sum(decided == verdict for *_, decided in found)
        if count:
            share = "" if count == len(found) else f", in {count} of {len(found)} measures"
            return Tile(question, word + share, lines, tone)
    if verdicts == {"unknown"}:
        return Tile(question, "Can’t be said", [*lines, "Measured without intervals."])
    return Tile(question, "No clear difference", lines)


def headline(
    metrics: Sequence[Metric], lord: Mapping[str, Any], plain: Mapping[str, Any], name: str = "LoRD + LoRA"
) -> str:
    """The result on attacked images in a sentence: a method, by its `name`, against plain LoRA."""
    one, other = ({metric.key: metric.read(found) for metric in metrics} for found in (lord, plain))
    found = _verdicts(metrics, one, other)
    if not found:
        return f"Nothing was measured that tells {name} from plain LoRA."
    sides: dict[str, list[str]] = {"better": [], "worse": [], "no clear difference": [], "unknown": []}
    for metric, *_, verdict in found:
        sides[verdict].append(metric.title)
    said = []
    if sides["better"]:
        said.append(f"better in {_and(sides['better'])}")
    if sides["worse"]:
        said.append(f"worse in {_and(sides['worse'])}")
    if sides["no clear difference"]:
        said.append(f"not clearly different in {_and(sides['no clear difference'])} (the intervals overlap)")
    if sides["unknown"]:
        nearer = [m.title for m, a, b, v in found if v == "unknown" and (a.value > b.value) == (m.better == "higher")]
        count = f"ahead in {len(nearer)} of {len(sides['unknown'])} measures without an interval"
        said.append(f"{count}, which may be chance")
    return f"On attacked images, compared with plain LoRA, {name} came out {'; '.join(said)}."


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
