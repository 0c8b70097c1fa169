"""What lordfast is measured against: LoRD and PGD as one would write them in PyTorch, and a LoRA from PEFT."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lordfast.adapter import layer
from lordfast.ops import Gate

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu}


def eager_lord_linear(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lord_A: Tensor,
    lord_B: Tensor,
    lord_B_adv: Tensor,
    gate: Gate,
    scaling: float,
    *,
    granularity: str = "token",
    activation: str = "silu",
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Eq. 4-5 as the paper has them, nothing folded, everything in x's dtype: `lord_linear`'s eager twin.

    `backend` is there to have the same signature. Shapes as in `lordfast.ops.lord_linear`, weight None leaves out the
    base.
    """
    a, b, b_adv, w1, b1, w2, b2 = (t.to(x.dtype) for t in (lord_A, lord_B, lord_B_adv, *gate))
    down = F.linear(x, a)
    benign = scaling * F.linear(down, b)
    adversarial = scaling * F.linear(down, b_adv)
    logit = _ACTIVATIONS[activation](F.linear(benign, w1, b1)) @ w2 + b2
    if granularity == "sample":
        logit = logit.reshape(x.shape[0], -1).mean(1)
        lam = torch.sigmoid(logit).reshape(-1, *[1] * (x.ndim - 1))
    else:
        lam = torch.sigmoid(logit)[..., None]
    delta = benign + lam * adversarial
    return (delta if weight is None else F.linear(x, weight, bias) + delta), logit


def _eager_lord_delta(
    x: Tensor, lord_A: Tensor, lord_B: Tensor, lord_B_adv: Tensor, gate: Gate, scaling: float, **options: Any
) -> tuple[Tensor, Tensor]:
    return eager_lord_linear(x, None, None, lord_A, lord_B, lord_B_adv, gate, scaling, **options)


@contextmanager
def eager_lord() -> Iterator[None]:
    """Inside, every LordLinear of the process computes the eager formula instead of the fused operations."""
    fused = layer.lord_linear, layer.lord_delta
    layer.lord_linear, layer.lord_delta = eager_lord_linear, _eager_lord_delta  # type: ignore[assignment]
    try:
        yield
    finally:
        layer.lord_linear, layer.lord_delta = fused


def compiled(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`torch.compile` of a function for fixed shapes, with nothing left to eager."""
    # Each benchmark case compiles anew; torch gives up on a function after a handful of shapes.
    torch.compiler.reset()
    # Inductor's layout optimisation makes wrong gradients on CPUs (seen with torch 2.13 on a plain diffusers UNet).
    options: dict[str, Any] = {"layout_optimization": False} if device.type == "cpu" else {}
    return torch.compile(function, fullgraph=True, dynamic=False, options=options)


def peft_loras(bases: Sequence[nn.Linear], rank: int) -> list[nn.Module]:
    """A PEFT LoRA of this rank around each layer, adapters in fp32 as PEFT makes them for training."""
    import peft

    holder = nn.Sequential(*bases)
    # Random B: the values cost nothing, and zeros could.
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, target_modules=[str(i) for i in range(len(bases))], init_lora_weights=False
    )
    peft.get_peft_model(holder, config, autocast_adapter_dtype=True)  # type: ignore[arg-type]
    return list(holder)


def eager_pgd(
    x_adv: Tensor, x_orig: Tensor, grad: Tensor, *, step_size: float, eps: float, norm: str, low: float, high: float
) -> Tensor:
    """One step of PGD (Eq. 6) as one would write it, everything in x's dtype; shapes as in `lordfast.ops.pgd_step`."""
    if norm == "linf":
        return (x_adv + step_size * grad.sign()).clamp(x_orig - eps, x_orig + eps).clamp(low, high)
    moved = x_adv + step_size * grad / _norm(grad) - x_orig
    return (x_orig + moved * (eps / _norm(moved)).clamp(max=1)).clamp(low, high)


def _norm(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t, dim=list(range(1, t.ndim)), keepdim=True)
