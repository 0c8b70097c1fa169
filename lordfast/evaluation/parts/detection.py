"""Lambda on clean and on attacked images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lordfast.adapter import load_lord, sees_image
from lordfast.adapter.control import lord_layers
from lordfast.data import ImageRecord, load_images
from lordfast.diffusion import LatentDiffusion
from lordfast.evaluation.config import EvaluateConfig
from lordfast.evaluation.detection import GateReadings, check_timesteps, compare_readings, read_gates
from lordfast.evaluation.inputs import ImageFolder
from lordfast.evaluation.pairs import match_keys, match_names
from lordfast.evaluation.parts.base import Part, PartResult
from lordfast.training.examples import report_cut
from lordfast.training.progress import progress


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
    report_cut(model, list(captions.values()))

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
        keys = {*match_keys(clean.records), *match_keys(attacked.records)}
        if mute := len(keys - captions.keys()):
            caveats.append(f"{mute} of {len(keys)} images have no caption and were read under the empty prompt")
        summary = {"resolution": side, "twins": len(twins.pairs), **compare_readings(one, other)}
        rows = _rows("clean", clean.records, one) + _rows("attacked", attacked.records, other)
        return PartResult(summary, rows, caveats)

    return run


def _rows(label: str, records: Sequence[ImageRecord], readings: GateReadings) -> list[dict[str, Any]]:
    """Of each image its mean over the layers at each timestep, and over all timesteps, which is None there."""
    found = []
    for i, record in enumerate(records):
        of_image = {"set": label, "image": record.name}
        for timestep, logits, lambdas in zip(readings.timesteps, readings.logits[i], readings.lambdas[i], strict=True):
            found.append({**of_image, "timestep": timestep, **_means(logits, lambdas)})
        found.append({**of_image, "timestep": None, **_means(readings.logits[i], readings.lambdas[i])})
    return found


def _means(logits: Tensor, lambdas: Tensor) -> dict[str, float]:
    return {"logit": float(logits.mean()), "lambda": float(lambdas.mean())}
