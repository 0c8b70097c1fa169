"""LPIPS, the perceptual distance of two pictures (Zhang et al. 2018), by torchmetrics."""

from __future__ import annotations

from typing import Literal

import torch

from lordfast.evaluation.measure import Unavailable
from lordfast.evaluation.pairs import check_pair
from lordfast.pixels import Uint8Image, to_tensor

Net = Literal["alex", "vgg", "squeeze"]
SMALLEST = 32
"""Pixels a side from which every layer of the three networks has something left to look at."""


class Lpips:
    """LPIPS of one picture and another of the same size; 0 for equal ones, larger the more they differ."""

    def __init__(self, net: Net, device: torch.device | None = None) -> None:
        """Load the network `net` with its ImageNet weights, which torchvision downloads once.

        Raises:
            Unavailable: no torchvision, or no weights.
        """
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        try:
            metric = LearnedPerceptualImagePatchSimilarity(net_type=net)
        except ImportError as error:
            raise Unavailable(f"lpips: {net} is a network of torchvision: {error}") from error
        except (OSError, RuntimeError, ValueError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise Unavailable(f"lpips: the weights of {net} can't be downloaded or read: {reason}") from error
        self._device = device or torch.device("cpu")
        self._metric = metric.to(self._device).eval()

    @torch.no_grad()
    def __call__(self, image: Uint8Image, reference: Uint8Image) -> float | None:
        """Of two uint8 images (H, W, 3); None where a side has fewer than 32 pixels.

        Raises:
            TypeError, ValueError: no uint8 images, or images of two sizes.
        """
        check_pair(image, reference)
        if min(image.shape[:2]) < SMALLEST:
            return None
        self._metric.reset()
        return float(self._metric(to_tensor([image]).to(self._device), to_tensor([reference]).to(self._device)))
