"""What CLIP says of the generated pictures: quality, closeness to the reference, closeness to the prompt."""

from __future__ import annotations

from typing import Any

import torch

from lordfast.diffusion import resolve_device
from lordfast.evaluation.clip import QUALITY, Clip, clip_iqa
from lordfast.evaluation.config import EvaluateConfig
from lordfast.evaluation.inputs import ImageFolder
from lordfast.evaluation.measure import Measure, Unavailable, mean_entry, unavailable
from lordfast.evaluation.parts.base import Part, PartResult, without
from lordfast.evaluation.parts.embeddings import embeddings
from lordfast.evaluation.similarity import mean_cosine

CLIP_METRICS = ("clip_iqa", "clip_i", "clip_t")


def plan_clip(config: EvaluateConfig, source: str, generated: ImageFolder, reference: ImageFolder | None) -> Part:
    """CLIP-IQA and CLIP-T of the generated pictures, and CLIP-I between them and the reference."""
    described = {"model": source}

    def run() -> PartResult:
        device = resolve_device(config.device)
        try:
            clip = Clip(source, device)
        except Unavailable as error:
            return without(described, CLIP_METRICS, error)
        ours = embeddings(clip, config, generated, "generated", device)
        rows: list[dict[str, Any]] = [{"image": record.name} for record in generated.records]
        sampling: dict[str, Any] = {"resamples": config.resamples, "seed": config.seed}

        good, bad = (text.format(config.iqa_subject) for text in QUALITY)
        quality = clip_iqa(ours, *clip.texts([good, bad]))
        found: dict[str, Measure] = {
            "clip_iqa": mean_entry(quality.numpy(), **sampling, prompts=[good, bad], means="P(first prompt)")
        }
        if reference is not None:
            theirs = embeddings(clip, config, reference, "reference", device)
            found["clip_i"], closeness = mean_cosine(ours, theirs, **sampling)
            _into(rows, "clip_i", closeness.tolist())
        _into(rows, "clip_iqa", quality.tolist())
        captions = [config.clip_prompt or record.caption for record in generated.records]
        texts = [text for text in captions if text]
        if texts:
            told = torch.tensor([bool(text) for text in captions])
            cosines = (ours[told] * clip.texts(texts)).sum(dim=1)
            found["clip_t"] = mean_entry(cosines.numpy(), **sampling, without_prompt=len(captions) - len(texts))
            values = iter(cosines.tolist())
            _into(rows, "clip_t", [next(values) if text else None for text in captions])
        missing = {} if texts else {"clip_t": "no prompt was given (--clip-prompt) and the pictures have no captions"}
        if reference is None:
            missing["clip_i"] = "no --reference was given"
        found |= {name: unavailable(reason) for name, reason in missing.items()}
        return PartResult({**described, **found}, rows, [], missing)

    return run


def _into(rows: list[dict[str, Any]], name: str, values: list[Any]) -> None:
    for row, value in zip(rows, values, strict=True):
        row[name] = value
