"""What an attack is: a loss whose gradient is followed and, for the alternating ones, a schedule of its surrogate."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import Tensor

from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.model import Text

if TYPE_CHECKING:
    from lordfast.attacks.options import AttackConfig


@dataclass(frozen=True)
class Inputs:
    """What a loss sees of a batch in one step; row i of everything belongs together.

    Attributes:
        pixels: the perturbed images (B, 3, H, W) in [-1, 1], differentiable.
        latents: their encoding (B, C, h, w), scaled, differentiable; under a two-pass gradient a leaf of its own.
        original: the unperturbed images, like `pixels`.
        noise: standard normal, like `latents`.
        timesteps: (B,) int64.
        text: the conditioning.
    """

    pixels: Tensor
    latents: Tensor
    original: Tensor
    noise: Tensor
    timesteps: Tensor
    text: Text


class AttackLoss(Protocol):
    """The loss whose gradient an attack follows.

    Attributes:
        direction: +1 ascends it, -1 descends it.
    """

    @property
    def direction(self) -> int: ...

    def __call__(self, model: LatentDiffusion, inputs: Inputs) -> Tensor:
        """The loss of each sample, (B,) fp32, differentiable in ``inputs.pixels`` or ``inputs.latents``."""
        ...


@dataclass(frozen=True)
class Perturb:
    """`steps` image steps of every image on the surrogate as it is."""

    steps: int


@dataclass(frozen=True)
class Train:
    """`steps` optimiser steps of the surrogate on the clean images or on the perturbed ones as they are."""

    on: Literal["clean", "perturbed"]
    steps: int


@dataclass(frozen=True)
class Remember:
    """Keep a copy of the surrogate's weights."""


@dataclass(frozen=True)
class Recall:
    """Put the remembered weights back, exactly."""


Phase = Perturb | Train | Remember | Recall


@dataclass(frozen=True)
class Preset:
    """A published setting, converted to [0, 1] pixels.

    Attributes:
        original: its numbers as published, with their scale.
        values: fields of the attack's config.
    """

    original: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Attack:
    """An attack by name. What is not here, all attacks share.

    Attributes:
        summary: one line for the list of attacks.
        rule: says of a config what gradient is followed, in which direction, on what.
        source: who published it.
        config: the dataclass of its options.
        loss: makes the loss from (config, model).
        schedule: makes the phases from a config whose surrogate is trained; None for attacks on the model as it is.
    """

    name: str
    summary: str
    rule: Callable[[Any], str]
    source: str
    config: type[AttackConfig]
    loss: Callable[[Any, LatentDiffusion], AttackLoss]
    schedule: Callable[[Any], Sequence[Phase]] | None = None
    presets: Mapping[str, Preset] = field(default_factory=dict)
