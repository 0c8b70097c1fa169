"""The feature attack: push what one kind of module makes of an image away from what it made of the clean one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lordfast.attacks.budget import parse_budget
from lordfast.attacks.engine import PgdSettings
from lordfast.attacks.options import SteppedConfig
from lordfast.attacks.protocol import Attack, Inputs, Preset
from lordfast.diffusion import LatentDiffusion

Module = Literal[
    "vae-encoder",
    "quant-conv",
    "self-attention",
    "cross-attention",
    "feed-forward",
    "resnet",
    "post-quant-conv",
    "vae-decoder",
]

# Part of the model, and the names of the modules in it.
_WHERE: dict[str, tuple[str, str]] = {
    "vae-encoder": ("vae", r"encoder"),
    "quant-conv": ("vae", r"quant_conv"),
    "self-attention": ("unet", r".*\.attn1"),
    "cross-attention": ("unet", r".*\.attn2"),
    "feed-forward": ("unet", r".*\.ff"),
    "resnet": ("unet", r".*\.resnets\.\d+"),
    "post-quant-conv": ("vae", r"post_quant_conv"),
    "vae-decoder": ("vae", r"decoder"),
}
_ENCODES = ("vae-encoder", "quant-conv")
_DECODES = ("post-quant-conv", "vae-decoder")


@contextmanager
def _caught(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """The outputs of `modules`, in the order in which they are called."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class FeatureLoss:
    """The mean over modules of mean (f(x) - f(x_0))^2, ascended; both with the same noise and timestep.

    Encoder modules see the image, UNet modules the noised latents, decoder modules the clean latents that the UNet
    makes out in one step.
    """

    module: Module
    direction: int = 1

    def modules(self, model: LatentDiffusion) -> list[nn.Module]:
        """The modules of this kind.

        Raises:
            ValueError: the model has none.
        """
        part, pattern = _WHERE[self.module]
        named = getattr(model, part).named_modules()
        found = [module for name, module in named if re.fullmatch(pattern, name)]
        if not found:
            raise ValueError(f"module: {model.name} has no {self.module}")
        return found

    def __call__(self, model: LatentDiffusion, inputs: Inputs) -> Tensor:
        modules = self.modules(model)
        with _caught(modules) as ours:
            self._run(model, inputs, inputs.pixels, inputs.latents)
        with _caught(modules) as clean, torch.no_grad():
            encoded = inputs.original if self.module in _ENCODES else model.encode(inputs.original)
            self._run(model, inputs, inputs.original, encoded)
        distances = [
            (one.float() - other.float()).square().flatten(1).mean(1) for one, other in zip(ours, clean, strict=True)
        ]
        return torch.stack(distances).mean(0)

    def _run(self, model: LatentDiffusion, inputs: Inputs, pixels: Tensor, latents: Tensor) -> None:
        if self.module in _ENCODES:
            model.encode_moments(pixels)
            return
        noisy = model.add_noise(latents, inputs.noise, inputs.timesteps)
        prediction = model.predict(noisy, inputs.timesteps, inputs.text)
        if self.module in _DECODES:
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
    loss = FeatureLoss(config.module)
    loss.modules(model)
    return loss


ATTACKS = (
    Attack(
        name="feature",
        summary="push the features of one kind of module away from the clean image's (--module)",
        rule="ascends the squared distance of a module's features to those of the clean image, same noise and timestep",
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
