"""PGD on the LDM loss (Eq. 6; AdvDM): untargeted, denoising fails; targeted, the prediction is pulled to a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lordfast.attacks.engine import AttackLoss
from lordfast.attacks.target import target_image
from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.model import Text
from lordfast.pixels import to_tensor


@dataclass(frozen=True)
class LdmLoss:
    """L_LDM, ascended: E over noise and t of || target - prediction ||^2."""

    direction: int = 1

    def __call__(self, model: LatentDiffusion, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        return model.loss(latents, noise, timesteps, text)


@dataclass(frozen=True)
class TargetedLoss:
    """|| prediction - z_target ||^2, descended: every denoising step errs in the same direction.

    Attributes:
        target: latents (1, C, h, w) of the target picture.
    """

    target: Tensor
    direction: int = -1

    def __call__(self, model: LatentDiffusion, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        prediction = model.predict(model.add_noise(latents, noise, timesteps), timesteps, text)
        return (prediction - self.target).square().mean(dim=(1, 2, 3))


def pgd_loss(model: LatentDiffusion, *, targeted: bool, target: Path | None, resolution: int) -> AttackLoss:
    """The loss of `targeted` or untargeted PGD; `target` is a picture file, None for the built-in pattern."""
    if not targeted:
        if target is not None:
            raise ValueError(f"target: {target} was given without targeted; expected both or neither")
        return LdmLoss()
    with torch.no_grad():
        pixels = to_tensor([target_image(target, resolution)]).to(model.device)
        return TargetedLoss(model.encode(pixels))
