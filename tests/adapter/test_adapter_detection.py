"""The reductions of the detection loss, by hand on gates of made-up logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import lordfast

# Two layers with 2 and 3 tokens that see the image, and one that reads the text, for samples of label 0 and 1.
GATES = {
    "attn1.to_q": torch.tensor([[1.0, -2.0], [0.5, 3.0]]),
    "attn1.to_v": torch.tensor([[-1.0, 0.0, 4.0], [2.0, 2.0, -7.0]]),
    "attn2.to_k": torch.tensor([[50.0], [50.0]]),
}
LABELS = torch.tensor([0, 1])


def bce(logit: float, label: int) -> float:
    return math.log1p(math.exp(-logit if label else logit))


def token(weights: tuple[float, float] = (1, 1)) -> float:
    """Every token of every layer decides."""
    q = (weights[0] * (bce(1, 0) + bce(-2, 0)) + weights[1] * (bce(0.5, 1) + bce(3, 1))) / 4
    v = (weights[0] * (bce(-1, 0) + bce(0, 0) + bce(4, 0)) + weights[1] * (2 * bce(2, 1) + bce(-7, 1))) / 6
    return (q + v) / 2


def sample(weights: tuple[float, float] = (1, 1)) -> float:
    """Every layer decides by the mean of its tokens' logits."""
    q = (weights[0] * bce(-0.5, 0) + weights[1] * bce(1.75, 1)) / 2
    v = (weights[0] * bce(1, 0) + weights[1] * bce(-1, 1)) / 2
    return (q + v) / 2


def pooled(weights: tuple[float, float] = (1, 1)) -> float:
    """All layers decide by the mean of their own means."""
    return (weights[0] * bce(0.25, 0) + weights[1] * bce(0.375, 1)) / 2


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, token),
        ({"det_tokens": "sample"}, sample),
        ({"det_layers": "pooled"}, pooled),
        ({"det_layers": "pooled", "det_tokens": "sample"}, pooled),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_every_reduction_by_hand(options: dict[str, Any], expected: Any) -> None:
    assert float(lordfast.detection_loss(GATES, LABELS, **options)) == pytest.approx(expected(), rel=1e-6)
    weighted = lordfast.detection_loss(GATES, LABELS, weights=torch.tensor([0.25, 3.0]), **options)
    assert float(weighted) == pytest.approx(expected((0.25, 3.0)), rel=1e-6)


def test_gates_of_samples_are_reduced_alike_and_gradients_reach_every_layer() -> None:
    gates = {name: logit.clone().requires_grad_() for name, logit in GATES.items()}
    lordfast.detection_loss(gates, LABELS, det_layers="pooled").backward()
    # d BCE(0.25, 0) = sigmoid(0.25) is spread over 2 samples, 2 layers and a layer's tokens.
    expected = torch.sigmoid(torch.tensor(0.25)) / 2 / 2
    torch.testing.assert_close(gates["attn1.to_q"].grad[0], (expected / 2).expand(2))
    torch.testing.assert_close(gates["attn1.to_v"].grad[0], (expected / 3).expand(3))
    assert gates["attn2.to_k"].grad is None
    of_samples = {name: logit.mean(1) for name, logit in GATES.items()}
    found = [float(lordfast.detection_loss(of_samples, LABELS, det_tokens=kind)) for kind in ("token", "sample")]
    assert found == pytest.approx([sample()] * 2, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"det_layers": "sum"}, "det_layers must be one of mean, pooled, got 'sum'"),
        ({"det_tokens": "pixel"}, "det_tokens must be one of token, sample, got 'pixel'"),
        ({"weights": torch.ones(3)}, r"weights must be a tensor of labels' shape \(2,\), got \(3,\)"),
        ({"weights": 2.0}, r"weights must be a tensor of labels' shape \(2,\), got float"),
    ],
)
def test_other_reductions_and_weights_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lordfast.detection_loss(GATES, LABELS, **options)
