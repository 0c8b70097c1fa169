"""The launches of an operation without a device: on tensors without memory, written down and not made."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .backward import INPUTS, lord_backward
from .configs import Config, candidates
from .forward import lord_forward, lord_qkv_forward
from .launch import Launch, recording

LORD = INPUTS[3:]


class Sizes(NamedTuple):
    """Tokens, the weight's dimensions, rank and hidden width of a layer."""

    m: int = 4096
    n: int = 640
    k: int = 640
    r: int = 4
    h: int = 64


class Layer:
    """A linear layer of some sizes with LoRD, without memory."""

    def __init__(self, sizes: Sizes, dtype: torch.dtype, per_sample: bool = False) -> None:
        m, n, k, r, h = sizes
        batch = 2 if m % 2 == 0 else 1
        self._x = _tensor(batch, m // batch, k, dtype=dtype)
        small = [_tensor(r, k), _tensor(n, r), _tensor(n, r), _tensor(h, n), _tensor(h), _tensor(h), _tensor()]
        self._parameters: list[Any] = [_tensor(n, k, dtype=dtype), _tensor(n, dtype=dtype), *small]
        self._options: tuple[Any, ...] = (2.0, per_sample, "gelu")
        self._dtype = dtype

    def forward(self, config: Config) -> list[Launch]:
        """The launches of `lord_forward`."""
        with recording(execute=False) as made:
            lord_forward(config, self._x, *self._parameters, *self._options)
        return made

    def qkv(self, config: Config) -> list[Launch]:
        """The launches of `lord_qkv_forward` for three such layers."""
        roles: list[Any] = [[t] * 3 for t in self._parameters]
        with recording(execute=False) as made:
            lord_qkv_forward(config, self._x, *roles, *self._options)
        return made

    def backward(self, configs: Mapping[str, Config], wanted: Collection[str]) -> list[Launch]:
        """The launches of `lord_backward` for gradients of the wanted inputs."""
        lead = self._x.shape[:-1]
        y = _tensor(*lead, len(self._parameters[0]), dtype=self._dtype)
        logit = _tensor(*(lead[:1] if self._options[1] else lead))
        rest: tuple[Any, ...] = (*self._parameters, *self._options, self._dtype, [name in wanted for name in INPUTS])
        with recording(execute=False) as made:
            lord_backward(configs, y, logit, self._x, logit, _tensor(*lead, len(self._parameters[2])), *rest)
        return made


def launches_per_layer(
    sizes: Sizes | None = None,
    dtype: torch.dtype = torch.bfloat16,
    *,
    per_sample: bool = False,
    wanted: Collection[str] = ("x", *LORD),
) -> dict[str, int]:
    """How many kernels each operation launches for a layer, in the table's first configuration for it."""
    sizes = sizes or Sizes()
    layer = Layer(sizes, dtype, per_sample)
    first = {
        kernel: candidates(kernel, dtype.itemsize, sizes.r, sizes.m, sizes.h * sizes.n)[0]
        for kernel in ("forward", "rows", "dx")
    }
    return {
        "lord_forward": len(layer.forward(first["forward"])),
        "lord_backward": len(layer.backward(first, wanted)),
        "lord_qkv_forward": len(layer.qkv(first["forward"])),
    }


def _tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
