"""Measuring what a LoRA draws, and the LoRA itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lordfast.evaluation.experiments.changes import drawn_change
from lordfast.evaluation.experiments.grid import CellRun, Result
from lordfast.evaluation.experiments.steps import Steps
from lordfast.evaluation.experiments.study.design import Design


@dataclass(frozen=True)
class Pictures:
    """What is measured.

    Attributes:
        drawn: folder of what the LoRA drew.
        reference: clean pictures of the same subject, which it was not trained on.
        clean: what the LoRA of clean pictures drew from the same noise.
        model: options of an evaluation that load the model as it drew: ``lora``, ``lord``, ``prompt``.
    """

    drawn: Path
    reference: Path
    clean: Path
    model: dict[str, Any]

    @property
    def sets(self) -> dict[str, Path]:
        return {"generated": self.drawn, "reference": self.reference}


def measure_pictures(run: CellRun, steps: Steps, design: Design, pictures: Pictures) -> Result:
    """Distances on each kind of features, the change, high frequencies, and two denoising losses."""
    summary = steps.evaluate(
        run, "drawn_set", {**design.evaluate, **pictures.sets, "paired": "off", "features": design.features}
    )
    found: Result = {
        "change": drawn_change(pictures.drawn, pictures.clean),
        "features": summary["distribution"]["sets"],
        "summary": summary,
    }
    # The model as it draws, on pictures it has not seen; and the model alone, on what was drawn.
    alone = {**design.evaluate, "denoising": True, "prompt": pictures.model["prompt"]}
    for kind, options in {
        "held_out": {**alone, **pictures.model, "reference": pictures.reference},
        "drawn": {**alone, "reference": pictures.drawn},
    }.items():
        found[kind] = steps.evaluate(run, kind, options)["denoising"]
    return found
