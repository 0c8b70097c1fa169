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
    again (``unet.to``, ``deepcopy``, loading with ``assign=True``) is seen by its address, and they are moved again.
    Parameters that lie so already (two models that share them, a pickle that was loaded) stay where they are; those
    that are parts of some other piece of memory stay there too, and are copied together at each call.
    """

    def __init__(self) -> None:
        self._buffer: Tensor | None = None

    def gather(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """The parameters, (N, K) or (N,) each and frozen, as one tensor (sum of N, K) or (sum of N,)."""
        if self._buffer is not None and _lie_at(self._buffer.data_ptr(), self._buffer.dtype, parameters):
            return self._buffer
        old, self._buffer = self._buffer, _in_place(parameters)
        if self._buffer is not None:
            return self._buffer
        mine = None if old is None else old.untyped_storage().data_ptr()
        elsewhere = any(_is_part(p) and p.untyped_storage().data_ptr() != mine for p in parameters)
        if elsewhere or len(set(map(id, parameters))) < len(parameters):
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
        """Give every parameter that lies in the buffer memory of its own again."""
        if self._buffer is not None:
            buffer = self._buffer.untyped_storage().data_ptr()
            for parameter in parameters:
                if parameter.untyped_storage().data_ptr() == buffer:
                    parameter.data = parameter.data.clone()
        self._buffer = None


def _lie_at(address: int, dtype: torch.dtype, parameters: Sequence[nn.Parameter]) -> bool:
    """Whether the parameters follow one another in memory, from `address` on."""
    for parameter in parameters:
        if parameter.data_ptr() != address or parameter.dtype is not dtype:
            return False
        address += parameter.numel() * parameter.element_size()
    return True


def _in_place(parameters: Sequence[nn.Parameter]) -> Tensor | None:
    """The parameters as one tensor where they follow one another in one piece of memory, None where they don't."""
    first, storage = parameters[0], parameters[0].untyped_storage().data_ptr()
    if len(parameters) == 1 or any(p.untyped_storage().data_ptr() != storage for p in parameters):
        return None
    if not (_lie_at(first.data_ptr(), first.dtype, parameters) and all(p.is_contiguous() for p in parameters)):
        return None
    size = (sum(p.shape[0] for p in parameters), *first.shape[1:])
    return first.detach().as_strided(size, first.stride())


def _is_part(parameter: nn.Parameter) -> bool:
    return parameter.untyped_storage().nbytes() != parameter.numel() * parameter.element_size()
