"""The shared perturbation loop: budget, random start, draws, gradient through VAE and UNet, 8-bit rounding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lordfast.attacks.budget import Budget
from lordfast.attacks.protocol import AttackLoss, Inputs
from lordfast.diffusion import LatentDiffusion, content_key
from lordfast.diffusion.model import Text
from lordfast.ops import pgd_step
from lordfast.pixels import to_tensor
from lordfast.ranges import phase
from lordfast.training.ahead import pinned, to_device
from lordfast.training.examples import draw_noise
from lordfast.training.later import Later
from lordfast.training.seeds import derived_generator


@dataclass(frozen=True)
class PgdSettings:
    """Projected gradient descent, Eq. 6.

    Attributes:
        steps: iterations C.
        draws: (noise, timestep) pairs averaged per iteration.
        random_start: begin at a random point of the budget's ball.
        start_std: standard deviation, in [0, 1] pixels, of a Gaussian start cut to the ball; 0 for a uniform start.
        last_step: size of the last step over that of the first; they shrink linearly.
        least_timestep, most_timestep: timesteps are drawn uniformly from these, both included; None is the last one.
        latent_sample: encode to a sample of the posterior instead of its mean.
        low_memory: two passes, latents to loss and pixels to latents, and one draw at a time.
        seed: with an image's pixels, determines everything drawn for that image.
    """

    budget: Budget
    steps: int = 10
    draws: int = 1
    random_start: bool = True
    start_std: float = 0.0
    last_step: float = 1.0
    least_timestep: int = 0
    most_timestep: int | None = None
    latent_sample: bool = False
    low_memory: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("draws", 1), ("start_std", 0), ("least_timestep", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        if self.most_timestep is not None and self.most_timestep < self.least_timestep:
            raise ValueError(
                f"most_timestep: expected at least least_timestep {self.least_timestep}, got {self.most_timestep}"
            )
        if not 0 < self.last_step <= 1:
            raise ValueError(f"last_step: expected more than 0 and at most 1, got {self.last_step}")

    def timesteps(self, model: LatentDiffusion) -> range:
        """The timesteps that are drawn from.

        Raises:
            ValueError: the model has not as many.
        """
        last = model.timesteps - 1
        most = last if self.most_timestep is None else self.most_timestep
        if most > last or self.least_timestep > most:
            name = "most_timestep" if most > last else "least_timestep"
            raise ValueError(f"{name}: expected at most {last}, the last of {model.name}, got {getattr(self, name)}")
        return range(self.least_timestep, most + 1)

    def step_size(self, step: int) -> float:
        """Of `step`, counted from 0, in [0, 1] pixels."""
        return self.budget.step_size * (1 - (1 - self.last_step) * step / max(self.steps - 1, 1))


@dataclass
class _Draw:
    noise: Tensor  # (draws, B, C, h, w)
    timesteps: Tensor  # (draws, B)
    latent_noise: Tensor | None  # (B, C, h, w)


@dataclass
class _Fixed:
    """What stays the same over the steps, and what it is when every draw has rows of its own."""

    original: Tensor  # (B, 3, H, W)
    text: Text
    repeated_original: Tensor  # (draws B, 3, H, W)
    repeated_text: Text

    @classmethod
    def of(cls, original: Tensor, text: Text, draws: int) -> _Fixed:
        # Made once: the same tensors over all steps, so that what depends on them alone can be kept as well.
        repeated = {name: _repeated(value, draws) for name, value in text.items()}
        return cls(original, text, _repeated(original, draws), repeated)


def _draw(
    generators: Sequence[torch.Generator], shape: torch.Size, model: LatentDiffusion, settings: PgdSettings
) -> _Draw:
    noises, times, latent = [], [], []
    span = settings.timesteps(model)
    for generator in generators:
        pairs = [draw_noise(shape, len(span), generator) for _ in range(settings.draws)]
        noises.append(torch.stack([noise for noise, _ in pairs]))
        times.append(torch.tensor([span[time] for _, time in pairs]))
        if settings.latent_sample:
            latent.append(torch.randn(shape, generator=generator))
    drawn = {"noise": torch.stack(noises, dim=1), "timesteps": torch.stack(times, dim=1)}
    if latent:
        drawn["latent_noise"] = torch.stack(latent)
    drawn = to_device(pinned(drawn, model.device), model.device)
    return _Draw(drawn["noise"], drawn["timesteps"], drawn.get("latent_noise"))


def _repeated(value: Tensor, times: int) -> Tensor:
    return value if times == 1 else value.repeat(times, *[1] * (value.dim() - 1))


def _gradient(
    model: LatentDiffusion,
    x: Tensor,
    fixed: _Fixed,
    loss: AttackLoss,
    draw: _Draw,
    low_memory: bool,
    scale: float = 1.0,
) -> Tensor:
    """`scale` d (mean loss over the draws, summed over samples) / d x; no sample's gradient depends on another."""
    x = x.detach().requires_grad_(True)
    draws = len(draw.noise)
    scale = scale / draws
    if not low_memory:
        latents = model.encode(x, draw.latent_noise)
        inputs = Inputs(
            pixels=_repeated(x, draws),
            latents=_repeated(latents, draws),
            original=fixed.repeated_original,
            noise=draw.noise.flatten(0, 1),
            timesteps=draw.timesteps.flatten(),
            text=fixed.repeated_text,
        )
        with phase("loss"):
            value = loss(model, inputs).sum() * scale
        with phase("backward"):
            return torch.autograd.grad(value, x)[0]
    with torch.no_grad():
        latents = model.encode(x, draw.latent_noise)
    latents.requires_grad_(True)
    at_latents, at_pixels = torch.zeros_like(latents), torch.zeros_like(x)
    for noise, timesteps in zip(draw.noise, draw.timesteps, strict=True):
        inputs = Inputs(x, latents, fixed.original, noise, timesteps, fixed.text)
        with phase("loss"):
            value = loss(model, inputs).sum() * scale
        with phase("backward"):
            found = torch.autograd.grad(value, (latents, x), allow_unused=True)
        for total, gradient in zip((at_latents, at_pixels), found, strict=True):
            if gradient is not None:
                total += gradient
    encoded = model.encode(x, draw.latent_noise)
    with phase("backward"):
        return at_pixels + torch.autograd.grad(encoded, x, grad_outputs=at_latents)[0]


