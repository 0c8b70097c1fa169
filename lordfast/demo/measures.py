"""The numbers that the demo compares its methods by, each with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lordfast.data import FaceAttributes, LandscapeAttributes, list_images, load_image
from lordfast.demo.agreement import identity_agreement
from lordfast.demo.classifier import load_classifier
from lordfast.evaluation.intervals import student_interval

Measure = dict[str, float | None]
"""``value``, ``low``, ``high``: the ends are None where there is no interval."""


def subject_measures(
    evaluated: dict[str, Any],
    denoised: dict[str, Any],
    generated: Path,
    subject: FaceAttributes | LandscapeAttributes,
    seed: int,
) -> dict[str, Measure]:
    """Metric -> value and 95 % interval over images, of one method's pictures.

    Args:
        evaluated: the summary of ``lordfast evaluate`` for these pictures.
        denoised: the one of the model alone, denoising them.
        generated: their folder.
        subject: what any true picture of the person or place shows.
        seed: of the interval's resampling.
    """
    images = [load_image(record.path) for record in list_images(generated, captions="ignore")]
    agreement = identity_agreement(load_classifier(), images, subject, seed=seed)
    distribution, frequency = evaluated["distribution"], evaluated["frequency"]["generated"]
    return {
        "denoising_loss": _measure(*(denoised["denoising"]["loss"][end] for end in ("value", "low", "high"))),
        "identity_agreement": _measure(agreement["agreement"], agreement["low"], agreement["high"]),
        **{
            name: _measure(*(distribution[f"{name}{end}"] for end in ("", "_low", "_high")))
            for name in ("frechet_distance", "kernel_distance")
        },
        "high_frequencies": _measure(*(frequency[f"amplitude{end}"] for end in ("", "_low", "_high"))),
    }


def auroc_of(detection: dict[str, Any]) -> Measure:
    """How well lambda tells attacked images from clean ones, from the ``detection`` part of an evaluation."""
    return _measure(detection["auroc"], detection["auroc_low"], detection["auroc_high"])


def over_seeds(found: Sequence[dict[str, dict[str, Measure]]]) -> dict[str, dict[str, Measure]]:
    """Method -> metric -> `mean_over` what each seed has there."""
    return {
        method: {metric: mean_over([seed[method][metric] for seed in found]) for metric in metrics}
        for method, metrics in found[0].items()
    }


def mean_over(found: Sequence[Measure]) -> Measure:
    """The one value, with its interval over images; of several seeds the mean, with Student's interval over seeds."""
    if len(found) == 1:
        return found[0]
    values = np.array([measure["value"] for measure in found])
    return _measure(float(values.mean()), *student_interval(values))


def _measure(value: float, low: float | None, high: float | None) -> Measure:
    return {"value": value, "low": low, "high": high}
