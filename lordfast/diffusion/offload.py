"""A denoiser whose frozen blocks stay in the computer's memory and visit the device when their turn comes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Fetch = Callable[[Tensor], Tensor]
_Swapped = tuple[nn.Module, str, nn.Parameter]


def blocks_of(denoiser: nn.Module) -> dict[str, nn.Module]:
    """The blocks that come and go, by name: the smallest ones that the library says belong together.

    Raises:
        ValueError: the library names none for this class.
    """
    kinds = set(getattr(denoiser, "_no_split_modules", None) or [])
    found = {name: module for name, module in denoiser.named_modules() if type(module).__name__ in kinds}
    smallest = {
        name: module for name, module in found.items() if not any(other.startswith(f"{name}.") for other in found)
    }
    if not smallest:
        raise ValueError(f"offload: a {type(denoiser).__name__} has no blocks that are known to come and go")
    return smallest


@dataclass(frozen=True)
class _View:
    """A tensor that autograd saved and that is all or part of a block's weight."""

    home: Tensor
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class BlockOffload:
    """Keeps the weights of a denoiser's blocks at home, on the CPU, and fetches a block's before each of its calls.

    Unlike the libraries' offloading, which is for inference, this carries gradients: the backward pass fetches each
    weight that it needs, with gradient checkpointing or without. Only parameters that are frozen now come and go;
    adapters, whenever they are injected, stay on the device. Autograd's results are those of the resident model.

    Args:
        denoiser: on any device; what is no block's is moved to `device`.
        fetch: brings one tensor to the device; by default an asynchronous copy out of pinned memory.
    """

    def __init__(self, denoiser: Any, device: torch.device, fetch: Fetch | None = None) -> None:
        self.device = device
        self._denoiser = denoiser
        self._fetch = fetch or (lambda home: home.to(device, non_blocking=True, copy=True))
        self._homes: set[nn.Parameter] = set()
        self._guests: dict[int, Tensor] = {}  # homes of the weights that are on the device now, by storage
        self._swapped: dict[nn.Module, list[_Swapped]] = {}
        self._contexts: list[ExitStack] = []
        self._hooks = [
            denoiser.register_forward_pre_hook(self._begin),
            denoiser.register_forward_hook(self._end, always_call=True),
        ]
        for block in blocks_of(denoiser).values():
            for parameter in block.parameters():
                if not parameter.requires_grad:
                    home = parameter.data.to("cpu")
                    parameter.data = home.pin_memory() if device.type == "cuda" else home
                    self._homes.add(parameter)
            self._hooks += [
                block.register_forward_pre_hook(self._arrive),
                block.register_forward_hook(self._leave, always_call=True),
            ]
        # accelerate, which would move the whole model to the device, leaves alone what is spread over several.
        denoiser.hf_device_map = {"": str(device), "blocks": "cpu"}
        self.settle()

    def settle(self) -> None:
        """Bring what does not travel to the device: adapters take the place of the weight that they are injected at."""
        for parameter in self._denoiser.parameters():
            if parameter not in self._homes:
                parameter.data = parameter.data.to(self.device)
        for buffer in self._denoiser.buffers():
            buffer.data = buffer.data.to(self.device)

    def remove(self) -> None:
        """Bring everything to the device for good."""
        for hook in self._hooks:
            hook.remove()
        for parameter in self._homes:
            parameter.data = self._fetch(parameter.data)
        self._homes.clear()
        del self._denoiser.hf_device_map

    def _begin(self, denoiser: nn.Module, args: Any) -> None:
        # Around the denoiser, not around each block: inside a checkpoint this would keep what the checkpoint lets go.
        context = ExitStack()
        context.enter_context(torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack))
        self._contexts.append(context)

    def _end(self, denoiser: nn.Module, args: Any, output: Any) -> None:
        self._contexts.pop().close()

    def _arrive(self, block: nn.Module, args: Any) -> None:
        swapped: list[_Swapped] = []
        for owner in block.modules():
            for name, parameter in owner._parameters.items():
                if parameter is not None and parameter in self._homes:
                    # Another object, not other data in the same: what autograd saves of it, a checkpoint's second
                    # forward pass included, must not follow the weight home.
                    guest = nn.Parameter(self._fetch(parameter.data), requires_grad=False)
                    self._guests[_storage(guest)] = parameter.data
                    swapped.append((owner, name, parameter))
                    owner._parameters[name] = guest
        self._swapped[block] = swapped

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:
        for owner, name, parameter in self._swapped.pop(block, []):
            guest = owner._parameters[name]
            if guest is not None:
                self._guests.pop(_storage(guest), None)
            owner._parameters[name] = parameter

    def _pack(self, tensor: Tensor) -> Tensor | _View:
        home = self._guests.get(_storage(tensor))
        return tensor if home is None else _View(home, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def _unpack(self, packed: Tensor | _View) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        return self._fetch(packed.home).as_strided(packed.size, packed.stride, packed.offset)


def _storage(tensor: Tensor) -> int:
    # Not the data's address, which is 0 for tensors without data.
    return tensor.untyped_storage()._cdata
