"""Where tensors' values are read by the host: on a GPU each of these would wait for the device."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Operations whose result, or its size, is made of values on the device.
_READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "_unique2", "unique_dim", "equal")
# Methods that copy to the host under names that a tensor on a CPU does not pass on.
_COPIES = ("tolist", "numpy", "cpu")


class _Watch(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        by_mask = name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1])
        if name in _READS or by_mask:
            self._found.append("".join(traceback.format_stack()[:-1]))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def host_reads(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AbstractContextManager[list[str]]]:
    """``with host_reads("part of a path", ...) as found:`` collects a stack a read, but for those from there."""

    @contextmanager
    def watch(*but: str) -> Iterator[list[str]]:
        every: list[str] = []
        found: list[str] = []
        with monkeypatch.context() as patch, _Watch(every):
            for name in _COPIES:
                method = getattr(Tensor, name)

                def noted(self: Tensor, *args: Any, method: Any = method, **kwargs: Any) -> Any:
                    every.append("".join(traceback.format_stack()[:-1]))
                    return method(self, *args, **kwargs)

                patch.setattr(Tensor, name, noted)
            yield found
        found += [stack for stack in every if not any(part in stack for part in but)]

    return watch
