"""ACE+: ACE that also pulls the latents to the picture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lordfast.attacks.ace import RULE, SOURCE, AceConfig, ace_schedule
from lordfast.attacks.pgd import TargetedLoss
from lordfast.attacks.protocol import Attack, Inputs, Preset
from lordfast.attacks.target import Target
from lordfast.diffusion import LatentDiffusion


@dataclass(frozen=True)
class AcePlusLoss:
    """mean (prediction - z_target)^2 + `latent_weight` mean (E(x) - z_target)^2, descended."""

    target: Target
    latent_weight: float
    direction: int = -1

    def __call__(self, model: LatentDiffusion, inputs: Inputs) -> Tensor:
        distance = (inputs.latents - self.target.latents(model, inputs.original)).square().mean(dim=(1, 2, 3))
        return TargetedLoss(self.target)(model, inputs) + self.latent_weight * distance


@dataclass(kw_only=True)
class AcePlusConfig(AceConfig):
    """ACE that also pulls the latents to the picture (ACE+)."""

    latent_weight: float = 100.0
    """Weight of the latents' distance to the target's."""
    attack_steps: int = 50
    """K: image steps in each round."""
    train_steps: int = 5
    """M: optimiser steps of the surrogate on the perturbed images in each round, kept for the next."""
    least_timestep: int = 600
    """Timesteps are drawn from this one on."""


def ace_plus_loss(config: AcePlusConfig, model: LatentDiffusion) -> AcePlusLoss:
    """The loss of ACE+.

    Raises:
        ValueError: a negative weight, or a target that can't be read.
    """
    if config.latent_weight < 0:
        raise ValueError(f"latent_weight: expected 0 or more, got {config.latent_weight}")
    return AcePlusLoss(Target(config.target), config.latent_weight)


ATTACKS = (
    Attack(
        name="ace-plus",
        summary="ACE that also pulls the latents to the picture",
        rule=lambda config: f"{RULE}; the loss has {config.latent_weight:g} x || E(x) - z_target ||^2 besides (means)",
        source=SOURCE,
        config=AcePlusConfig,
        loss=ace_plus_loss,
        schedule=ace_schedule,
        presets={
            "ace-plus": Preset(
                "eps 8/255, step 0.005, N 5, M 5, K 50, lr 1e-4, t from 600 to 999, on [-1, 1] tensors",
                {
                    "eps": "4/255",
                    "step_size": "0.0025",
                    "rounds": 5,
                    "train_steps": 5,
                    "attack_steps": 50,
                    "surrogate_lr": 1e-4,
                    "least_timestep": 600,
                },
            ),
        },
    ),
)
