"""The shared perturbation loop: budget, random start, draws, gradient through VAE and UNet, 8-bit rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lordfast.attacks.budget import Budget
from lordfast.diffusion import LatentDiffusion, content_key
from lordfast.diffusion.model import Text
from lordfast.ops import pgd_step
from lordfast.pixels import to_tensor
from lordfast.training.examples import draw_noise
from lordfast.training.seeds import derived_generator


class AttackLoss(Protocol):
    """The loss whose gradient an attack follows.

    Attributes:
        direction: +1 ascends it, -1 descends it.
    """

    @property
    def direction(self) -> int: ...

    def __call__(self, model: LatentDiffusion, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        """The loss of each sample, (B,) fp32, differentiable in `latents` (B, C, h, w)."""
        ...


@dataclass(frozen=True)
class PgdSettings:
    """Projected gradient descent, Eq. 6.

    Attributes:
        steps: iterations C.
        draws: (noise, timestep) pairs averaged per iteration.
        random_start: begin at a random point of the budget's ball.
        latent_sample: encode to a sample of the posterior instead of its mean.
        low_memory: two passes, latents to loss and pixels to latents, and one draw at a time.
        seed: with an image's pixels, determines everything drawn for that image.
    """

    budget: Budget
    steps: int = 10
    draws: int = 1
    random_start: bool = True
    latent_sample: bool = False
    low_memory: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("draws", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")


@dataclass
class _Draw:
    noise: Tensor  # (draws, B, C, h, w)
    timesteps: Tensor  # (draws, B)
    latent_noise: Tensor | None  # (B, C, h, w)


def _draw(
    generators: Sequence[torch.Generator], shape: torch.Size, model: LatentDiffusion, settings: PgdSettings
) -> _Draw:
    noises, times, latent = [], [], []
    for generator in generators:
        pairs = [draw_noise(shape, model.timesteps, generator) for _ in range(settings.draws)]
        noises.append(torch.stack([noise for noise, _ in pairs]))
        times.append(torch.tensor([time for _, time in pairs]))
        if settings.latent_sample:
            latent.append(torch.randn(shape, generator=generator))
    return _Draw(
        noise=torch.stack(noises, dim=1).to(model.device),
        timesteps=torch.stack(times, dim=1).to(model.device),
        latent_noise=torch.stack(latent).to(model.device) if latent else None,
    )


def _gradient(model: LatentDiffusion, x: Tensor, text: Text, loss: AttackLoss, draw: _Draw, low_memory: bool) -> Tensor:
    """d (mean loss over the draws, summed over samples) / d x, so that no sample's gradient depends on another."""
    x = x.detach().requires_grad_(True)
    # fp16 gradients of a mean over thousands of latents underflow; neither sign nor direction sees the scale.
    scale = 1024.0 if model.dtype == torch.float16 else 1.0
    draws = len(draw.noise)
    if not low_memory:
        latents = model.encode(x, draw.latent_noise).repeat(draws, 1, 1, 1)
        texts = {name: value.repeat(draws, *[1] * (value.dim() - 1)) for name, value in text.items()}
        losses = loss(model, latents, draw.noise.flatten(0, 1), draw.timesteps.flatten(), texts)
        return torch.autograd.grad(losses.sum() * (scale / draws), x)[0]
    with torch.no_grad():
        latents = model.encode(x, draw.latent_noise)
    latents.requires_grad_(True)
    total = torch.zeros_like(latents)
    for noise, timesteps in zip(draw.noise, draw.timesteps, strict=True):
        losses = loss(model, latents, noise, timesteps, text)
        total += torch.autograd.grad(losses.sum() * (scale / draws), latents)[0]
    return torch.autograd.grad(model.encode(x, draw.latent_noise), x, grad_outputs=total)[0]


def _random_start(x: Tensor, eps: float, norm: str, generators: Sequence[torch.Generator]) -> Tensor:
    """A uniform point of each sample's ball of radius `eps` (tensor units), clipped to [-1, 1]."""
    if norm == "linf":
        offset = torch.stack([torch.rand(x.shape[1:], generator=g) * 2 - 1 for g in generators]) * eps
    else:
        points = []
        for generator in generators:
            direction = torch.randn(x.shape[1:], generator=generator)
            radius = torch.rand((), generator=generator) ** (1 / direction.numel())
            points.append(direction / direction.norm() * radius)
        offset = torch.stack(points) * eps
    return (x + offset.to(x)).clamp(-1, 1)


def perturb(
    model: LatentDiffusion,
    images: Sequence[np.ndarray],
    text: Text,
    loss: AttackLoss,
    settings: PgdSettings,
    on_step: Callable[[int], Any] | None = None,
) -> list[np.ndarray]:
    """Perturb a batch of uint8 images (H, W, 3) with one forward per step for all of them.

    Everything drawn for an image comes from a generator seeded with (seed, pixels): the result depends neither on the
    batch it is in nor on its place there. That holds bit for bit among batches of one size; kernels round differently
    with the batch size, which over many steps can flip the sign of a gradient and then part of an image.

    Args:
        text: the conditioning of each image, rows in the order of `images`.
        on_step: called with the number of finished steps.

    Returns:
        uint8 images of the same shapes; each obeys ``settings.budget`` exactly.
    """
    budget = settings.budget
    # [0, 1] pixels become [-1, 1] tensors here and nowhere else: lengths double.
    eps, step_size = 2 * budget.eps, 2 * budget.step_size
    original = to_tensor(list(images)).to(model.device)
    text = {name: value.to(model.device) for name, value in text.items()}
    generators = [derived_generator(settings.seed, "attack", content_key(image)) for image in images]
    with torch.no_grad():
        shape = model.encode(original[:1]).shape[1:]
    x = _random_start(original, eps, budget.norm, generators) if settings.random_start else original.clone()
    for step in range(settings.steps):
        draw = _draw(generators, shape, model, settings)
        gradient = _gradient(model, x, text, loss, draw, settings.low_memory)
        x = pgd_step(
            x, original, gradient, step_size=step_size, eps=eps, norm=budget.norm, direction=loss.direction, out=x
        )
        if on_step is not None:
            on_step(step + 1)
    levels = ((x.double() + 1) * 127.5).permute(0, 2, 3, 1).cpu().numpy()
    return [budget.quantise(level, image) for level, image in zip(levels, images, strict=True)]


@torch.no_grad()
def probe_loss(
    model: LatentDiffusion, images: Sequence[np.ndarray], text: Text, loss: AttackLoss, *, draws: int = 8, seed: int = 0
) -> list[float]:
    """The attack's loss of each uint8 image over `draws` noise and timestep pairs that no attack step has seen."""
    pixels = to_tensor(list(images)).to(model.device)
    text = {name: value.to(model.device) for name, value in text.items()}
    latents = model.encode(pixels)
    sums = torch.zeros(len(images), device=model.device)
    for draw in range(draws):
        noise, time = draw_noise(latents.shape[1:], model.timesteps, derived_generator(seed, "probe", draw))
        times = torch.full((len(images),), time, device=model.device)
        sums += loss(model, latents, noise.to(latents).expand_as(latents), times, text)
    return (sums / draws).tolist()
