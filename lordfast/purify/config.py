"""What every purifier's config shares, and what a purifier is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lordfast.diffusion import LatentDiffusion, content_key, load_model
from lordfast.pixels import Uint8Image
from lordfast.training.config import RunConfig
from lordfast.training.seeds import derived_generator

Tick = Callable[[], Any]
"""Called each time that one of `BatchPurifier.ticks` equal parts of the work on a batch is done."""


@dataclass(kw_only=True)
class PurifyConfig(RunConfig):
    """Purify a folder of images."""

    images: Path
    """Folder of images, JPEG, PNG and others, of any size and mode; captions and transparency are kept."""
    resolution: int | None = None
    """Side of the square to which images are scaled and centre-cropped first; each keeps its size when left out."""
    batch_size: int = 8
    """Images of one size per forward."""
    skip_bad: bool = False
    """Go on without images that can't be read, naming each."""


@dataclass(kw_only=True)
class ModelPurifyConfig(PurifyConfig):
    """Purify a folder of images with a model."""

    model: str
    """The model that purifies: a diffusers folder, a hub id, or demo."""

    def load(self) -> LatentDiffusion:
        """The model, on the device and in the dtype asked for."""
        return load_model(self.model, device=self.device, dtype=self.dtype)


@dataclass(frozen=True)
class BatchPurifier:
    """A purifier with its options: a function of uint8 images (H, W, 3) of one size.

    Attributes:
        apply: images and a `Tick` in, purified images of the same size out, in the same order. What is drawn at random
            for an image depends on the seed and its pixels alone.
        ticks: how often `apply` calls the tick.
    """

    apply: Callable[[Sequence[Uint8Image], Tick], list[Uint8Image]]
    ticks: int = 1


def each(function: Callable[[Uint8Image], Uint8Image]) -> BatchPurifier:
    """A purifier that takes the images of a batch one by one."""

    def apply(images: Sequence[Uint8Image], tick: Tick) -> list[Uint8Image]:
        purified = [function(image) for image in images]
        tick()
        return purified

    return BatchPurifier(apply)


def image_generator(seed: int, purifier: str, image: Uint8Image) -> torch.Generator:
    """The generator of everything that `purifier` draws for `image`: neither order nor batch matters."""
    return derived_generator(seed, purifier, content_key(image))


def check_range(name: str, value: float, low: float, high: float = float("inf"), *, above: bool = False) -> None:
    """Raise a ValueError unless low <= value <= high, or low < value where `above`."""
    if not (low < value if above else low <= value) or not value <= high:
        bound = f"above {low:g}" if above else f"at least {low:g}"
        most = "" if high == float("inf") else f" and at most {high:g}"
        raise ValueError(f"{name}: expected a number {bound}{most}, got {value}")
