"""What is measured of a method's pictures, and where in a measuring cell's result it stands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lordfast.evaluation.experiments.effects_table import short
from lordfast.evaluation.experiments.grid import Result


@dataclass(frozen=True)
class Measure:
    """A column.

    Attributes:
        key: its name in results.json and table.csv.
        title: for people.
        better: which values are.
        path: where its value stands in the cell's result.
    """

    key: str
    title: str
    better: Literal["lower", "higher"]
    path: tuple[str, ...]

    def read(self, result: Result) -> float | str | None:
        """The value; a reason where it is unavailable, None where it was not asked for."""
        found: Any = result
        for part in (*self.path, ""):
            # An evaluation as a whole has a field of this name too, which lists all its reasons.
            if isinstance(found, dict) and isinstance(found.get("unavailable"), str):
                return found["unavailable"]
            if part:
                found = found.get(part) if isinstance(found, dict) else None
        return float(found) if isinstance(found, int | float) else None


def _distances(spec: str, name: str) -> list[Measure]:
    where = ("features", spec)
    # What the field calls FID and KID are these distances of Inception's features.
    frechet, kernel = ("FID", "KID") if spec == "inception" else (f"Frechet, {name}", f"kernel, {name}")
    return [
        Measure(f"frechet-{name}", frechet, "lower", (*where, "frechet_distance")),
        Measure(f"kernel-{name}", kernel, "lower", (*where, "kernel_distance")),
    ]


_OTHERS = [
    Measure("clip-iqa", "CLIP-IQA", "higher", ("likeness", "clip", "clip_iqa", "value")),
    Measure("clip-i", "CLIP-I", "higher", ("likeness", "clip", "clip_i", "value")),
    Measure("clip-t", "CLIP-T", "higher", ("likeness", "clip", "clip_t", "value")),
    Measure("dino", "DINO similarity", "higher", ("likeness", "dino", "dino", "value")),
    Measure("identity", "identity (ISM)", "higher", ("likeness", "identity", "ism", "value")),
    Measure("no-face", "no face found (FDFR)", "lower", ("likeness", "identity", "fdfr", "value")),
    # Paired to the noise, and so by far the least noisy: what the model knows of the subject, and whether what it draws
    # is a picture as the model alone would draw one.
    Measure("held-out", "denoising loss, held-out pictures", "lower", ("held_out", "loss", "value")),
    Measure("drawn", "denoising loss of what is drawn", "lower", ("drawn", "loss", "value")),
    Measure("change", "change, RMS grey levels", "lower", ("change",)),
    Measure(
        "high-frequencies",
        "high frequencies, grey levels",
        "lower",
        ("summary", "frequency", "generated", "amplitude"),
    ),
]


def measures_of(features: Sequence[str]) -> list[Measure]:
    """Every column that a study with these features may have."""
    return [*(measure for spec, name in short(features).items() for measure in _distances(spec, name)), *_OTHERS]
