"""FGSM and PGD on the LDM loss (Eq. 6; AdvDM): denoising fails, or the prediction is pulled to a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from lordfast.attacks.options import AttackConfig, SteppedConfig, TargetOptions
from lordfast.attacks.protocol import Attack, AttackLoss, Inputs, Preset
from lordfast.attacks.target import Target
from lordfast.diffusion import LatentDiffusion


@dataclass(frozen=True)
class LdmLoss:
    """L_LDM, ascended: E over noise and t of || target - prediction ||^2."""

    direction: int = 1

    def __call__(self, model: LatentDiffusion, inputs: Inputs) -> Tensor:
        return model.loss(inputs.latents, inputs.noise, inputs.timesteps, inputs.text)


@dataclass(frozen=True)
class TargetedLoss:
    """|| prediction - z_target ||^2, descended: every denoising step errs in the same direction."""

    target: Target
    direction: int = -1

    def __call__(self, model: LatentDiffusion, inputs: Inputs) -> Tensor:
        noisy = model.add_noise(inputs.latents, inputs.noise, inputs.timesteps)
        prediction = model.predict(noisy, inputs.timesteps, inputs.text)
        return (prediction - self.target.latents(model, inputs.original)).square().mean(dim=(1, 2, 3))


def check_target(targeted: bool, target: Path | None) -> None:
    """Raise ValueError for a picture to pull to in an attack that does not pull."""
    if target is not None and not targeted:
        raise ValueError(f"target: {target} was given without targeted; expected both or neither")


def pgd_loss(options: TargetOptions) -> AttackLoss:
    """The loss of targeted or untargeted PGD.

    Raises:
        ValueError: a target that can't be read, or is given without ``targeted``.
    """
    check_target(options.targeted, options.target)
    return TargetedLoss(Target(options.target)) if options.targeted else LdmLoss()


@dataclass(kw_only=True)
class FgsmConfig(TargetOptions, AttackConfig):
    """Perturb a folder of images by one step of the whole budget along the gradient of the diffusion loss."""


@dataclass(kw_only=True)
class PgdConfig(TargetOptions, SteppedConfig):
    """Perturb a folder of images by projected gradient descent on the diffusion loss (AdvDM)."""


def pgd_rule(options: TargetOptions) -> str:
    """What targeted or untargeted PGD follows."""
    if options.targeted:
        return "descends || prediction - z_target ||^2 over fresh noise and timesteps"
    return "ascends the diffusion loss, the denoiser's squared error over fresh noise and timesteps"


ATTACKS = (
    Attack(
        name="fgsm",
        summary="one step of the whole budget on the diffusion loss, untargeted or --targeted",
        rule=lambda config: f"one step of eps: {pgd_rule(config)}",
        source="Goodfellow et al. 2015, Explaining and Harnessing Adversarial Examples, on the LDM loss",
        config=FgsmConfig,
        loss=lambda config, model: pgd_loss(config),
    ),
    Attack(
        name="pgd",
        summary="projected gradient descent on the diffusion loss (AdvDM), untargeted or --targeted",
        rule=pgd_rule,
        source="Liang et al. 2023, Adversarial Example Does Good (AdvDM); Madry et al. 2018 for the steps",
        config=PgdConfig,
        loss=lambda config, model: pgd_loss(config),
        presets={
            "advdm": Preset(
                "eps 16/255, step 1/255, 100 iterations, random start, on [0, 1] pixels",
                {"eps": "16/255", "step_size": "1/255", "attack_steps": 100, "random_start": True},
            ),
        },
    ),
)
