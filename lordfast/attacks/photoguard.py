"""PhotoGuard: immunise against editing, by the encoder alone or through the sampler."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from lordfast.attacks.engine import PgdSettings
from lordfast.attacks.options import PictureOptions, SteppedConfig
from lordfast.attacks.protocol import Attack, AttackLoss, Inputs, Preset
from lordfast.attacks.target import Target
from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.editing import noise_and_denoise
from lordfast.diffusion.model import Text


def _norm(difference: Tensor) -> Tensor:
    # A gradient of the norm does not exist at 0; nobody gets nearer than this.
    return difference.square().sum(dim=(1, 2, 3)).add(1e-12).sqrt()


@dataclass(frozen=True)
class EncoderLoss:
    """|| E(x) - E(target) ||_2, or || E(x) ||_2 without a target, descended."""

    target: Target | None
    direction: int = -1

    def __call__(self, model: LatentDiffusion, inputs: Inputs) -> Tensor:
        if self.target is None:
            return _norm(inputs.latents)
        return _norm(inputs.latents - self.target.latents(model, inputs.original))


@dataclass(frozen=True)
class SamplerLoss:
    """|| edit(x) - target ||_2 in pixels, descended; edit noises E(x) up to `start` and samples `steps` times.

    Each sampler step is recomputed in the backward pass, so memory does not grow with `steps`.
    """

    target: Target
    unconditional: Text
    start: int
    steps: int
    guidance: float
    direction: int = -1

    def __call__(self, model: LatentDiffusion, inputs: Inputs) -> Tensor:
        latents = noise_and_denoise(
            model,
            inputs.latents,
            inputs.noise,
            inputs.text,
            start=self.start,
            steps=self.steps,
            guidance=self.guidance,
            unconditional=self.unconditional,
            checkpoint=True,
        )
        return _norm(model.decode(latents) - self.target.pixels(inputs.original))


@dataclass(kw_only=True)
class PhotoguardConfig(PictureOptions, SteppedConfig):
    """Perturb a folder of images by PhotoGuard (Salman et al. 2023)."""

    mode: Literal["encoder", "diffusion"] = "encoder"
    """encoder: move the latents. diffusion: move what image-to-image sampling makes of the image."""
    to_zero: bool = False
    """In encoder mode, pull the latents to zero instead of to a picture's."""
    strength: float = 0.5
    """In diffusion mode, how far the image is noised: the start timestep over all timesteps."""
    sampler_steps: int = 4
    """In diffusion mode, sampler steps that the gradient passes through."""
    guidance: float = 7.5
    """In diffusion mode, classifier-free guidance; 1 turns it off."""
    eps: str = "0.03"
    """Budget in [0, 1] pixels."""
    step_size: str = "0.01"
    """First step in [0, 1] pixels."""
    attack_steps: int = 100
    """Iterations."""
    last_step: float = 0.01
    """Size of the last step over that of the first; steps shrink linearly."""

    def settings(self, seed: int) -> PgdSettings:
        return replace(super().settings(seed), last_step=self.last_step)


def photoguard_loss(config: PhotoguardConfig, model: LatentDiffusion) -> AttackLoss:
    """The loss of the mode.

    Raises:
        ValueError: a strength or number of steps that no sampler takes; a target beside ``to_zero``.
    """
    if config.to_zero and config.target is not None:
        raise ValueError(f"to_zero, target: both were given ({config.target}); expected at most one")
    if config.mode == "encoder":
        return EncoderLoss(None if config.to_zero else Target(config.target))
    if config.to_zero:
        raise ValueError("to_zero: mode diffusion pulls to a picture; expected mode encoder")
    start = int(config.strength * model.timesteps)
    if not 0 < config.strength < 1 or not 1 <= config.sampler_steps <= start:
        raise ValueError(
            f"strength, sampler_steps: expected a strength between 0 and 1 and 1 to {max(start, 1)} steps, got "
            f"{config.strength} and {config.sampler_steps}"
        )
    return SamplerLoss(Target(config.target), model.unconditional(), start, config.sampler_steps, config.guidance)


def photoguard_rule(config: PhotoguardConfig) -> str:
    """What the mode follows."""
    if config.mode == "encoder":
        return "descends || E(x) ||_2" if config.to_zero else "descends || E(x) - E(target) ||_2"
    return (
        f"descends || out - target ||_2 through {config.sampler_steps} sampler steps from strength {config.strength:g} "
        f"with guidance {config.guidance:g}"
    )


ATTACKS = (
    Attack(
        name="photoguard",
        summary="move the encoding, or what image-to-image sampling makes of the image, to a picture (--mode)",
        rule=photoguard_rule,
        source="Salman et al. 2023, Raising the Cost of Malicious AI-Powered Image Editing",
        config=PhotoguardConfig,
        loss=photoguard_loss,
        presets={
            "photoguard-encoder": Preset(
                "eps 0.06, step 0.02 decayed linearly to 1 %, 1000 iterations, uniform start, on [-1, 1] tensors",
                {"mode": "encoder", "eps": "0.03", "step_size": "0.01", "attack_steps": 1000, "last_step": 0.01},
            ),
            "photoguard-diffusion": Preset(
                "L2 16, step 1, 200 iterations, 10 gradient repeats, 4 sampler steps, CFG 7.5, on [-1, 1] tensors",
                {
                    "mode": "diffusion",
                    "norm": "l2",
                    "eps": "8",
                    "step_size": "0.5",
                    "attack_steps": 200,
                    "draws": 10,
                    "sampler_steps": 4,
                    "guidance": 7.5,
                    "last_step": 1.0,
                    "random_start": False,
                },
            ),
        },
    ),
)