def _random_start(x: Tensor, eps: float, norm: str, std: float, generators: Sequence[torch.Generator]) -> Tensor:
    """A point of each sample's ball of radius `eps` (tensor units), clipped to [-1, 1].

    Uniform in the ball for a `std` of 0, else Gaussian and projected onto it.
    """
    if std > 0:
        offset = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]) * std
        if norm == "linf":
            offset = offset.clamp(-eps, eps)
        else:
            offset = offset * (eps / offset.flatten(1).norm(dim=1).clamp(min=eps)).reshape(-1, 1, 1, 1)
    elif norm == "linf":
        offset = torch.stack([torch.rand(x.shape[1:], generator=g) * 2 - 1 for g in generators]) * eps
    else:
        points = []
        for generator in generators:
            direction = torch.randn(x.shape[1:], generator=generator)
            radius = torch.rand((), generator=generator) ** (1 / direction.numel())
            points.append(direction / direction.norm() * radius)
        offset = torch.stack(points) * eps
    return (x + offset.to(x)).clamp(-1, 1)


class _Finite:
    """Gradients that are finite, or an error: a step late where looking at once would make the host wait."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._waiting: Later | None = None

    def __call__(self, gradient: Callable[[float], Tensor]) -> Tensor:
        """`gradient` of a scale; neither its sign nor its direction sees the scale."""
        if self._dtype != torch.float16:
            found = gradient(1.0)
            with phase("check"):
                self.check()
                self._waiting = Later({"finite": torch.isfinite(found).all()})
            return found
        # fp16 gradients of a mean over thousands of latents underflow, those of a large sum overflow: another scale
        # then, which has to be known at once.
        for scale in (1024.0, 32.0, 1.0, 2.0**-5, 2.0**-10):
            found = gradient(scale)
            if bool(torch.isfinite(found).all()):
                return found
        raise self._error()

    def check(self) -> None:
        """Raise ValueError if the gradient of the last call was not finite."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.read()["finite"]:
            raise self._error()

    def _error(self) -> ValueError:
        return ValueError(f"gradient: became NaN or infinite in {self._dtype}; dtype bf16 or fp32 usually helps")


def generators_of(images: Sequence[np.ndarray], seed: int, *phase: int) -> list[torch.Generator]:
    """One generator an image, seeded by `seed`, the image's pixels and the phase of the attack."""
    return [derived_generator(seed, "attack", content_key(image), *phase) for image in images]


