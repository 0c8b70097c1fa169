"""LoRD with the gates that the fused kernels don't know, and with a lambda that is set from outside, in plain PyTorch.

Per token, with u = A x and s = alpha / r:

    g          = s B u | u | x                      gate_input: branch (N features, Eq. 4), down (r), input (K)
    n          = g                                  gate_norm: none
               = (g - mean g) / sqrt(var g + eps)              layer (Ba et al. 2016), over the features
               = g / sqrt(mean g^2 + eps)                      rms (Zhang and Sennrich 2019)
    z          = W1 n + b1 [+ Wt e(t)]              gate_timestep: e of timestep.py
    gate_logit = (w2 . act(z) + b2) / T             averaged over a sample's tokens for granularity "sample"
    lambda     = sigmoid(gate_logit), or the value that override_lambda set
    delta      = s B u + lambda s B' u              Eq. 5

Precisions are those of the operations: u, the gate and lambda in fp32 (fp64 for fp64 x) whatever x has and whatever
autocast says, the rank-2r product in x's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lordfast.adapter.config import LordConfig
from lordfast.ops import Gate
from lordfast.ops.checks import check_tokens

NORM_EPS = 1e-5
"""As in torch's layer norm. At B = 0, where training starts, a normalised branch is 0 and its slope 1 / sqrt(eps)."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}


class Parts(NamedTuple):
    """The parameters of one adapter in one layer."""

    lord_A: Tensor  # (r, K)
    lord_B: Tensor  # (N, r)
    lord_B_adv: Tensor  # (N, r)
    gate: Gate  # w1 (H, N), (H, r) or (H, K); b1 (H,); w2 (H,); b2 ()
    lord_wt: Tensor | None  # (H, D), None for a gate that does not know the timestep


def composite_delta(
    x: Tensor,
    parts: Parts,
    config: LordConfig,
    embedding: Tensor | None = None,
    *,
    value: float | None = None,
    wants_logit: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """What LoRD adds to a linear layer, for every kind of gate; differentiable in x and in all parameters.

    Args:
        x: (..., K), any floating dtype; the batch comes first where the gate is one of samples or knows the timestep.
        embedding: of the timestep, (1, D) or (batch, D); needed where ``parts.lord_wt`` is there.
        value: lambda, in place of the gate's.
        wants_logit: False leaves the gate out where `value` makes it useless.

    Returns:
        delta: (..., N) in x's dtype.
        gate_logit: fp32 (fp64 for fp64 x), (...) per token or (batch,) per sample; None where it was left out.

    Raises:
        ValueError: x does not have the embedding's batch, or none where the gate is one of samples.
    """
    check_tokens(x, config.gate_granularity)
    dt = torch.float64 if x.dtype == torch.float64 else torch.float32
    # Autocast would round u and the gate.
    with torch.autocast(x.device.type, enabled=False):
        a, b, b_adv = (t.to(dt) for t in parts[:3])
        parts = Parts(a, b, b_adv, Gate(*(t.to(dt) for t in parts.gate)), parts.lord_wt)
        exact = x.to(dt)
        u = exact @ a.mT
        logit = gate_logit(exact, u, parts, config, embedding) if wants_logit or value is None else None
        if value is None and logit is not None:
            gated = u * _spread(torch.sigmoid(logit), x)
        else:
            gated = u * (value or 0.0)
        both = config.scaling * torch.cat([b, b_adv], dim=1)
        return torch.cat([u, gated], dim=-1).to(x.dtype) @ both.to(x.dtype).mT, logit


def _spread(lam: Tensor, x: Tensor) -> Tensor:
    """(...) or (batch,) -> (..., 1) or (batch, 1, ..., 1)."""
    return lam.reshape(*lam.shape, *(1,) * (x.ndim - lam.ndim))


def gate_logit(x: Tensor, u: Tensor, parts: Parts, config: LordConfig, embedding: Tensor | None) -> Tensor:
    """The gate before its sigmoid, of x (..., K) and u (..., r), both in the dtype that the parameters have."""
    w1, b1, w2, b2 = parts.gate
    if config.gate_input == "branch":
        z = _read_branch(u, w1, config.scaling * parts.lord_B, config.gate_norm) + b1
    else:
        z = F.linear(_normalised(u if config.gate_input == "down" else x, config.gate_norm), w1, b1)
    if parts.lord_wt is not None:
        z = z + _at_tokens(embedding, x) @ parts.lord_wt.to(z.dtype).mT
    logit = (_ACTIVATIONS[config.gate_activation](z) @ w2 + b2) / config.gate_temperature
    if config.gate_granularity == "sample":
        tokens = logit.unsqueeze(-1).flatten(1)
        # A sample without tokens gets the logit 0, where a mean would be NaN.
        return tokens.sum(1) / max(tokens.shape[1], 1)
    return logit


def _read_branch(u: Tensor, w1: Tensor, branch: Tensor, norm: str) -> Tensor:
    """W1 n for g = C u with C = s B (N, r), (..., H), without g: the branch has N features and only r of them are free.

    The mean over the features is (1/N) 1^T C u, and a sum of squares over them is u^T C^T C u: both norms, too, are
    functions of u.
    """
    if norm == "layer":
        branch = branch - branch.mean(dim=0)
    z = u @ (w1 @ branch).mT
    if norm == "none":
        return z
    # No less than 0, which rounding could make of a u that C all but maps to 0.
    mean_square = ((u @ (branch.mT @ branch)) * u).sum(-1, keepdim=True).clamp(min=0) / len(branch)
    return z * torch.rsqrt(mean_square + NORM_EPS)


def _normalised(features: Tensor, norm: str) -> Tensor:
    if norm == "layer":
        return F.layer_norm(features, features.shape[-1:], eps=NORM_EPS)
    return F.rms_norm(features, features.shape[-1:], eps=NORM_EPS) if norm == "rms" else features


def _at_tokens(embedding: Tensor | None, x: Tensor) -> Tensor:
    """(1 or batch, D) -> (1 or batch, 1, ..., 1, D), in x's dtype."""
    if embedding is None:
        raise ValueError(
            "gate_timestep: the timestep is known only within a call of the denoiser that LoRD was added to; a layer "
            "of it was called on its own"
        )
    if x.ndim < 2 or len(embedding) not in (1, len(x)):
        raise ValueError(
            f"gate_timestep: the denoiser was called with {len(embedding)} timesteps, and one of its layers with x of "
            f"shape {tuple(x.shape)}; expected as many samples in the first of its dimensions"
        )
    return embedding.to(x.dtype).reshape(len(embedding), *(1,) * (x.ndim - 2), embedding.shape[1])
