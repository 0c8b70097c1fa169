"""The feature attack: push what one kind of module makes of an image away from what it made of the clean one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lordfast.attacks.budget import parse_budget
from lordfast.attacks.engine import PgdSettings
from lordfast.attacks.modules import DECODES, ENCODES, Module, caught_outputs, modules_of
from lordfast.attacks.options import SteppedConfig
from lordfast.attacks.protocol import Attack, Inputs, Preset
from lordfast.diffusion import LatentDiffusion


@dataclass(frozen=True)
class FeatureLoss:
    """The mean over modules of mean (f(x) - f(x_0))^2, ascended; both with the same noise and timestep.

    Encoder modules see the image, UNet modules the noised latents, decoder modules the clean latents that the UNet
    makes out in one step.
    """

    module: Module
    direction: int = 1

    def __call__(self, model: LatentDiffusion, inputs: Inputs) -> Tensor:
        modules = modules_of(model, self.module)
        with caught_outputs(modules) as ours:
            self._run(model, inputs, inputs.pixels, inputs.latents)
        with caught_outputs(modules) as clean, torch.no_grad():
            encoded = inputs.original if self.module in ENCODES else model.encode(inputs.original)
            self._run(model, inputs, inputs.original, encoded)
        distances = [
            (one.float() - other.float()).square().flatten(1).mean(1) for one, other in zip(ours, clean, strict=True)
        ]
        return torch.stack(distances).mean(0)

    def _run(self, model: LatentDiffusion, inputs: Inputs, pixels: Tensor, latents: Tensor) -> None:
        if self.module in ENCODES:
            model.encode_moments(pixels)
            return
        noisy = model.add_noise(latents, inputs.noise, inputs.timesteps)
        prediction = model.predict(noisy, inputs.timesteps, inputs.text)
        if self.module in DECODES:
            model.decode(model.split(noisy, prediction, inputs.timesteps)[0])


@dataclass(kw_only=True)
class FeatureConfig(SteppedConfig):
    """Perturb a folder of images so that a module's features of them move as far as they can."""

    module: Module = "resnet"
    """Whose features: of the VAE, or all modules of one kind in the UNet."""
    eps: str = "0.1"
    """Budget in [0, 1] pixels."""
    step_size: str = "0.01"
    """Step in [0, 1] pixels."""
    attack_steps: int = 15
    """Iterations."""
    start_std: str = "0.1"
    """Standard deviation of the Gaussian start in [0, 1] pixels; 0 for a uniform one. At the clean image the loss has
    no gradient."""
    draws: int = 4
    """Noise and timestep draws averaged per iteration."""

    def settings(self, seed: int) -> PgdSettings:
        if not self.random_start:
            raise ValueError("random_start: at the clean image the loss has no gradient; expected a random start")
        return replace(super().settings(seed), start_std=parse_budget(self.start_std, "start_std"))


def feature_loss(config: FeatureConfig, model: LatentDiffusion) -> FeatureLoss:
    """The loss of the module.

    Raises:
        ValueError: the model has no such module.
    """
    modules_of(model, config.module)
    return FeatureLoss(config.module)


ATTACKS = (
    Attack(
        name="feature",
        summary="push the features of one kind of module away from the clean image's (--module)",
        rule=lambda config: (
            f"ascends the squared distance of the {config.module} features to those of the clean image, same noise and "
            "timestep"
        ),
        source="Zhang et al. 2023, On the Robustness of Latent Diffusion Models",
        config=FeatureConfig,
        loss=feature_loss,
        presets={
            "ldm-robustness": Preset(
                "eps 0.1, step 0.01, 15 iterations, N(0, 0.1) start, on [0, 1] pixels",
                {"eps": "0.1", "step_size": "0.01", "attack_steps": 15, "start_std": "0.1"},
            ),
        },
    ),
)
