"""Images as people store them, uint8 RGB, and as models take them, tensors in [-1, 1]: the one place that converts.

Stands below everything but torch, so that data and diffusion can share it without knowing each other.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

Uint8Image = npt.NDArray[np.uint8]


def check_image(image: npt.NDArray[np.generic], argument: str = "image") -> None:
    """Raise unless ``image`` is a non-empty uint8 array of shape (H, W, 3)."""
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{argument}: expected a uint8 numpy array (H, W, 3), got {type(image).__name__}")
    if image.dtype != np.uint8:
        raise TypeError(f"{argument}: expected dtype uint8, got {image.dtype}")
    if image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"{argument}: expected shape (H, W, 3), got {image.shape}")


def to_tensor(images: Uint8Image | Sequence[Uint8Image]) -> torch.Tensor:
    """Convert uint8 images to float32 (B, 3, H, W) in [-1, 1] (0 -> -1, 255 -> 1).

    Args:
        images: (B, H, W, 3), or a list of (H, W, 3) of one size.
    """
    if isinstance(images, np.ndarray):
        if images.ndim != 4:
            raise ValueError(f"images: expected shape (B, H, W, 3) or a list of (H, W, 3), got {images.shape}")
        batch = images
    else:
        if len(images) == 0:
            raise ValueError("images: expected at least one image, got an empty list")
        for index, image in enumerate(images):
            check_image(image, f"images[{index}]")
            if image.shape != images[0].shape:
                raise ValueError(
                    f"images[{index}]: expected the first image's shape {images[0].shape}, got {image.shape}"
                )
        batch = np.stack(images)
    if batch.dtype != np.uint8 or batch.shape[3] != 3:
        raise ValueError(f"images: expected uint8 (B, H, W, 3), got {batch.dtype} {batch.shape}")
    # .copy() also turns negative strides (flipped views), which torch refuses, into a plain layout.
    pixels = torch.from_numpy(batch.transpose(0, 3, 1, 2).copy())
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(tensor: torch.Tensor) -> Uint8Image:
    """Convert (B, 3, H, W) in [-1, 1] to uint8 (B, H, W, 3), clamped and rounded to the nearest level.

    The exact inverse of `to_tensor`.

    Raises:
        ValueError: for another shape or for NaN, which no pixel value stands for.
    """
    if tensor.ndim != 4 or tensor.shape[1] != 3:
        raise ValueError(f"tensor: expected shape (B, 3, H, W), got {tuple(tensor.shape)}")
    values = tensor.detach().to(device="cpu", dtype=torch.float32)
    if bool(torch.isnan(values).any()):
        raise ValueError("tensor: holds NaN, expected values in [-1, 1]")
    levels = values.add(1.0).mul_(127.5).round_().clamp_(0.0, 255.0).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous().numpy()
