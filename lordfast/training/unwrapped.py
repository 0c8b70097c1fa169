"""Accelerators that leave the model as it is, where accelerate would put DistributedDataParallel around it."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")


class Unwrapped:
    """An accelerator that trains the model itself, with its precision; everything else is the given one's."""

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def prepare(self, objective: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
        """Both for the loop. What accelerate calls evaluation mode is all that it does to a model but the wrapping."""
        accelerator = self._accelerator
        return accelerator.prepare_model(objective, evaluation_mode=True), accelerator.prepare_optimizer(optimizer)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[None]:
        """A forward and backward whose gradients stay here; without a wrapper every one is."""
        return contextlib.nullcontext()


class Alone(Unwrapped):
    """One of several processes, training as if it were the only one."""

    num_processes = 1
    process_index = 0

    def reduce(self, values: T, reduction: str = "mean") -> T:
        """Over this process alone."""
        return values

    def wait_for_everyone(self) -> None:
        """There is nobody."""
