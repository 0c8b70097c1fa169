"""The gate's activations and their derivatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def activate(z: Tensor, activation: str) -> Tensor:
    """act(z); "gelu" is the exact one, by erf."""
    if activation == "relu":
        return F.relu(z)
    return F.silu(z) if activation == "silu" else F.gelu(z)


def activate_backward(grad: Tensor, z: Tensor, activation: str) -> Tensor:
    """grad * act'(z), with relu'(0) = 0."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, z, 0)
    return (torch.ops.aten.silu_backward if activation == "silu" else torch.ops.aten.gelu_backward)(grad, z)
