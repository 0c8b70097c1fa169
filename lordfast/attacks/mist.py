"""Mist: pull the latents to a picture (textural), push the diffusion loss up (semantic), or both at once (fused)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lordfast.attacks.options import PictureOptions, SteppedConfig
from lordfast.attacks.pgd import LdmLoss
from lordfast.attacks.protocol import Attack, AttackLoss, Inputs, Preset
from lordfast.attacks.target import Target
from lordfast.diffusion import LatentDiffusion


@dataclass(frozen=True)
class TexturalLoss:
    """sum (E(x) - z_target)^2, descended, less `semantic_weight` times L_LDM."""

    target: Target
    semantic_weight: float = 0.0
    direction: int = -1

    def __call__(self, model: LatentDiffusion, inputs: Inputs) -> Tensor:
        target = self.target.latents(model, inputs.original)
        loss = (inputs.latents - target).square().sum(dim=(1, 2, 3))
        if self.semantic_weight == 0:
            return loss
        return loss - self.semantic_weight * model.loss(inputs.latents, inputs.noise, inputs.timesteps, inputs.text)


@dataclass(kw_only=True)
class MistConfig(PictureOptions, SteppedConfig):
    """Perturb a folder of images by Mist (Liang and Wu 2023)."""

    mode: Literal["textural", "semantic", "fused"] = "fused"
    """textural: pull the latents to --target. semantic: push the diffusion loss up. fused: both."""
    semantic_weight: float = 1e4
    """In fused mode, the weight of the diffusion loss (a mean) against the sum over latents."""
    eps: str = "16/255"
    """Budget in [0, 1] pixels."""
    attack_steps: int = 100
    """Iterations."""


def mist_loss(config: MistConfig, model: LatentDiffusion) -> AttackLoss:
    """The loss of the mode.

    Raises:
        ValueError: a negative weight, a target in semantic mode, or one that can't be read.
    """
    if config.semantic_weight < 0:
        raise ValueError(f"semantic_weight: expected 0 or more, got {config.semantic_weight}")
    if config.mode == "semantic":
        if config.target is not None:
            raise ValueError(f"target: mode semantic pulls to no picture, got {config.target}; expected another mode")
        return LdmLoss()
    return TexturalLoss(Target(config.target), config.semantic_weight if config.mode == "fused" else 0.0)


def mist_rule(config: MistConfig) -> str:
    """What the mode follows."""
    return {
        "textural": "descends sum (E(x) - z_target)^2",
        "semantic": "ascends the diffusion loss",
        "fused": f"descends sum (E(x) - z_target)^2 - {config.semantic_weight:g} x diffusion loss",
    }[config.mode]


_V1 = {"eps": "16/255", "step_size": "1/255", "attack_steps": 100, "random_start": True}
_V1_TEXT = "eps 16/255, step 1/255, 100 iterations, on [0, 1] pixels"

ATTACKS = (
    Attack(
        name="mist",
        summary="pull the latents to a picture, push the diffusion loss up, or both (--mode)",
        rule=mist_rule,
        source="Liang and Wu 2023, Mist: Towards Improved Adversarial Examples for Diffusion Models",
        config=MistConfig,
        loss=mist_loss,
        presets={
            "mist-v1": Preset(f"fused, {_V1_TEXT}", {"mode": "fused", **_V1}),
            "mist-v1-textural": Preset(f"textural, {_V1_TEXT}", {"mode": "textural", **_V1}),
            "mist-v1-semantic": Preset(f"semantic, {_V1_TEXT}", {"mode": "semantic", **_V1}),
        },
    ),
)
