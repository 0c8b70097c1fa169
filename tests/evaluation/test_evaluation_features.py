"""Feature modules by every route, and the message where one doesn't come or doesn't fit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lordfast.data import make_faces
from lordfast.diffusion import LatentDiffusion
from lordfast.evaluation.features import extract, load_features
from lordfast.pixels import to_tensor

IMAGES = [face.image for face in make_faces(5, seed=2)]

MODULE = """
import torch

class MeanColour(torch.nn.Module):
    def forward(self, images):
        return images.float().mean(dim=(2, 3))

def make():
    return MeanColour()

def no_module():
    return "features"

def broken():
    raise KeyError("weights.pt")
"""


class Returns(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: torch.Tensor) -> object:
        return self.output


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "lordfast_test_colours.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def mean_colours() -> np.ndarray:
    return np.stack([image.reshape(-1, 3).mean(axis=0) for image in IMAGES])


@torch.no_grad()
def test_vae_features_are_the_pooled_input_of_the_encoders_last_layer(demo_model: LatentDiffusion) -> None:
    features = load_features("vae", model=demo_model)
    encoder = demo_model.vae.encoder
    hidden = encoder.conv_in(to_tensor(IMAGES))
    for block in encoder.down_blocks:
        hidden = block(hidden)
    hidden = torch.nn.functional.silu(encoder.conv_norm_out(encoder.mid_block(hidden)))
    expected = hidden.mean(dim=(2, 3)).double()
    got = extract(features, IMAGES, batch_size=2)
    assert got.shape == (5, 64) and got.dtype == torch.float64
    assert torch.allclose(got, expected, atol=1e-5)
    # The hook is gone: later encodes are not recorded, nor slowed down.
    assert not encoder.conv_act._forward_hooks


def test_a_factory_in_the_current_folder(in_folder: Path) -> None:
    features = load_features("lordfast_test_colours:make")
    seen: list[int] = []
    got = extract(features, iter(IMAGES), batch_size=2, on_batch=seen.append)
    assert np.allclose(got.numpy(), mean_colours(), atol=1e-4)
    assert seen == [2, 2, 1]


def test_a_torchscript_file(tmp_path: Path) -> None:
    class Colours(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean(dim=(2, 3))

    path = tmp_path / "colours.pt"
    torch.jit.trace(Colours(), torch.zeros(1, 3, 64, 64, dtype=torch.uint8)).save(str(path))
    assert np.allclose(extract(load_features(str(path)), IMAGES).numpy(), mean_colours(), atol=1e-4)


def test_a_file_that_is_no_torchscript(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not a network")
    with pytest.raises(ValueError, match=r"features: .*weights\.pt is no TorchScript file"):
        load_features(str(path))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("inceptoin", "features: 'inceptoin' is unknown and no file; expected 'vae', 'inception'"),
        ("lordfast_no_such_module:make", "ModuleNotFoundError: No module named 'lordfast_no_such_module'"),
        ("lordfast_test_colours:makes", "AttributeError: .*'makes'"),
        ("lordfast_test_colours:broken", r"failed with KeyError: 'weights\.pt'"),
        ("lordfast_test_colours:no_module", "gave a str; expected a torch.nn.Module"),
        ("vae", "'vae' needs a model"),
    ],
)
def test_what_can_not_be_loaded_is_explained(in_folder: Path, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_features(spec)


@pytest.mark.parametrize(
    ("output", "got"),
    [
        (torch.zeros(5), r"\(5,\)"),
        (torch.zeros(4, 7), r"\(4, 7\)"),
        (torch.zeros(5, 7, 2, 2), r"\(5, 7, 2, 2\)"),
        ([1.0], "list"),
    ],
)
def test_a_module_of_another_shape(output: object, got: str) -> None:
    with pytest.raises(ValueError, match=rf"expected an output of shape \(5, F\), got {got}"):
        extract(Returns(output), IMAGES)


def test_features_that_are_no_numbers() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        extract(Returns(torch.full((5, 2), float("nan"))), IMAGES)


def test_a_module_that_fails_names_its_input() -> None:
    with pytest.raises(ValueError, match=r"failed on uint8 images \(5, 3, 64, 64\)"):
        extract(nn.Linear(3, 4), IMAGES)


def test_no_images() -> None:
    with pytest.raises(ValueError, match="images: expected at least one"):
        extract(nn.Identity(), [])
