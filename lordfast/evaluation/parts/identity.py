"""Are the generated pictures still of the same person?"""

from __future__ import annotations

import numpy as np
import torch

from lordfast.data import load_image
from lordfast.diffusion import resolve_device
from lordfast.evaluation.config import EvaluateConfig
from lordfast.evaluation.identity import Backend, Embedding, load_identity
from lordfast.evaluation.inputs import ImageFolder
from lordfast.evaluation.intervals import wilson_interval
from lordfast.evaluation.measure import Measure, Unavailable, entry, unavailable
from lordfast.evaluation.parts.base import Part, PartResult, without
from lordfast.evaluation.similarity import mean_cosine
from lordfast.training.progress import progress


def plan_identity(config: EvaluateConfig, spec: str, generated: ImageFolder, reference: ImageFolder) -> Part:
    """ISM and FDFR of Anti-DreamBooth (Van Le et al. 2023).

    ISM is the cosine of a generated face with the mean of the reference's faces, mean over the pictures in which a face
    is found; FDFR the share of those in which none is.

    Raises:
        ValueError: a backend that is unknown, can't be imported, or doesn't take the first image.
    """
    described = {"backend": spec}
    try:
        backend = load_identity(spec, resolve_device(config.device))
    except Unavailable as error:
        reason = error
        return lambda: without(described, ("ism", "fdfr"), reason)
    # Bad input is found here, before anything is written.
    backend(load_image(generated.records[0].path))

    def run() -> PartResult:
        ours, theirs = (
            _faces(backend, folder, label) for folder, label in ((generated, "generated"), (reference, "reference"))
        )
        missed = [name for name, face in ours.items() if face is None]
        unknown = [name for name, face in theirs.items() if face is None]
        share = len(missed) / len(ours)
        ism, cosines = _similarity(config, ours, theirs)
        summary = {
            **described,
            "ism": ism,
            "fdfr": entry(share, wilson_interval(len(missed), len(ours)), len(ours)),
            "missed_generated": missed,
            "missed_reference": unknown,
        }
        rows = [
            {"image": name, "face": face is not None, "similarity": cosines.get(name)} for name, face in ours.items()
        ]
        caveats = [
            f"no face was found in {len(names)} of {len(folder)} {label} images: {consequence}"
            for label, names, folder, consequence in (
                ("generated", missed, ours, "they count in FDFR, not in ISM"),
                ("reference", unknown, theirs, "ISM does without them"),
            )
            if names
        ]
        absent = {"ism": ism["unavailable"]} if "unavailable" in ism else {}
        return PartResult(summary, rows, caveats, absent)

    return run


def _faces(backend: Backend, folder: ImageFolder, label: str) -> dict[str, Embedding | None]:
    with progress(f"faces in {label} images", len(folder)) as advance:
        found = {}
        for record in folder.records:
            found[record.name] = backend(load_image(record.path))
            advance()
    return found


def _similarity(
    config: EvaluateConfig, ours: dict[str, Embedding | None], theirs: dict[str, Embedding | None]
) -> tuple[Measure, dict[str, float]]:
    """ISM, and the cosine of each picture with a face."""
    seen = {name: face for name, face in ours.items() if face is not None}
    known = [face for face in theirs.values() if face is not None]
    if not seen or not known:
        return unavailable(f"no face was found in any {'reference' if seen else 'generated'} image"), {}
    sizes = sorted({len(face) for face in (*seen.values(), *known)})
    if len(sizes) > 1:
        raise ValueError(f"identity: expected embeddings of one length, got {' and '.join(map(str, sizes))}")
    stacks = (torch.from_numpy(np.stack(list(faces))) for faces in (seen.values(), known))
    found, values = mean_cosine(*stacks, resamples=config.resamples, seed=config.seed, to_mean=True)
    return found, dict(zip(seen, values.tolist(), strict=True))
