"""GrIDPure (Zhao et al. 2024) with a latent diffusion model: many rounds of very little noise on overlapping tiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lordfast.diffusion import LatentDiffusion
from lordfast.pixels import Uint8Image, to_uint8
from lordfast.purify.config import BatchPurifier, Tick, check_range, image_generator
from lordfast.purify.denoise import DenoiseConfig, denoiser, find_start
from lordfast.purify.tiles import check_tile, map_tiles, pad_images
from lordfast.training.examples import report_cut


@dataclass(kw_only=True)
class GridpureConfig(DenoiseConfig):
    """Many rounds of a little noise and denoising on overlapping squares (GrIDPure, Zhao et al. 2024).

    An image no larger than --tile is one square, without any overlap.
    """

    strength: float = 0.01
    """How far each round noises, as a share t*/T of the timesteps: 0.01 is t = 10 of 1000, as published."""
    steps: int = 1
    """DDIM steps back, in each round."""
    rounds: int = 10
    """How often all of it is done. Published: 20, which blurs more; at 64 pixels 5 are enough."""
    gamma: float = 0.1
    """How much of a round's input stays in its output."""
    tile: int | None = None
    """Side of the squares, which begin half a side apart; the model's own resolution when left out. Published: 256
    pixels, the resolution of the model there; a latent model does badly on smaller squares than its own."""


def grid_rounds(
    values: Tensor,
    purify: Callable[[Tensor], Tensor],
    *,
    rounds: int,
    gamma: float,
    tile: int,
    tick: Tick = lambda: None,
) -> Tensor:
    """`rounds` times x <- (1 - gamma) merge(purify(tiles of x)) + gamma x, for x = `values` (B, C, H, W).

    Tiles of side `tile` begin half a side apart. A place's value is the plain average of all tiles that cover it. The
    four corners, which one tile alone would cover, make up another tile, as in the paper.
    """
    for _ in range(rounds):
        merged = map_tiles(values, purify, tile=tile, stride=tile // 2, corners=True)
        values = (1 - gamma) * merged + gamma * values
        tick()
    return values


@torch.no_grad()
def gridpure(
    model: LatentDiffusion,
    images: Sequence[Uint8Image],
    *,
    start: int = 10,
    steps: int = 1,
    rounds: int = 10,
    gamma: float = 0.1,
    tile: int | None = None,
    prompt: str = "",
    seed: int = 0,
    tick: Tick = lambda: None,
) -> list[Uint8Image]:
    """Purify uint8 images (H, W, 3) of one size: encode, `grid_rounds` on the latents, decode.

    The original works on pixels, with a pixel model, and rounds to 8 bits after each round. Here tiles, averages and
    the blend with gamma are of latents: a round on pixels would go through the autoencoder, whose losses add up. The
    noise is drawn from (seed, pixels), anew for each tile and round.

    Args:
        tile: side of the tiles in pixels; the model's resolution for None.
        tick: called after each round.

    Raises:
        ValueError: `start`, `steps`, `rounds`, `gamma` or `tile` out of range.
    """
    check_tile(tile, model)
    _check(rounds, gamma)
    find_start(1, start, steps, model)
    height, width = images[0].shape[:2]
    generators = [image_generator(seed, "gridpure", image) for image in images]
    denoise = denoiser(model, generators, start=start, steps=steps, prompt=prompt)
    latents = model.encode(pad_images(images, model.side_multiple))
    side = (tile or model.resolution) // model.vae_factor
    latents = grid_rounds(latents, denoise, rounds=rounds, gamma=gamma, tile=side, tick=tick)
    return list(to_uint8(model.decode(latents)[..., :height, :width]))


def _check(rounds: int, gamma: float) -> None:
    check_range("rounds", rounds, 1)
    check_range("gamma", gamma, 0, 1)


def build(config: GridpureConfig) -> BatchPurifier:
    """The purifier of `config`, checked; loads the model."""
    _check(config.rounds, config.gamma)
    model = config.load()
    check_tile(config.tile, model)
    start = find_start(config.strength, config.start, config.steps, model)
    report_cut(model, [config.prompt], "prompts")

    def apply(images: Sequence[Uint8Image], tick: Tick) -> list[Uint8Image]:
        return gridpure(
            model,
            images,
            start=start,
            steps=config.steps,
            rounds=config.rounds,
            gamma=config.gamma,
            tile=config.tile,
            prompt=config.prompt,
            seed=config.seed,
            tick=tick,
        )

    return BatchPurifier(apply, ticks=config.rounds)
