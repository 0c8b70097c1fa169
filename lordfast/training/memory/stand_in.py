"""Layers that need the memory of quantised ones and compute nothing: bitsandbytes' own can't be built without data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lordfast.diffusion.quantize import BLOCK, replace_layers

BYTES_PER_WEIGHT = {
    "none": None,
    # A byte a weight; a scale a row is counted with the layer.
    "8bit": 1.0,
    # Half a byte a weight, one byte a block for its scale, itself quantised, and four for each 256 of these.
    "4bit": 0.5 + 1 / BLOCK + 4 / (256 * BLOCK),
}


class _Product(torch.autograd.Function):
    """x W^T where W is made for the moment, forward and backward, and not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: int, eight: bool) -> Tensor:
        ctx.rows, ctx.columns = rows, x.shape[-1]
        if eight:
            # int8 inputs and int32 sums, instead of weights in full.
            rounded = torch.empty_like(x, dtype=torch.int8)
            sums = torch.empty(*x.shape[:-1], rows, dtype=torch.int32)
            del rounded
            return sums.to(x.dtype)
        return x @ torch.empty(rows, x.shape[-1], dtype=x.dtype).t()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0] @ torch.empty(ctx.rows, ctx.columns, dtype=grads[0].dtype), None, None


class StandIn(nn.Linear):
    """A linear layer whose weight takes no memory; it is counted apart, by `BYTES_PER_WEIGHT`."""

    def __init__(self, linear: nn.Linear, bits: str) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.bits = bits
        self.weight = nn.Parameter(torch.empty(0, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Product.apply(x, self.out_features, self.bits == "8bit")  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)


def stand_in(denoiser: nn.Module, bits: str) -> int:
    """Replace the layers that would be quantised; returns how many."""
    return replace_layers(denoiser, lambda linear: StandIn(linear, bits))
