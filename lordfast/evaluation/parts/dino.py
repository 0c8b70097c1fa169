"""How close the generated pictures are to the reference, as DINO sees it."""

from __future__ import annotations

from lordfast.diffusion import resolve_device
from lordfast.evaluation.config import EvaluateConfig
from lordfast.evaluation.dino import Dino
from lordfast.evaluation.inputs import ImageFolder
from lordfast.evaluation.measure import Unavailable
from lordfast.evaluation.parts.base import Part, PartResult, without
from lordfast.evaluation.parts.embeddings import embeddings
from lordfast.evaluation.similarity import mean_cosine


def plan_dino(config: EvaluateConfig, source: str, generated: ImageFolder, reference: ImageFolder) -> Part:
    """DINO similarity between the generated pictures and the reference."""
    described = {"model": source}

    def run() -> PartResult:
        device = resolve_device(config.device)
        try:
            dino = Dino(source, device)
        except Unavailable as error:
            return without(described, ("dino",), error)
        ours, theirs = (
            embeddings(dino, config, folder, label, device)
            for folder, label in ((generated, "generated"), (reference, "reference"))
        )
        found, values = mean_cosine(ours, theirs, resamples=config.resamples, seed=config.seed)
        names = (record.name for record in generated.records)
        rows = [{"image": name, "dino": value} for name, value in zip(names, values.tolist(), strict=True)]
        return PartResult({**described, "dino": found}, rows, [])

    return run
