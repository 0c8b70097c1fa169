"""Which modules of a model count as its layers, and hooks that follow them through forward and backward passes.

Nothing is wrapped and no graph changes. A backward pass is followed by sequence numbers: autograd numbers the nodes as
a forward pass makes them, and the layer that was open then is the layer whose gradient a node computes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lordfast.adapter.layer import LordLayer
from lordfast.ranges import Mark

LAYER = "layer:"
"""What the name of a layer begins with in a trace; its kind and its name follow, with a | between."""

Direction = Literal["forward", "backward", "recompute"]

_PARTS = {"unet": "UNet", "vae": "VAE", "vae.encoder": "VAE encoder", "vae.decoder": "VAE decoder"}
# By the names of their classes: importing them would take seconds, and transformers and diffusers have several each.
_KINDS = {
    "Attention": "attention",
    "CLIPAttention": "attention",
    "FeedForward": "feed-forward",
    "CLIPMLP": "feed-forward",
    "ResnetBlock2D": "resnet",
}
_LEAVES = {"Conv2d": "convolution", "Linear": "projection"}


@dataclass(frozen=True)
class Layer:
    """A module that is measured: its path, ``unet.mid_block.attentions.0``, and its kind, ``UNet attention``."""

    name: str
    kind: str

    @property
    def mark(self) -> str:
        """Its name in a trace."""
        return f"{LAYER}{self.kind}|{self.name}"

    @classmethod
    def of_mark(cls, mark: str) -> Layer:
        """The layer of a `mark`."""
        kind, _, name = mark.removeprefix(LAYER).partition("|")
        return cls(name, kind)


def find_layers(parts: Mapping[str, nn.Module]) -> dict[nn.Module, Layer]:
    """The layers of a model's `parts` by name: adapters, attention, feed-forward, resnets, and what lies outside them.

    What an adapter wraps is part of its layer. Hooks change what runs inside a module that torch.compile has compiled,
    and in attention whose projections lordfast computes together: what these hold is part of them.
    """
    found: dict[nn.Module, Layer] = {}

    def visit(module: nn.Module, name: str, part: str, inside: bool) -> None:
        if module in found:
            return
        part = _PARTS.get(name, part)
        if module._compiled_call_impl is not None:
            found[module] = Layer(name, f"{part} {type(module).__name__}, compiled")
            return
        adapter = _adapter(module)
        kind = adapter or _KINDS.get(type(module).__name__)
        if kind is None and not inside and not any(True for _ in module.children()):
            leaf = type(module).__name__
            kind = _LEAVES.get(leaf, "normalisation" if leaf.endswith("Norm") else "other")
        if kind is not None:
            found[module] = Layer(name, f"{part} {kind}")
        if adapter is not None:
            # A hook on the linear layer inside would keep the fused operation from standing in for it.
            base: Any = module.base_layer
            if _adapter(base) is not None:
                visit(base, f"{name}.base_layer", part, True)
            return
        if type(getattr(module, "processor", None)).__module__.startswith("lordfast."):
            return
        for child, inner in module.named_children():
            visit(inner, f"{name}.{child}", part, inside or kind is not None)

    for name, module in parts.items():
        visit(module, name, name.replace("_", " "), False)
    return found


def _adapter(module: nn.Module) -> str | None:
    from peft.tuners.lora import LoraLayer

    if isinstance(module, LordLayer):
        return "LoRD"
    return "LoRA" if isinstance(module, LoraLayer) else None


class Tracker:
    """Knows which layer is at work; made by `tracking`."""

    def __init__(self, mark: bool) -> None:
        self._mark = mark
        self._open: list[tuple[Layer, Mark | None]] = []
        self._numbers: list[int] = []
        self._layers: list[Layer | None] = []

    def current(self) -> tuple[Layer | None, Direction]:
        """The innermost layer at work, and in which pass; asked from within an operation."""
        in_backward = torch._C._current_graph_task_id() != -1
        if self._open:
            return self._open[-1][0], "recompute" if in_backward else "forward"
        if not in_backward:
            return None, "forward"
        node = torch._C._current_autograd_node()
        return (None if node is None else self._layer_of(node._sequence_nr())), "backward"

    def _layer_of(self, number: int) -> Layer | None:
        # The accumulation of gradients has the largest number there is, which no layer's is.
        at = bisect_right(self._numbers, number) - 1
        return None if at < 0 else self._layers[at]

    def enter(self, layer: Layer) -> None:
        mark = Mark(layer.mark) if self._mark else None
        self._open.append((layer, mark))
        self._note()
        if mark is not None:
            mark.__enter__()

    def leave(self) -> None:
        _, mark = self._open.pop()
        if mark is not None:
            mark.__exit__(None, None, None)
        self._note()

    def around(self, layer: Layer, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, during which `layer` is at work."""

        def tracked(*args: Any, **kwargs: Any) -> Any:
            self.enter(layer)
            try:
                return call(*args, **kwargs)
            finally:
                self.leave()

        return tracked

    def _note(self) -> None:
        # What a backward pass computes again makes nodes that no gradient flows through.
        if torch._C._current_graph_task_id() == -1:
            self._numbers.append(torch._C._autograd._get_sequence_nr())
            self._layers.append(self._open[-1][0] if self._open else None)


@contextmanager
def tracking(layers: Mapping[nn.Module, Layer], *, mark: bool = False) -> Iterator[Tracker]:
    """Hooks on `layers` for as long as the context is open.

    Args:
        mark: also leave a `Mark` for every forward pass of a layer.
    """
    tracker = Tracker(mark)
    handles = []
    compiled: dict[nn.Module, Any] = {}
    try:
        for module, layer in layers.items():
            if module._compiled_call_impl is not None:
                compiled[module] = module._compiled_call_impl
                module._compiled_call_impl = tracker.around(layer, compiled[module])
                continue

            def enter(_: nn.Module, __: Any, layer: Layer = layer) -> None:
                tracker.enter(layer)

            def leave(*_: Any) -> None:
                tracker.leave()

            handles.append(module.register_forward_pre_hook(enter))
            # Checkpointing ends its recomputation early, by an exception.
            handles.append(module.register_forward_hook(leave, always_call=True))
        yield tracker
    finally:
        for handle in handles:
            handle.remove()
        for module, call in compiled.items():
            module._compiled_call_impl = call
