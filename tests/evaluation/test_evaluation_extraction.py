"""Rows are made once: the next evaluation finds them on disk, and anything that changes them is another row."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lordfast.diffusion import LatentDiffusion, TensorCache
from lordfast.evaluation.extraction import extract_rows, weights_key
from lordfast.evaluation.features import VaeFeatures, extract, features_key, load_features

IMAGES = [np.full((4, 4 + i, 3), 10 * i, np.uint8) for i in range(5)]
CPU = torch.device("cpu")


class Counting:
    """Mean and width of each image, and how many were asked for at a time."""

    def __init__(self, shift: float = 0.0) -> None:
        self.shift, self.sizes = shift, []

    def __call__(self, images: list[np.ndarray]) -> torch.Tensor:
        self.sizes.append(len(images))
        return torch.tensor([[image.mean() + self.shift, image.shape[1]] for image in images])


def test_rows_come_from_disk_the_second_time(tmp_path: Path) -> None:
    cache, encode = TensorCache(tmp_path), Counting()
    seen: list[int] = []
    first = extract_rows(encode, IMAGES, batch_size=2, cache=cache, key="a", on_batch=seen.append)
    assert encode.sizes == [2, 2, 1] and seen == [2, 2, 1]
    assert first.dtype == torch.float64
    assert first.tolist() == [[10.0 * i, 4.0 + i] for i in range(5)]
    again = extract_rows(encode, IMAGES[::-1], batch_size=3, cache=TensorCache(tmp_path), key="a", on_batch=seen.append)
    assert len(encode.sizes) == 3, "nothing was computed"
    assert torch.equal(again, first.flip(0)) and seen[3:] == [3, 2]


def test_only_new_images_are_computed_and_other_networks_share_nothing(tmp_path: Path) -> None:
    cache, encode = TensorCache(tmp_path), Counting()
    extract_rows(encode, IMAGES[:3], cache=cache, key="a")
    changed = IMAGES[1].copy()
    changed[0, 0, 0] += 3
    mixed = extract_rows(encode, [IMAGES[0], changed, IMAGES[2], IMAGES[3]], cache=cache, key="a")
    assert encode.sizes == [3, 2]
    assert mixed[:, 1].tolist() == [4, 5, 6, 7] and mixed[1, 0] == pytest.approx(changed.mean())
    other = Counting(shift=1.0)
    assert extract_rows(other, IMAGES[:1], cache=cache, key="b")[0, 0] == 1.0
    assert other.sizes == [1]


@pytest.mark.parametrize("key", [None, "a"])
def test_without_a_key_or_a_folder_nothing_is_kept(tmp_path: Path, key: str | None) -> None:
    encode = Counting()
    for _ in range(2):
        extract_rows(encode, IMAGES[:2], cache=TensorCache(tmp_path) if key is None else None, key=key)
    assert encode.sizes == [2, 2] and not list(tmp_path.iterdir())


def test_a_row_on_disk_is_as_small_as_the_row(tmp_path: Path) -> None:
    rows = torch.arange(3000.0).reshape(3, 1000)
    extract_rows(lambda images: rows, IMAGES[:3], cache=TensorCache(tmp_path), key="a")
    assert max(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) < 4000 + 200


def test_a_network_is_its_weights() -> None:
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    assert weights_key("a", one) != weights_key("a", other)
    other.load_state_dict(one.state_dict())
    assert weights_key("a", one) == weights_key("a", other) != weights_key("b", one)


class Own(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(2, 3))


class Versioned(Own):
    cache_key = "v1"


def test_what_stands_for_a_feature_module(demo_model: LatentDiffusion, tmp_path: Path) -> None:
    def key(spec: str, module: nn.Module) -> str | None:
        return features_key(spec, module, CPU)

    # Of a person's own code nobody knows when it changes.
    assert key("mine:Own", Own()) is None
    first = key("mine:Versioned", Versioned())
    assert first == key("mine:Versioned", Versioned()) and first is not None
    newer = Versioned()
    newer.cache_key = "v2"
    assert len({first, key("mine:Versioned", newer), key("yours:Versioned", Versioned())}) == 3

    for name in "ab":
        traced = torch.jit.trace(nn.Sequential(Own(), nn.Linear(3, 2)), torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
        traced.save(str(tmp_path / f"{name}.pt"))
    files = [str(tmp_path / f"{name}.pt") for name in "ab"]
    assert len({key(path, load_features(path)) for path in files} - {None}) == 2

    before = key("vae", VaeFeatures(demo_model))
    assert before is not None and before == key("vae", VaeFeatures(demo_model))
    with torch.no_grad():
        demo_model.vae.encoder.conv_in.bias[0] += 0.1
    demo_model._fingerprints.clear()
    assert key("vae", VaeFeatures(demo_model)) != before


def test_a_module_is_not_asked_again_for_kept_images(tmp_path: Path) -> None:
    forwards: list[int] = []
    module = Own()
    module.register_forward_hook(lambda *call: forwards.append(len(call[1][0])))
    images = [np.full((8, 8, 3), 10 * i, np.uint8) for i in range(3)]
    found = [extract(module, images, batch_size=2, cache=TensorCache(tmp_path), key="k") for _ in range(2)]
    assert forwards == [2, 1] and torch.equal(*found)
