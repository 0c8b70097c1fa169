"""Frozen weights under each other in one piece of memory, of which each layer's own weight is a part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class WeightStack:
    """Several layers' weights as one matrix, without a second copy of them.

    The weights are moved into one buffer, and each parameter's data become its rows there: one product reads them all,
    the memory is what it was, and parameters, state dicts, files and in-place changes are what they were. (SDXL's text
    projections are 0.7 GB; a copy a call would cost more than it saves.) What gives a parameter memory of its own
    again (``unet.to``, ``deepcopy``, loading with ``assign=True``) is seen by its address, and they are moved once more.
    Parameters that share memory already, as two optimised models with the same weights have them, stay where they are
    and are copied together at each call.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def __getstate__(self) -> dict[str, None]:
        # A copy's parameters have memory of their own.
        return {"_buffer": None}

    def gather(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The parameters, (N, K) or (N,) each and frozen, as one tensor (sum of N, K) or (sum of N,)."""
        if self._buffer is not None and self._holds(self._buffer, parameters):
            return self._buffer
        self._buffer = None
        if any(_is_part(parameter) for parameter in parameters) or len(set(map(id, parameters))) < len(parameters):
            return torch.cat([parameter.detach() for parameter in parameters])
        first, rows = parameters[0], [parameter.shape[0] for parameter in parameters]
        # A buffer made in inference mode could never be part of a graph.
        with torch.inference_mode(False), torch.no_grad():
            buffer = torch.empty((sum(rows), *first.shape[1:]), dtype=first.dtype, device=first.device)
            for parameter, part in zip(parameters, buffer.split(rows), strict=True):
                part.copy_(parameter)
                # One by one: each one's old memory is free before the next one is moved.
                parameter.data = part
        self._buffer = buffer
        return buffer

    def release(self, parameters: Sequence[nn.Parameter]) -> None:
        """Give every parameter memory of its own again."""
        if self._buffer is not None and self._holds(self._buffer, parameters):
            for parameter in parameters:
                parameter.data = parameter.data.clone()
        self._buffer = None

    @staticmethod
    def _holds(buffer: Tensor, parameters: Sequence[nn.Parameter]) -> bool:
        address, dtype, size = buffer.data_ptr(), buffer.dtype, buffer.element_size()
        for parameter in parameters:
            if parameter.data_ptr() != address or parameter.dtype is not dtype:
                return False
            address += parameter.numel() * size
        return address == buffer.data_ptr() + buffer.numel() * size


def _is_part(parameter: nn.Parameter) -> bool:
    return parameter.untyped_storage().nbytes() != parameter.numel() * parameter.element_size()