def random_start(original: Tensor, settings: PgdSettings, generators: Sequence[torch.Generator]) -> Tensor:
    """Where the attack on `original` (B, 3, H, W) in [-1, 1] begins: within the budget, or there."""
    if not settings.random_start:
        return original.clone()
    budget = settings.budget
    # [0, 1] pixels become [-1, 1] tensors: lengths double.
    return _random_start(original, 2 * budget.eps, budget.norm, 2 * settings.start_std, generators)


def descend(
    model: LatentDiffusion,
    x: Tensor,
    original: Tensor,
    text: Text,
    loss: AttackLoss,
    settings: PgdSettings,
    generators: Sequence[torch.Generator],
    on_step: Callable[[int], Any] | None = None,
) -> Tensor:
    """``settings.steps`` image steps (Eq. 6) from `x` around `original`, both (B, 3, H, W) in [-1, 1].

    `x` is overwritten and returned.

    Raises:
        ValueError: a gradient is NaN or infinite.
    """
    budget = settings.budget
    shape = model.latent_shape(*original.shape[-2:])
    # Low memory takes one draw at a time: no repeats.
    fixed = _Fixed.of(original, text, 1 if settings.low_memory else settings.draws)
    finite = _Finite(model.dtype)
    # A LoRD in training is attacked too; of its parameters no gradient is wanted, and each would cost its time.
    with model.frozen():
        for step in range(settings.steps):
            with phase("draw"):
                draw = _draw(generators, shape, model, settings)
            gradient = finite(partial(_gradient, model, x, fixed, loss, draw, settings.low_memory))
            # [0, 1] pixels become [-1, 1] tensors: lengths double.
            length = 2 * settings.step_size(step)
            with phase("step"):
                x = pgd_step(
                    x,
                    original,
                    gradient,
                    step_size=length,
                    eps=2 * budget.eps,
                    norm=budget.norm,
                    direction=loss.direction,
                    out=x,
                )
            if on_step is not None:
                on_step(step + 1)
    finite.check()
    return x


def to_levels(x: Tensor) -> np.ndarray:
    """(B, 3, H, W) in [-1, 1] as grey levels, float64 (B, H, W, 3) in [0, 255], not rounded."""
    return ((x.double() + 1) * 127.5).permute(0, 2, 3, 1).cpu().numpy()


def perturb(
    model: LatentDiffusion,
    images: Sequence[np.ndarray],
    text: Text,
    loss: AttackLoss,
    settings: PgdSettings,
    on_step: Callable[[int], Any] | None = None,
) -> np.ndarray:
    """Perturb a batch of uint8 images (H, W, 3) with one forward per step for all of them.

    Everything drawn for an image comes from a generator seeded with (seed, pixels): the result depends neither on the
    batch it is in nor on its place there. That holds bit for bit among batches of one size; kernels round differently
    with the batch size, which over many steps can flip the sign of a gradient and then part of an image.

    Args:
        text: the conditioning of each image, rows in the order of `images`.
        on_step: called with the number of finished steps.

    Returns:
        Grey levels, float64 (B, H, W, 3) in [0, 255]; `Budget.quantise` makes the 8-bit images of them.
    """
    original = to_tensor(list(images)).to(model.device)
    text = {name: value.to(model.device) for name, value in text.items()}
    generators = generators_of(images, settings.seed)
    x = random_start(original, settings, generators)
    return to_levels(descend(model, x, original, text, loss, settings, generators, on_step))


@torch.no_grad()
def probe_loss(
    model: LatentDiffusion,
    images: Sequence[np.ndarray],
    originals: Sequence[np.ndarray],
    text: Text,
    loss: AttackLoss,
    settings: PgdSettings,
    *,
    draws: int = 8,
    seed: int = 0,
) -> list[float]:
    """The attack's loss of each uint8 image over `draws` noise and timestep pairs that no attack step has seen.

    Args:
        originals: the unperturbed images, which some losses compare with.
        settings: of the attack: where it draws its timesteps from.
    """
    pixels, clean = (to_tensor(list(group)).to(model.device) for group in (images, originals))
    text = {name: value.to(model.device) for name, value in text.items()}
    latents, span = model.encode(pixels), settings.timesteps(model)
    sums = torch.zeros(len(images), device=model.device)
    for draw in range(draws):
        noise, time = draw_noise(latents.shape[1:], len(span), derived_generator(seed, "probe", draw))
        times = torch.full((len(images),), span[time], device=model.device)
        sums += loss(model, Inputs(pixels, latents, clean, noise.to(latents).expand_as(latents), times, text))
    return (sums / draws).tolist()
