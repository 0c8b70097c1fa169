"""The attribute classifier: what a picture shows, also where it is noisy, blurred or attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lordfast.demo.classifier import HEADS, KINDS, AttributeClassifier, labels_of
from lordfast.demo.pretrain.average import Average
from lordfast.demo.pretrain.pictures import Pictures
from lordfast.diffusion import resolve_device
from lordfast.training.loop import Objective, TrainingConfig, train
from lordfast.training.processes import make_accelerator, open_run

NO_LABEL = -100
FACE, LANDSCAPE = KINDS


@dataclass(kw_only=True)
class ClassifierConfig(TrainingConfig):
    """Train the attribute classifier of the embedded model."""

    channels: tuple[int, int, int, int] = (32, 48, 64, 64)
    """Of the trunk, at a half to a sixteenth of the resolution."""
    num_features: int = 64
    """Activations that all heads read."""
    ema_decay: float = 0.995
    """Decay of the averaged weights, which are the product."""


class ClassifierObjective(Objective):
    """The cross-entropy of each head over the pictures that have its attribute, mean over heads."""

    def __init__(self, classifier: AttributeClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, *, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        losses, right = [], []
        for column, scores in enumerate(self.classifier.scores(pixels).values()):
            wanted = labels[:, column]
            # In a small batch no picture may have it, and a mean over nothing is NaN.
            count = (wanted != NO_LABEL).sum().clamp(min=1)
            losses.append(F.cross_entropy(scores.float(), wanted, ignore_index=NO_LABEL, reduction="sum") / count)
            right.append((scores.argmax(dim=1) == wanted).sum() / count)
        return {"loss": torch.stack(losses).mean(), "accuracy": torch.stack(right).mean()}


class LabelledBatches:
    """Pictures of both kinds, most of them damaged a little as `damage` does, and labels (B, heads)."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures
        rows = [labels_of(item) for item in pictures.attributes]
        table = [[_index(name, row) for name in HEADS] for row in rows]
        self._labels = torch.tensor(table)

    def __len__(self) -> int:
        return len(self._pictures)

    def __call__(self, indices: Sequence[int], generators: Sequence[torch.Generator]) -> dict[str, Any]:
        pixels = self._pictures.pixels(indices)
        choices = torch.stack([torch.rand(8, generator=generator) for generator in generators])
        noise = torch.stack([torch.randn(pixels.shape[1:], generator=generator) for generator in generators])
        return {"pixels": damage(pixels, choices, noise), "labels": self._labels[list(indices)]}


def _index(name: str, row: dict[str, Any]) -> int:
    return HEADS[name].index(row[name]) if name in row else NO_LABEL


def damage(pixels: Tensor, choices: Tensor, noise: Tensor) -> Tensor:
    """What generated and attacked pictures suffer: blur, noise, patterns within +-16 grey levels, other light, mirrors.

    A quarter of the pictures keeps its pixels, mirrored or not.

    Args:
        pixels: (B, 3, H, W) in [-1, 1].
        choices: (B, 8) uniform in [0, 1): which damage, and how strong.
        noise: (B, 3, H, W) standard normal.
    """
    mirror, whole, light, blur, coarse, grain, budget, pattern = choices[..., None, None, None].unbind(dim=1)
    pixels = torch.where(mirror < 0.5, pixels.flip(-1), pixels)
    result = (pixels + 1) * (0.92 + 0.16 * light) - 1
    # A binomial blur, and the coarser one of a decoder: both mixed in.
    soft = _blurred(result)
    result = torch.lerp(result, soft, (2 * blur - 1).clamp(min=0))
    half = F.interpolate(F.avg_pool2d(result, 2), scale_factor=2, mode="bilinear")
    result = torch.lerp(result, half, (2 * coarse - 1).clamp(min=0))
    # 1 of [0, 1] is 2 of [-1, 1].
    result = result + 2 * 0.06 * (2 * grain - 1).clamp(min=0) * noise
    fine, wide = noise.sign(), F.interpolate(F.avg_pool2d(noise, 4), scale_factor=4, mode="bilinear").sign()
    result = result + 2 * 16 / 255 * (2 * budget - 1).clamp(min=0) * torch.where(pattern < 0.5, fine, wide)
    return torch.where(whole < 0.25, pixels, result).clamp(-1, 1)


def _blurred(images: Tensor) -> Tensor:
    """Binomial blur with weights 1, 4, 6, 4, 1 along both axes."""
    weights = torch.tensor([1.0, 4, 6, 4, 1]) / 16
    kernel = torch.outer(weights, weights).expand(3, 1, 5, 5)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)


def train_classifier(
    config: ClassifierConfig, pictures: dict[str, Pictures], held_out: dict[str, Pictures]
) -> dict[str, Any]:
    """Train on `pictures` ("faces" and "landscapes") and save the averaged weights in ``config.out / "model"``.

    Returns:
        The summary: steps, loss, and ``accuracy`` of each head on the held-out pictures that have its attribute.
    """
    accelerator = make_accelerator(config.dtype, resolve_device(config.device))
    run = open_run(config, "pretrain", accelerator)
    finished = run.summary()
    if finished is not None:
        return finished
    torch.manual_seed(config.seed)
    classifier = AttributeClassifier(config.channels, config.num_features)
    objective = ClassifierObjective(classifier).to(accelerator.device)
    average = Average(objective, config.ema_decay)
    together = pictures["faces"] + pictures["landscapes"]
    result = train(
        objective,
        LabelledBatches(together),
        config,
        accelerator,
        run=run,
        description="classifier",
        after_update=average.update,
        extras={"average": average},
    )
    average.model.copy_to(classifier.parameters())
    classifier.eval().requires_grad_(False)
    _standardise(classifier, together)
    accuracy = head_accuracy(classifier, held_out["faces"] + held_out["landscapes"])
    if run.write:
        classifier.save(run.path / "model")
    accelerator.wait_for_everyone()
    return run.finish({**result, "accuracy": {name: round(value, 4) for name, value in accuracy.items()}})


def head_accuracy(classifier: AttributeClassifier, pictures: Pictures) -> dict[str, float]:
    """Attribute -> share of the pictures that have it in which the classifier finds the right value."""
    right: dict[str, list[bool]] = {name: [] for name in HEADS}
    for start in range(0, len(pictures), 100):
        images = _as_tensor(pictures.images[start : start + 100]).to(classifier.feature_mean.device)
        best = {name: scores.argmax(dim=1).tolist() for name, scores in classifier.logits(images).items()}
        for index, attributes in enumerate(pictures.attributes[start : start + 100]):
            for name, value in labels_of(attributes).items():
                right[name].append(HEADS[name][best[name][index]] == value)
    return {name: sum(values) / len(values) for name, values in right.items() if values}


def _standardise(classifier: AttributeClassifier, pictures: Pictures) -> None:
    """Make the features of (about 2000 of) `pictures` mean 0 and standard deviation 1."""
    images = pictures.images[:: max(1, len(pictures) // 2000)]
    device = classifier.feature_mean.device
    parts = [classifier(_as_tensor(images[start : start + 100]).to(device)) for start in range(0, len(images), 100)]
    features = torch.cat(parts).double()
    classifier.feature_mean.copy_(features.mean(dim=0))
    # A dead unit would have no deviation to divide by.
    classifier.feature_std.copy_(features.std(dim=0).clamp(min=1e-3))


def _as_tensor(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
