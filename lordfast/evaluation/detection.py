"""Lambda as a detector: does the gate (Eq. 4) open for attacked images and stay shut for clean ones?"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from lordfast.adapter import collect_gates, sees_image
from lordfast.diffusion import LatentDiffusion
from lordfast.evaluation.intervals import auroc_interval
from lordfast.evaluation.noise import Example, noised_batches


@dataclass(frozen=True)
class GateReadings:
    """What the gates said about a set of images.

    Attributes:
        layers: names of the L layers that see the image.
        timesteps: the T timesteps.
        logits: (N, T, L) float64, the raw logit, averaged over tokens.
        lambdas: (N, T, L) float64, lambda = sigmoid(logit), averaged over tokens.
    """

    layers: list[str]
    timesteps: list[int]
    logits: Tensor
    lambdas: Tensor


@torch.no_grad()
def read_gates(
    model: LatentDiffusion,
    examples: Iterable[Example],
    timesteps: Sequence[int],
    *,
    seed: int = 0,
    batch_size: int = 8,
    on_batch: Callable[[int], Any] | None = None,
) -> GateReadings:
    """Read the gates of the LoRD in ``model.unet`` on noised images, one forward per timestep.

    The noise depends on (seed, key, timestep) only, so that a clean image and its attacked twin, having one key, get
    the same noise, and the gate can't tell them apart by it.

    Args:
        examples: (key, uint8 image (H, W, 3), caption), all images of one size.
        timesteps: within [0, ``model.timesteps``).
        on_batch: called with the size of each finished batch.

    Raises:
        ValueError: no examples, a timestep out of range, no LoRD, or one in layers that see only the text.
    """
    check_timesteps(timesteps, model.timesteps)
    readings: list[dict[str, Tensor]] = []
    batches = noised_batches(model, examples, timesteps, seed=seed, purpose="gates", batch_size=batch_size)
    for latents, text, noised in batches:
        batch: dict[str, list[Tensor]] = {}
        for noise, times in noised:
            with collect_gates(model.unet) as gates:
                model.predict(model.add_noise(latents, noise, times), times, text)
            for name, logit in gates.items():
                if sees_image(name):
                    batch.setdefault(name, []).append(_over_tokens(logit))
        # (B, T, 2): logit and lambda.
        readings.append({name: torch.stack(values, dim=1) for name, values in batch.items()})
        if on_batch is not None:
            on_batch(len(latents))
    layers = list(readings[0])
    if not layers:
        raise ValueError("the LoRD adapts only layers that read the text: its gates say nothing about the image")
    table = torch.stack([torch.cat([reading[name] for reading in readings]) for name in layers], dim=2)
    return GateReadings(layers, list(timesteps), table[..., 0], table[..., 1])


def check_timesteps(timesteps: Sequence[int], total: int) -> None:
    """Raise a ValueError unless `timesteps` are some different integers within [0, `total`)."""
    wrong = [t for t in timesteps if not 0 <= t < total]
    if not timesteps or wrong or len(set(timesteps)) != len(timesteps):
        raise ValueError(f"timesteps: expected different integers from 0 to {total - 1}, got {list(timesteps)}")


def _over_tokens(logit: Tensor) -> Tensor:
    """(B,) or (B, tokens) logits -> (B, 2): mean logit and mean lambda."""
    flat = logit.double().reshape(len(logit), -1)
    return torch.stack([flat.mean(dim=1), flat.sigmoid().mean(dim=1)], dim=1).cpu()


def auroc(clean: Tensor, attacked: Tensor) -> float:
    """The probability that an attacked image scores above a clean one, ties counting half.

    Args:
        clean, attacked: scores (N,), (M,) of any scale.

    Raises:
        ValueError: an empty set, or scores that are not finite.
    """
    scores = torch.cat([clean, attacked]).double()
    if not len(clean) or not len(attacked) or not bool(torch.isfinite(scores).all()):
        raise ValueError(
            f"scores: expected finite scores of both sets, got {len(clean)} clean, {len(attacked)} attacked"
        )
    labels = torch.cat([torch.zeros(len(clean)), torch.ones(len(attacked))]).long()
    # torchmetrics takes anything outside [0, 1] for logits, and a sigmoid makes ties of large ones; ranks lose nothing.
    values, ranks = torch.unique(scores, return_inverse=True)
    return float(binary_auroc(ranks.double() / len(values), labels))


def _compare(
    clean: GateReadings, attacked: GateReadings, steps: slice | int = slice(None), layers: slice | int = slice(None)
) -> dict[str, float | None]:
    """AUROC with its 95 % interval, and mean lambdas, over the selected timesteps and layers."""

    def per_image(values: Tensor) -> Tensor:
        return values[:, steps, layers].reshape(len(values), -1).mean(dim=1)

    area = auroc(per_image(clean.logits), per_image(attacked.logits))
    low, high = auroc_interval(area, len(clean.logits), len(attacked.logits))
    return {
        "auroc": area,
        "auroc_low": low,
        "auroc_high": high,
        "lambda_clean": float(per_image(clean.lambdas).mean()),
        "lambda_attacked": float(per_image(attacked.lambdas).mean()),
    }


def compare_readings(clean: GateReadings, attacked: GateReadings) -> dict[str, Any]:
    """AUROC of lambda with its 95 % interval, and means of lambda.

    Pooled (mean logit over layers and timesteps), per timestep, per layer, and for each timestep of each layer.

    Raises:
        ValueError: readings of different layers or timesteps.
    """
    if (clean.layers, clean.timesteps) != (attacked.layers, attacked.timesteps):
        raise ValueError("attacked: expected readings of the same layers and timesteps as clean")
    return {
        "clean": len(clean.logits),
        "attacked": len(attacked.logits),
        **_compare(clean, attacked),
        "timesteps": [{"timestep": t, **_compare(clean, attacked, steps=i)} for i, t in enumerate(clean.timesteps)],
        "layers": [{"layer": name, **_compare(clean, attacked, layers=i)} for i, name in enumerate(clean.layers)],
        "cells": [
            {"layer": name, "timestep": t, **_compare(clean, attacked, steps=j, layers=i)}
            for i, name in enumerate(clean.layers)
            for j, t in enumerate(clean.timesteps)
        ],
    }
