"""Numbers that the host reads when they are there, instead of waiting for the device after each step."""

from __future__ import annotations

import torch
from torch import Tensor


class Later:
    """Scalars on their way from the device to the host.

    Reading them at once would make the host wait until the device has done all it was given, and the device then wait
    for the host. Who reads the numbers of one step after handing in the next lets both work.

    Args:
        values: scalars on one device, by name.
    """

    def __init__(self, values: dict[str, Tensor]) -> None:
        self._names = list(values)
        stacked = torch.stack([value.detach().float().reshape(()) for value in values.values()])
        self._event: torch.cuda.Event | None = None
        if stacked.is_cuda:
            self._host = torch.empty(stacked.shape, dtype=stacked.dtype, pin_memory=True)
            self._host.copy_(stacked, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = stacked

    def read(self) -> dict[str, float]:
        """The numbers, as soon as the device has computed them."""
        if self._event is not None:
            self._event.synchronize()
        return dict(zip(self._names, self._host.tolist(), strict=True))
