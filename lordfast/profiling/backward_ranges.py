"""NVTX ranges for layers in a backward pass, which has no modules to hook: hooks on the tensors between the layers.

When the gradient of a layer's output is there, the layer's turn begins; when that of its input is complete, it is over.
Turns don't nest: a layer within another interrupts it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import nvtx
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .layers import Layer


class _Turns:
    """Whose turn it is. Ranges are begun and ended, not pushed and popped: autograd's threads may do either."""

    def __init__(self) -> None:
        self._layer: Layer | None = None
        self._range: Any = None
        self._task = -1

    def begin(self, layer: Layer | None) -> None:
        """The turn of `layer`, or of nobody."""
        if self._range is not None:
            nvtx.end_range(self._range)
            self._range = None
        self._layer = layer
        if layer is None:
            return
        self._range = nvtx.start_range(f"{layer.mark} backward", domain="lordfast")
        task = torch._C._current_graph_task_id()
        if task != self._task:
            # The input of a model's first layer often wants no gradient: nothing would end that layer's turn.
            self._task = task
            engine: Any = torch.autograd.Variable._execution_engine
            engine.queue_callback(lambda: self.begin(None))

    def end(self, layer: Layer, outer: Layer | None) -> None:
        """The turn of `layer`, and of all within it, is over."""
        if self._layer is not None and f"{self._layer.name}.".startswith(f"{layer.name}."):
            self.begin(outer)


@contextmanager
def backward_ranges(layers: Mapping[nn.Module, Layer]) -> Iterator[None]:
    """Inside, backward passes through `layers` leave NVTX ranges named ``layer:KIND|NAME backward``.

    Compiled modules leave none: hooks would be compiled along.
    """
    turns = _Turns()
    opened: list[Layer] = []
    handles: list[Any] = []

    def on_gradients(values: Any, call: Callable[[], None]) -> None:
        for value in tree_leaves(values):
            if isinstance(value, Tensor) and value.requires_grad:
                handles.append(value.register_hook(lambda gradient: call()))

    def enter(layer: Layer, args: Any, kwargs: Any) -> None:
        outer = opened[-1] if opened else None
        opened.append(layer)
        on_gradients((args, kwargs), lambda: turns.end(layer, outer))

    def leave(layer: Layer, output: Any) -> None:
        opened.pop()
        on_gradients(output, lambda: turns.begin(layer))

    try:
        for module, layer in layers.items():
            if module._compiled_call_impl is not None:
                continue

            def before(_: nn.Module, args: Any, kwargs: Any, layer: Layer = layer) -> None:
                enter(layer, args, kwargs)

            def after(_: nn.Module, args: Any, output: Any, layer: Layer = layer) -> None:
                leave(layer, output)

            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, always_call=True))
        yield
    finally:
        turns.begin(None)
        for handle in handles:
            handle.remove()
