"""Batches made while the step before computes, and tensors that go to the device without holding up the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

K = TypeVar("K")
V = TypeVar("V")


def made_ahead(make: Callable[[K], V], keys: Iterable[K]) -> Generator[V, None, None]:
    """``make(key)`` for each of `keys` in order, each made in a thread while the caller works with the one before.

    An exception of `make` is raised where its value would have come. Close the iterator to end the thread.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="lordfast-data") as pool:
        waiting: deque[Future[V]] = deque()
        try:
            for key in keys:
                waiting.append(pool.submit(make, key))
                if len(waiting) > 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def pinned(value: Any, device: torch.device) -> Any:
    """`value`, a tensor or dictionaries of them, in memory from which a copy to `device` needs no waiting."""
    if isinstance(value, dict):
        return {key: pinned(item, device) for key, item in value.items()}
    on_host = isinstance(value, Tensor) and value.device.type == "cpu"
    return value.pin_memory() if on_host and device.type == "cuda" else value


def to_device(value: Any, device: torch.device) -> Any:
    """`value`, a tensor or dictionaries of them, on `device`; from pinned memory without waiting for the copy."""
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    if not isinstance(value, Tensor):
        return value
    return value.to(device, non_blocking=value.is_pinned() if device.type == "cuda" else False)
