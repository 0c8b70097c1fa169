"""LPIPS against its formula on a random network in torchvision's place, and where there is none."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn

from lordfast.data import make_faces
from lordfast.evaluation.measure import Unavailable
from lordfast.evaluation.perceptual import Lpips
from lordfast.pixels import to_tensor

FACE, OTHER = (face.image for face in make_faces(2, seed=3))


def alexnet_features() -> nn.Sequential:
    """The convolutions of AlexNet as torchvision lays them out, random."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)]
        layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
        for before, after in ((192, 384), (384, 256), (256, 256)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.MaxPool2d(3, 2))


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in: as much of torchvision as LPIPS asks for."""
    vision = types.ModuleType("torchvision")
    vision.models = types.SimpleNamespace(  # type: ignore[attr-defined]
        AlexNet_Weights=types.SimpleNamespace(DEFAULT="imagenet"),
        alexnet=lambda weights: types.SimpleNamespace(features=alexnet_features()),
    )
    monkeypatch.setitem(sys.modules, "torchvision", vision)
    monkeypatch.setattr("torchmetrics.functional.image.lpips._TORCHVISION_AVAILABLE", True)
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", True)
    return vision


@torch.no_grad()
def by_hand(one: np.ndarray, other: np.ndarray) -> float:
    """Zhang et al. 2018, Eq. 1: unit feature vectors, squared difference, weighted channels, mean over positions."""
    weights = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/alex.pth"
    linear = torch.load(weights, map_location="cpu", weights_only=True)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    hidden = [(to_tensor([image]) - shift[None, :, None, None]) / scale[None, :, None, None] for image in (one, other)]
    total, layer = 0.0, 0
    for module in alexnet_features():
        hidden = [module(x) for x in hidden]
        if isinstance(module, nn.ReLU):
            unit = [x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt() for x in hidden]
            change = (unit[0] - unit[1]).square() * linear[f"lin{layer}.model.1.weight"]
            total, layer = total + float(change.sum(dim=1).mean()), layer + 1
    return total


@pytest.mark.usefixtures("torchvision")
def test_it_is_the_formula() -> None:
    distance = Lpips("alex")
    assert distance(FACE, FACE) == 0
    values = [distance(FACE, OTHER), distance(OTHER, FACE), distance(FACE, 255 - FACE)]
    expected = [by_hand(FACE, OTHER), by_hand(OTHER, FACE), by_hand(FACE, 255 - FACE)]
    assert values == pytest.approx(expected, rel=1e-3)
    # Each pair by itself, whatever was measured before it.
    assert values[0] == pytest.approx(values[1]) and abs(values[0] - values[2]) > 0.01 * values[0]


@pytest.mark.usefixtures("torchvision")
def test_small_images_have_none_and_other_input_is_refused() -> None:
    distance = Lpips("alex")
    assert distance(FACE[:31], OTHER[:31]) is None
    assert distance(FACE[:32, :32], OTHER[:32, :32]) is not None
    with pytest.raises(ValueError, match=r"reference: expected shape \(64, 64, 3\)"):
        distance(FACE, FACE[:32])


def test_without_torchvision_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchmetrics.functional.image.lpips._TORCHVISION_AVAILABLE", False)
    monkeypatch.setattr("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", False)
    with pytest.raises(Unavailable, match="lpips: alex is a network of torchvision: "):
        Lpips("alex")


def test_without_weights_it_says_so(torchvision: types.ModuleType) -> None:
    def offline(weights: object) -> None:
        raise OSError("no route to host")

    torchvision.models.alexnet = offline  # type: ignore[attr-defined]
    with pytest.raises(Unavailable, match="weights of alex can't be downloaded or read: no route to host"):
        Lpips("alex")
