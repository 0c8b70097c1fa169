"""Distances between the two sets of images, on one kind of features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lordfast.data import ImageRecord, load_images
from lordfast.diffusion import LatentDiffusion, TensorCache, resolve_device
from lordfast.evaluation.config import EvaluateConfig
from lordfast.evaluation.distribution import compare
from lordfast.evaluation.features import extract, features_key, load_features
from lordfast.evaluation.inputs import ImageFolder
from lordfast.evaluation.measure import Unavailable
from lordfast.evaluation.pairs import match_names
from lordfast.evaluation.parts.base import Part, PartResult
from lordfast.training.progress import progress

NAMES = {"frechet_distance": "fid", "kernel_distance": "kid"}
"""What the distances are called on Inception's features, and on no others."""


def plan_distribution(
    config: EvaluateConfig, spec: str, generated: ImageFolder, reference: ImageFolder, model: LatentDiffusion | None
) -> Part:
    """Distances between the two sets on the features `spec`.

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
    try:
        features = load_features(spec, model=model, device=device, weights=config.inception_weights)
    except Unavailable as error:
        reason = str(error)
        return lambda: PartResult({"features": spec, "unavailable": reason}, [], [], {f"{spec} features": reason})
    if spec == "vae" and model is not None:
        side = model.check_resolution(config.resolution)
    else:
        side = config.resolution or generated.first_side()
    cache, key = TensorCache(config.cache_dir), features_key(spec, features, device)
    twins = len(match_names(generated.records, reference.records).pairs)

    def measure(records: Sequence[ImageRecord], label: str) -> Tensor:
        with progress(f"{spec} features of {label}", len(records)) as advance:
            images = (image for _, image in load_images(records, side))
            return extract(
                features,
                images,
                device=device,
                batch_size=config.batch_size,
                cache=cache,
                key=key,
                on_batch=advance,
            )

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
        caveats = [f"{spec} features: {text}" if len(config.features) > 1 else text for text in caveats]
        if twins and config.paired != "off" and spec == config.features[0]:
            caveats.append(
                f"{twins} generated images have the name of a reference image: if they are versions of the same "
                "pictures, the sets are not independent, and the kernel distance comes out too low, even far below 0"
            )
        if spec == "inception":
            ends = ("", "_low", "_high")
            summary |= {f"{short}{end}": summary[f"{name}{end}"] for name, short in NAMES.items() for end in ends}
        found = {"features": spec, "resolution": side, **summary}
        # One row, so that a run which measures nothing else has its metrics.jsonl too.
        return PartResult(found, [found], caveats)

    return run
