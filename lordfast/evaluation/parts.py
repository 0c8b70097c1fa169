"""The parts of an evaluation: each checks its input first, and gives back what does the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lordfast.adapter import load_lord, sees_image
from lordfast.adapter.control import lord_layers
from lordfast.data import ImageRecord, load_image, load_images
from lordfast.data.images import load_fitted
from lordfast.diffusion import LatentDiffusion, resolve_device
from lordfast.evaluation.config import EvaluateConfig
from lordfast.evaluation.detection import GateReadings, check_timesteps, compare_readings, read_gates
from lordfast.evaluation.distribution import compare
from lordfast.evaluation.features import extract, load_features
from lordfast.evaluation.frequency import SMALLEST, high_frequencies, summarise_frequencies
from lordfast.evaluation.inputs import ImageFolder
from lordfast.evaluation.pairs import compare_pair, match_keys, match_names, summarise_pairs
from lordfast.training.progress import progress


@dataclass
class PartResult:
    """What one part of an evaluation found: its entry in summary.json, rows of metrics.jsonl, and warnings."""

    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    warnings: list[str]


Part = Callable[[], PartResult]


def plan_distribution(
    config: EvaluateConfig, generated: ImageFolder, reference: ImageFolder, model: LatentDiffusion | None
) -> Part:
    """Distances between the two sets.

    Raises:
        ValueError: fewer than 2 images in a set, or a feature module that is unknown or doesn't take them.
    """
    for argument, folder in (("generated", generated), ("reference", reference)):
        if len(folder) < 2:
            raise ValueError(
                f"{argument}: distances between sets need at least 2 images, got {len(folder)}; "
                "--no-distribution leaves them out"
            )
    device = model.device if model is not None else resolve_device(config.device)
    features = load_features(config.features, model=model, device=device)
    if config.features == "vae" and model is not None:
        side = model.check_resolution(config.resolution)
    else:
        side = config.resolution or generated.first_side()

    twins = len(match_names(generated.records, reference.records).pairs)

    def measure(records: Sequence[ImageRecord], label: str) -> Tensor:
        with progress(f"features of {label}", len(records)) as advance:
            images = (image for _, image in load_images(records, side))
            return extract(features, images, device=device, batch_size=config.batch_size, on_batch=advance)

    # A module that doesn't fit is bad input: found here, before anything is written.
    extract(features, (image for _, image in load_images(generated.records[:1], side)), device=device)

    def run() -> PartResult:
        summary, caveats = compare(
            measure(generated.records, "generated images"),
            measure(reference.records, "reference images"),
            subsets=config.kid_subsets,
            subset_size=config.kid_subset_size,
            resamples=config.resamples,
            seed=config.seed,
        )
        if twins and config.paired != "off":
            caveats.append(
                f"{twins} generated images have the name of a reference image: if they are versions of the same "
                "pictures, the sets are not independent, and the kernel distance comes out too low, even far below 0"
            )
        found = {"features": config.features, "resolution": side, **summary}
        # One row, so that a run which measures nothing else has its metrics.jsonl too.
        return PartResult(found, [found], caveats)

    return run


def plan_pairs(config: EvaluateConfig, generated: ImageFolder, reference: ImageFolder) -> Part | None:
    """PSNR, SSIM and changes of the images whose names match; None where that is off, or auto and none match.

    Raises:
        ValueError: none match, though pairs are asked for or are all that is left to measure.
    """
    if config.paired == "off":
        return None
    matches = match_names(generated.records, reference.records)
    if not matches.pairs:
        if config.paired == "auto" and (config.distribution or config.frequency):
            return None
        raise ValueError(
            f"paired: no image in {config.generated} has the name of one in {config.reference} (extensions aside), "
            f"for instance {generated.records[0].name} there and {reference.records[0].name} here"
        )

    def run() -> PartResult:
        rows = []
        with progress("pairs", len(matches.pairs)) as advance:
            for ours, theirs in matches.pairs:
                image = load_image(ours.path)
                # As an attack cuts its input: a clean photograph meets its attacked centre crop.
                partner = load_fitted(theirs.path, image.shape[:2])
                rows.append({"image": ours.name, "reference": theirs.name, **compare_pair(image, partner)})
                advance()
        summary, caveats = summarise_pairs(rows)
        summary["unmatched_generated"] = [record.name for record in matches.only_ours]
        summary["unmatched_reference"] = [record.name for record in matches.only_theirs]
        return PartResult(summary, rows, caveats)

    return run


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


def plan_detection(
    config: EvaluateConfig, model: LatentDiffusion, lord: Path, clean: ImageFolder, attacked: ImageFolder
) -> Part:
    """The AUROC of lambda between clean and attacked images. Loads the LoRD into `model`.

    Raises:
        ValueError, FileNotFoundError: a timestep or resolution out of range; no LoRD in `lord`, one that doesn't fit
            the model, or one in layers that see only the text.
    """
    check_timesteps(config.timesteps, model.timesteps)
    side = model.check_resolution(config.resolution)
    load_lord(model.unet, lord)
    if not any(sees_image(name) for name in lord_layers(model.unet)):
        raise ValueError(f"lord: {lord} adapts only layers that read the text; its lambda says nothing about an image")
    captions = {
        key: record.caption
        for folder in (attacked, clean)
        for key, record in zip(match_keys(folder.records), folder.records, strict=True)
        if record.caption
    }

    def read(records: Sequence[ImageRecord], label: str) -> GateReadings:
        keys = dict(zip((record.name for record in records), match_keys(records), strict=True))
        # One caption for both twins, else the gate could tell them apart by the text.
        examples = (
            (keys[record.name], image, captions.get(keys[record.name], ""))
            for record, image in load_images(records, side)
        )
        with progress(f"lambda of {label}", len(records)) as advance:
            return read_gates(
                model,
                examples,
                config.timesteps,
                seed=config.seed,
                batch_size=config.batch_size,
                on_batch=advance,
            )

    def run() -> PartResult:
        one, other = read(clean.records, "clean images"), read(attacked.records, "attacked images")
        twins = match_names(attacked.records, clean.records)
        caveats = []
        alone = len(twins.only_ours) + len(twins.only_theirs)
        if alone:
            caveats.append(
                f"{alone} of {len(clean) + len(attacked)} images have no twin in the other folder: lambda also sees "
                "what else differs between the two sets"
            )
        summary = {"resolution": side, "twins": len(twins.pairs), **compare_readings(one, other)}
        rows = _rows("clean", clean.records, one) + _rows("attacked", attacked.records, other)
        return PartResult(summary, rows, caveats)

    return run


def _rows(label: str, records: Sequence[ImageRecord], readings: GateReadings) -> list[dict[str, Any]]:
    return [
        {
            "set": label,
            "image": record.name,
            "timestep": timestep,
            "logit": float(readings.logits[i, t].mean()),
            "lambda": float(readings.lambdas[i, t].mean()),
        }
        for i, record in enumerate(records)
        for t, timestep in enumerate(readings.timesteps)
    ]
