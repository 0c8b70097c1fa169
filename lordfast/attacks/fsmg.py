"""FSMG: gradients on a surrogate that was fine-tuned on the clean images; and Anti-DreamBooth's targeted loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lordfast.attacks.options import SteppedConfig, SurrogateOptions, TargetOptions
from lordfast.attacks.pgd import LdmLoss, check_target
from lordfast.attacks.protocol import (
    Attack,
    AttackLoss,
    Inputs,
    Perturb,
    Phase,
    Preset,
    Train,
)
from lordfast.attacks.target import Target
from lordfast.diffusion import LatentDiffusion


@dataclass(frozen=True)
class TowardsTargetLoss:
    """L_LDM - mean (x_hat_{t-1} - q(z_target, t - 1))^2, ascended; t = 0 has no t - 1 and keeps the first term alone.

    x_hat_{t-1} is the mean of the posterior q(z_{t-1} | z_t, z) at the predicted clean latents: for z_t = a_t z +
    s_t noise, with a = a_t / a_{t-1}, it is a s_{t-1}^2 / s_t^2 z_t + a_{t-1} (s_t^2 - a^2 s_{t-1}^2) / s_t^2 z
    (Kingma et al. 2021, Variational Diffusion Models, appendix A.2), which is DDPM's (Ho et al. 2020, Eq. 7) where
    a_t^2 + s_t^2 = 1. q(z_target, t - 1) are the target's latents under the same noise.
    """

    target: Target
    direction: int = 1

    def __call__(self, model: LatentDiffusion, inputs: Inputs) -> Tensor:
        now = inputs.timesteps
        noisy = model.add_noise(inputs.latents, inputs.noise, now)
        prediction = model.predict(noisy, now, inputs.text)
        wanted = model.target(inputs.latents, inputs.noise, now)
        loss = (prediction - wanted).square().mean(dim=(1, 2, 3))
        before = (now - 1).clamp(min=0)
        clean, _ = model.split(noisy, prediction, now)
        (signal, sigma), (signal_before, sigma_before) = model.signal_noise(now), model.signal_noise(before)
        ratio = signal / signal_before
        of_clean = signal_before * (1 - (ratio * sigma_before / sigma).square())
        of_noisy = ratio * (sigma_before / sigma).square()
        aim = model.add_noise(self.target.latents(model, inputs.original), inputs.noise, before)
        distance = (of_clean * clean + of_noisy * noisy - aim).square().mean(dim=(1, 2, 3))
        return loss - torch.where(now > 0, distance, torch.zeros_like(distance))


@dataclass(kw_only=True)
class FsmgConfig(TargetOptions, SurrogateOptions, SteppedConfig):
    """Perturb a folder of images on a surrogate that was first fine-tuned on them, clean (FSMG)."""

    eps: str = "0.025"
    """Budget in [0, 1] pixels."""
    step_size: str = "0.0025"
    """Step in [0, 1] pixels."""
    attack_steps: int = 100
    """Image steps."""
    train_steps: int = 200
    """Optimiser steps of the surrogate on the clean images before the attack."""


def surrogate_loss(config: TargetOptions, model: LatentDiffusion) -> AttackLoss:
    """The loss of the targeted or the plain variant.

    Raises:
        ValueError: a target that can't be read, or is given without ``targeted``.
    """
    check_target(config.targeted, config.target)
    return TowardsTargetLoss(Target(config.target)) if config.targeted else LdmLoss()


def fsmg_schedule(config: FsmgConfig) -> Sequence[Phase]:
    """Fine-tune on the clean images, then attack what came out."""
    return [Train("clean", config.train_steps), Perturb(config.attack_steps)]


def surrogate_rule(options: TargetOptions) -> str:
    """What an image step follows."""
    less = " less the distance of x_hat_{t-1} to the noised target" if options.targeted else ""
    return f"ascends the diffusion loss{less}"


SOURCE = "Van Le et al. 2023, Anti-DreamBooth: Protecting Users from Personalized Text-to-Image Synthesis"
ORIGINAL = "eps 0.05, step 0.005 on [-1, 1] tensors"
PIXELS = {"eps": "0.025", "step_size": "0.0025", "random_start": False}

ATTACKS = (
    Attack(
        name="fsmg",
        summary="PGD on a surrogate that was fine-tuned on the clean images first, untargeted or --targeted",
        rule=lambda config: f"on a surrogate trained on the clean images: {surrogate_rule(config)}",
        source=SOURCE,
        config=FsmgConfig,
        loss=surrogate_loss,
        schedule=fsmg_schedule,
        presets={
            "antidreambooth-fsmg": Preset(
                f"{ORIGINAL}, 100 iterations, on DreamBooth of UNet and text encoder: lr 5e-7, batch 2, 1000 steps",
                {
                    **PIXELS,
                    "attack_steps": 100,
                    "train_steps": 1000,
                    "surrogate": "unet",
                    "surrogate_text_encoder": True,
                    "surrogate_lr": 5e-7,
                    "surrogate_batch_size": 2,
                },
            ),
        },
    ),
)
