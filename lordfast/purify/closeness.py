"""How far one image is from another, differentiably: LPIPS, and stand-ins for it that need no download."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lordfast.diffusion import LatentDiffusion

Distance = Callable[[Tensor], Tensor]
"""Of images (B, 3, H, W) in [-1, 1] to the ones it was made for; (B,) fp32."""

DISTANCES = ("vae", "lpips", "l2")


def distance_to(name: str, model: LatentDiffusion) -> Callable[[Tensor], Distance]:
    """What makes, of reference images (B, 3, H, W) in [-1, 1], the distance to them.

    * ``vae``: LPIPS' formula (Zhang et al. 2018, Eq. 1), unit-normalised activations compared position by position,
      on the blocks of the model's own encoder, all weights 1. A stand-in that works offline.
    * ``lpips``: LPIPS on VGG, from torchmetrics.
    * ``l2``: root mean square difference in [0, 1] pixels.

    Raises:
        ValueError: an unknown name, or LPIPS without the packages or weights it needs.
    """
    if name == "vae":
        return lambda reference: _encoder_distance(model, reference)
    if name == "l2":
        return _l2
    if name != "lpips":
        raise ValueError(f"distance: expected one of {', '.join(DISTANCES)}, got {name!r}")
    net = _lpips().to(model.device)
    return lambda reference: lambda images: net(images, reference).reshape(-1)


def _l2(reference: Tensor) -> Distance:
    # The root's slope at 0, where the optimisation begins, is infinite; a millionth of a pixel value is nothing.
    return lambda images: ((images - reference).square().mean(dim=(1, 2, 3)) / 4 + 1e-12).sqrt()


def _encoder_distance(model: LatentDiffusion, reference: Tensor) -> Distance:
    encoder = model.vae.encoder

    def activations(images: Tensor) -> list[Tensor]:
        hidden, found = encoder.conv_in(images.to(model.vae.dtype)), []
        for block in encoder.down_blocks:
            hidden = block(hidden)
            found.append(torch.nn.functional.normalize(hidden.float(), dim=1, eps=1e-6))
        return found

    with torch.no_grad():
        known = activations(reference)

    def distance(images: Tensor) -> Tensor:
        parts = [
            (ours - theirs).square().sum(dim=1).mean(dim=(1, 2))
            for ours, theirs in zip(activations(images), known, strict=True)
        ]
        return torch.stack(parts).mean(dim=0)

    return distance


def _lpips() -> Any:
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        # Its network, not the metric: the metric's forward averages over the batch and keeps a state.
        return LearnedPerceptualImagePatchSimilarity(net_type="vgg").net.eval().requires_grad_(False)
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(
            "distance: lpips needs torchvision and the weights of its VGG network, which it downloads on first use: "
            f"{error}; vae and l2 work without"
        ) from error
