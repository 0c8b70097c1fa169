"""The precisions that the reference computes in."""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(t: Tensor) -> torch.dtype:
    """fp64 for fp64 inputs, fp32 for all others."""
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def widest(t: Tensor) -> Tensor:
    """t in fp64, or in fp32 on a device without fp64."""
    return t.float() if t.device.type == "mps" else t.double()
