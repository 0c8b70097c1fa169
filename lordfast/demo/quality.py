"""How good the embedded model is."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL

from lordfast.data.images import Uint8Image
from lordfast.pixels import to_tensor, to_uint8


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, images: Uint8Image) -> Uint8Image:
    """Encode and decode images (N, H, W, 3), through the posterior's mean."""
    parts = []
    for start in range(0, len(images), 50):
        pixels = to_tensor(list(images[start : start + 50])).to(vae.device, vae.dtype)
        parts.append(np.stack(to_uint8(vae.decode(vae.encode(pixels).latent_dist.mean).sample.float())))
    return np.concatenate(parts)


def psnr(one: Uint8Image, other: Uint8Image) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each pair of images (N, H, W, 3): 10 log10(255^2 / mean square error)."""
    error = (one.astype(np.float64) - other.astype(np.float64)) ** 2
    return 10 * np.log10(255**2 / error.mean(axis=(1, 2, 3)))
