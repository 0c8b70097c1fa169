"""IMPRESS (Cao et al. 2023): the nearest image that the autoencoder leaves alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lordfast.diffusion import LatentDiffusion
from lordfast.pixels import Uint8Image, to_uint8
from lordfast.purify.closeness import Distance, distance_to
from lordfast.purify.config import BatchPurifier, ModelPurifyConfig, Tick, check_range
from lordfast.purify.tiles import pad_images


@dataclass(kw_only=True)
class ImpressConfig(ModelPurifyConfig):
    """Look near each image for one that the autoencoder reproduces, as it does clean images (IMPRESS, Cao et al. 2023).

    The published runs take --distance lpips --iterations 3000 --lr 0.01.
    """

    iterations: int = 50
    """Steps of Adam."""
    lr: float = 0.01
    """Adam's learning rate, of pixels in [-1, 1]."""
    alpha: float = 0.1
    """Weight of the distance beyond --budget."""
    budget: float = 0.1
    """How far the image may go from the given one at no cost, in units of --distance."""
    distance: Literal["vae", "lpips", "l2"] = "vae"
    """How that is measured: lpips, as published, which needs torchvision and downloads weights; vae, its formula on
    the model's own encoder, a stand-in that works offline; l2, the root mean square in [0, 1] pixels."""


def impress_loss(model: LatentDiffusion, images: Tensor, distance: Distance, alpha: float, budget: float) -> Tensor:
    """mean (D(E(x)) - x)^2 + alpha max(d(x) - budget, 0) of each of `images` (B, 3, H, W), (B,) fp32."""
    change = model.decode(model.encode(images)) - images
    return change.square().mean(dim=(1, 2, 3)) + alpha * (distance(images) - budget).clamp(min=0)


def impress(
    model: LatentDiffusion,
    images: Sequence[Uint8Image],
    *,
    iterations: int = 50,
    lr: float = 0.01,
    alpha: float = 0.1,
    budget: float = 0.1,
    distance: str = "vae",
    tick: Tick = lambda: None,
) -> list[Uint8Image]:
    """Purify uint8 images (H, W, 3) of one size: Adam on `impress_loss`, from the images themselves, within [-1, 1].

    Losses are summed over the images and Adam works element by element, so that none depends on another. The published
    method begins at a slightly noisy copy; this one draws nothing. Borders are reflected up to what the VAE takes.

    Args:
        tick: called after each iteration.

    Raises:
        ValueError: an unknown distance, or LPIPS without its weights.
    """
    height, width = images[0].shape[:2]
    given = pad_images(images, model.vae_factor).to(model.device)
    away = distance_to(distance, model)(given)
    x = given.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([x], lr=lr)
    for _ in range(iterations):
        loss = impress_loss(model, x, away, alpha, budget).sum()
        (x.grad,) = torch.autograd.grad(loss, x)
        optimizer.step()
        with torch.no_grad():
            x.clamp_(-1, 1)
        tick()
    return list(to_uint8(x[..., :height, :width]))


def build(config: ImpressConfig) -> BatchPurifier:
    """The purifier of `config`, checked; loads the model."""
    check_range("iterations", config.iterations, 1)
    check_range("lr", config.lr, 0, above=True)
    for name in ("alpha", "budget"):
        check_range(name, getattr(config, name), 0)
    model = config.load()
    distance_to(config.distance, model)

    def apply(images: Sequence[Uint8Image], tick: Tick) -> list[Uint8Image]:
        return impress(
            model,
            images,
            iterations=config.iterations,
            lr=config.lr,
            alpha=config.alpha,
            budget=config.budget,
            distance=config.distance,
            tick=tick,
        )

    return BatchPurifier(apply, ticks=config.iterations)
