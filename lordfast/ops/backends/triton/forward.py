"""`lord_forward` and `lord_qkv_forward` on this backend: from tensors to launches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .configs import Config
from .geometry import Layout, fold_block, layout_of, prep_block
from .kernels.forward import forward_kernel, qkv_kernel, token_gate_kernel
from .kernels.prep import prep_kernel
from .launch import INTERPRETED, cdiv, empty, launch, matrix

Outputs = tuple[Tensor, Tensor, Tensor]


def base_precision() -> str:
    """How fp32 base products are multiplied: what the user allowed torch to do."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def upcast(dtype: torch.dtype) -> bool:
    """Whether the interpreter's broken bf16 must be avoided."""
    return INTERPRETED and dtype == torch.bfloat16


def folded(w1: Tensor, b: Tensor, scaling: float, layout: Layout) -> Tensor:
    """P = s W1 B, (H, r), in a launch of its own."""
    (h, n), r = w1.shape, b.shape[1]
    p = empty(b, (h, r), torch.float32)
    launch(prep_kernel, h, b, w1, b, p, n, r, h, scaling, RQ=layout.RQ, BLOCK=prep_block(layout), num_warps=4)
    return p


def lord_forward(
    config: Config,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lord_A: Tensor,
    lord_B: Tensor,
    lord_B_adv: Tensor,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    scaling: float,
    per_sample: bool,
    activation: str,
) -> Outputs:
    """The operation by one configuration: y (..., N), gate_logit (...) or (batch,), u (..., r)."""
    lead, n, r = x.shape[:-1], lord_B.shape[0], lord_A.shape[0]
    outputs = (
        empty(x, (*lead, n), x.dtype),
        empty(x, lead[:1] if per_sample else lead, torch.float32),
        empty(x, (*lead, r), torch.float32),
    )
    _forward_into(outputs, config, x, weight, bias, (lord_A, lord_B, lord_B_adv, w1, b1, w2, b2), scaling, activation)
    return outputs


def _forward_into(
    outputs: Outputs,
    config: Config,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    parameters: tuple[Tensor, ...],
    scaling: float,
    activation: str,
) -> None:
    y, gate_logit, u = outputs
    a, b, b_adv, w1, b1, w2, b2 = (t.contiguous() for t in parameters)
    m, k, (h, n), r = y.numel() // y.shape[-1], x.shape[-1], w1.shape, a.shape[0]
    if not m:
        gate_logit.zero_()  # a sample without tokens has the logit 0
        return
    x2 = matrix(x, m)
    weight = None if weight is None else matrix(weight, n)
    layout = layout_of(r, x.dtype)
    p = folded(w1, b, scaling, layout) if config.fold == "prep" else None
    gate: dict[str, Any] = {
        **layout._asdict(),
        **config.launch_options,
        "BLOCK_M": config.BLOCK_M,
        "BLOCK_K": config.BLOCK_K,
        "BLOCK_F": fold_block(layout),
        "ACT": activation,
        "EVEN_K": k % config.BLOCK_K == 0,
        "UPCAST": upcast(x.dtype),
    }
    per_sample = gate_logit.numel() != m or gate_logit.ndim != y.ndim - 1
    tokens = 1
    if per_sample:
        tokens = m // gate_logit.shape[0]
        of_tokens = empty(x, (m,), torch.float32)
        args = (x2, a, b, w1, b1, w2, b2, p, of_tokens, u, m, n, k, r, h, *x2.stride(), scaling)
        launch(token_gate_kernel, cdiv(m, config.BLOCK_M), x, *args, **gate)
        torch.mean(of_tokens.view(-1, tokens), 1, out=gate_logit)
    sizes = (m, n, k, r, h, *x2.stride(), *((0, 0) if weight is None else weight.stride()), tokens, scaling)
    args = (x2, weight, bias, a, b, b_adv, w1, b1, w2, b2, p, y, gate_logit, u, *sizes)
    programs = cdiv(m, config.BLOCK_M) * cdiv(n, config.BLOCK_N)
    options = {**gate, "BLOCK_N": config.BLOCK_N, "GIVEN": per_sample, "PRECISION": base_precision()}
    launch(forward_kernel, programs, x, *args, **options)


def lord_qkv_forward(
    config: Config,
    x: Tensor,
    weight: list[Tensor],
    bias: list[Tensor],
    lord_A: list[Tensor],
    lord_B: list[Tensor],
    lord_B_adv: list[Tensor],
    w1: list[Tensor],
    b1: list[Tensor],
    w2: list[Tensor],
    b2: list[Tensor],
    scaling: float,
    per_sample: bool,
    activation: str,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Three projections of x by one configuration: three y (..., N), gate_logit (...) or (batch,), and u (..., r)."""
    lead, (h, n), (r, k) = x.shape[:-1], w1[0].shape, lord_A[0].shape
    m = lead.numel()
    outputs = (
        [empty(x, (*lead, n), x.dtype) for _ in range(3)],
        [empty(x, lead[:1] if per_sample else lead, torch.float32) for _ in range(3)],
        [empty(x, (*lead, r), torch.float32) for _ in range(3)],
    )
    small = (lord_A, lord_B, lord_B_adv, w1, b1, w2, b2)
    if per_sample or not m:
        for i in range(3):
            own = (outputs[0][i], outputs[1][i], outputs[2][i])
            parameters = tuple(t[i] for t in small)
            _forward_into(own, config, x, weight[i], bias[i] if bias else None, parameters, scaling, activation)
        return outputs
    x2, layout = matrix(x, m), layout_of(r, x.dtype)
    triples: list[Any] = [t.contiguous() for role in (weight, bias, *small) for t in role]
    if not bias:
        triples[3:3] = [None] * 3
    programs = 3 * cdiv(m, config.BLOCK_M) * cdiv(n, config.BLOCK_N)
    launch(
        qkv_kernel, programs, x, x2, *triples, *(t for role in outputs for t in role),
        m, n, k, r, h, *x2.stride(), scaling,
        BLOCK_M=config.BLOCK_M, BLOCK_N=config.BLOCK_N, BLOCK_K=config.BLOCK_K, BLOCK_F=fold_block(layout),
        **layout._asdict(), ACT=activation, EVEN_K=k % config.BLOCK_K == 0, PRECISION=base_precision(),
        UPCAST=upcast(x.dtype), **config.launch_options,
    )  # fmt: skip
    return outputs
