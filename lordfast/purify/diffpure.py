"""DiffPure (Nie et al. 2022) with a latent diffusion model: noise to t*, denoise with the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lordfast.diffusion import LatentDiffusion
from lordfast.pixels import Uint8Image, to_uint8
from lordfast.purify.config import BatchPurifier, Tick, image_generator
from lordfast.purify.denoise import DenoiseConfig, denoiser, find_start
from lordfast.purify.tiles import check_tile, map_tiles, pad_images
from lordfast.training.examples import report_cut


@dataclass(kw_only=True)
class DiffpureConfig(DenoiseConfig):
    """Noise the images' latents part of the way and let the model denoise them (DiffPure, Nie et al. 2022)."""

    strength: float = 0.1
    """How far they are noised, as a share t*/T of the timesteps: more removes more of the attack, and of the picture.
    The original's values, for other models, are 0.1 and 0.15; at 64 pixels 0.05 is enough."""
    steps: int = 10
    """DDIM steps back."""
    tile: int | None = None
    """Work on half-overlapping squares of this side, averaged where they overlap, for images much larger than the
    model's; each image whole when left out."""


@torch.no_grad()
def diffpure(
    model: LatentDiffusion,
    images: Sequence[Uint8Image],
    *,
    start: int,
    steps: int = 10,
    prompt: str = "",
    seed: int = 0,
    tile: int | None = None,
) -> list[Uint8Image]:
    """Purify uint8 images (H, W, 3) of one size: encode, noise to timestep `start`, denoise, decode.

    The original runs the reverse SDE of a pixel model; here it is the model's own latents and the deterministic DDIM
    steps of `noise_and_denoise`. The noise is drawn from (seed, pixels). Borders are reflected up to what the UNet
    takes.

    Raises:
        ValueError: `start`, `steps` or `tile` out of range.
    """
    check_tile(tile, model)
    find_start(1, start, steps, model)
    height, width = images[0].shape[:2]
    generators = [image_generator(seed, "diffpure", image) for image in images]
    denoise = denoiser(model, generators, start=start, steps=steps, prompt=prompt)

    def purify(pixels: Tensor) -> Tensor:
        return model.decode(denoise(model.encode(pixels)))

    pixels = pad_images(images, model.side_multiple).to(model.device)
    result = map_tiles(pixels, purify, tile=tile, stride=tile // 2) if tile else purify(pixels)
    return list(to_uint8(result[..., :height, :width]))


def build(config: DiffpureConfig) -> BatchPurifier:
    """The purifier of `config`, checked; loads the model."""
    model = config.load()
    check_tile(config.tile, model)
    start = find_start(config.strength, config.start, config.steps, model)
    report_cut(model, [config.prompt], "prompts")

    def apply(images: Sequence[Uint8Image], tick: Tick) -> list[Uint8Image]:
        purified = diffpure(
            model,
            images,
            start=start,
            steps=config.steps,
            prompt=config.prompt,
            seed=config.seed,
            tile=config.tile,
        )
        tick()
        return purified

    return BatchPurifier(apply)
