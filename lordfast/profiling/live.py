"""The bytes of all living tensors, and their peak, followed operation by operation: real tensors or fake ones."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations inside make, from their making to their freeing, views not at all.

    Backward passes count as well, as torch runs them in the calling thread wherever no accelerator is at work. What an
    operation needs inside itself and frees again (workspaces, packed copies) is not seen.

    Attributes:
        now: bytes alive of those made inside.
        peak: the most that `now` has been; writable, so that parts of a run can be told apart.
    """

    def __init__(self, *known: Any) -> None:
        """Tensors in `known`, in any nesting of lists and dictionaries, are there already and don't count."""
        super().__init__()
        self.now = 0
        self.peak = 0
        # StorageImpl keeps its Python object, so the object lives exactly as long as the memory does.
        self._ids: set[int] = set()
        for leaf in tree_leaves(known):
            if isinstance(leaf, Tensor):
                self._ignore(leaf)

    def _ignore(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._ids.add(id(storage))
        weakref.finalize(storage, self._ids.discard, id(storage)).atexit = False

    def add(self, tensor: Tensor) -> None:
        """Count a tensor that was made elsewhere, unless it is counted or known already."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._ids:
            return
        self._ids.add(key)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, key, size).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._ids.discard(key)
        self.now -= size

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Asked for thousands of times a step where tensors are fake.
        if func is torch.ops.prim.device.default:
            return func(*args)
        # What comes in was made outside, or is counted.
        for value in args:
            for leaf in value if isinstance(value, list | tuple) else (value,):
                if isinstance(leaf, Tensor) and id(leaf.untyped_storage()) not in self._ids:
                    self._ignore(leaf)
        out = func(*args, **(kwargs or {}))
        for leaf in out if isinstance(out, list | tuple) else (out,):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out
