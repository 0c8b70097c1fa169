"""The high frequencies of both folders."""

from __future__ import annotations

from typing import Any

from lordfast.data import load_image
from lordfast.evaluation.config import EvaluateConfig
from lordfast.evaluation.frequency import SMALLEST, high_frequencies, summarise_frequencies
from lordfast.evaluation.inputs import ImageFolder
from lordfast.evaluation.parts.base import Part, PartResult
from lordfast.training.progress import progress


def plan_frequency(config: EvaluateConfig, generated: ImageFolder, reference: ImageFolder) -> Part:
    """The high frequencies of the images of both folders, each at its own size."""

    def run() -> PartResult:
        summary: dict[str, Any] = {}
        rows: list[dict[str, Any]] = []
        caveats = []
        for label, folder in (("generated", generated), ("reference", reference)):
            measured = []
            with progress(f"frequencies of {label} images", len(folder)) as advance:
                for record in folder.records:
                    image = load_image(record.path)
                    if min(image.shape[:2]) >= SMALLEST:
                        measured.append({"set": label, "image": record.name, **high_frequencies(image)})
                    advance()
            if len(measured) < len(folder):
                caveats.append(f"{len(folder) - len(measured)} {label} images are too small to have frequencies")
            if measured:
                summary[label] = summarise_frequencies(measured, resamples=config.resamples, seed=config.seed)
            rows += measured
        return PartResult(summary, rows, caveats)

    return run
