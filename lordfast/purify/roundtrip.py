"""Through the autoencoder and back: what its latents can't hold is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lordfast.diffusion import LatentDiffusion
from lordfast.pixels import Uint8Image, to_uint8
from lordfast.purify.config import BatchPurifier, ModelPurifyConfig, Tick
from lordfast.purify.tiles import check_tile, map_tiles, pad_images


@dataclass(kw_only=True)
class RoundtripConfig(ModelPurifyConfig):
    """Encode with the model's autoencoder and decode again."""

    tile: int | None = None
    """Work on half-overlapping squares of this side, averaged where they overlap, to save memory with images much
    larger than the model's; each image whole when left out."""


@torch.no_grad()
def vae_roundtrip(model: LatentDiffusion, images: Sequence[Uint8Image], tile: int | None = None) -> list[Uint8Image]:
    """decode(encode(x)) of uint8 images (H, W, 3) of one size; borders are reflected up to what the VAE takes.

    Raises:
        ValueError: a tile that does not fit the model.
    """
    check_tile(tile, model)
    height, width = images[0].shape[:2]

    def roundtrip(pixels: Tensor) -> Tensor:
        return model.decode(model.encode(pixels))

    pixels = pad_images(images, model.vae_factor).to(model.device)
    result = map_tiles(pixels, roundtrip, tile=tile, stride=tile // 2) if tile else roundtrip(pixels)
    return list(to_uint8(result[..., :height, :width]))


def build(config: RoundtripConfig) -> BatchPurifier:
    """The purifier of `config`, checked; loads the model."""
    model = config.load()
    check_tile(config.tile, model)

    def apply(images: Sequence[Uint8Image], tick: Tick) -> list[Uint8Image]:
        purified = vae_roundtrip(model, images, config.tile)
        tick()
        return purified

    return BatchPurifier(apply)
