"""What keeps LoRD from being lost in silence by code that only knows LoRA.

LoRD's own classes raise where PEFT asks them (``LordLayer.merge``, ``LordModel``). Three doors pass them by:

* methods of the adapted model that work on its modules from outside (``unload_lora``, ``fuse_qkv_projections``,
  ``save_pretrained``): the *instance* gets a guard under the same name, taken off again by ``remove_lord``;
* another adapter injected under LoRD's name: the model's ``peft_config`` is an :class:`AdapterConfigs`;
* ``merge_and_unload`` and ``unload`` of another PEFT method on a model with LoRD, which jump straight to the innermost
  layer: the one method of ``BaseTuner`` behind them is wrapped, once, and changes nothing on models without LoRD.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any, NoReturn

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from lordfast.adapter.config import LordConfig
from lordfast.adapter.layer import LordLayer

_REFUSED = {
    "fuse_qkv_projections": (
        "fused projections bypass the layers that carry LoRD; lordfast.optimize fuses them together with LoRD, or call "
        "remove_lord first"
    ),
    "save_pretrained": (
        "the weights would be saved under names that no model can load; save LoRD with lordfast.save_lord, and the "
        "bare model after lordfast.remove_lord"
    ),
}


class _Refusal:
    """Stands in for a method that would lose LoRD."""

    def __init__(self, method: str) -> None:
        self.method = method

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise RuntimeError(f"{self.method} is not possible while LoRD is in the model: {_REFUSED[self.method]}")


class _UnloadLora:
    """Stands in for ``unload_lora``: takes every other PEFT layer out and leaves LoRD where it is."""

    def __init__(self, model: nn.Module) -> None:
        # A plain reference would be a cycle, and the model's memory would wait for the garbage collector.
        self._model = weakref.ref(model)

    def __call__(self) -> None:
        model = self._model()
        if model is not None:
            unload_others(model)

    def __reduce__(self) -> tuple[Any, ...]:
        # Serves deepcopy too: the copy of the model is what the copied guard refers to.
        return (_UnloadLora, (self._model(),))


class AdapterConfigs(dict[str, PeftConfig]):
    """``peft_config`` of a model with LoRD: refuses another adapter under a LoRD adapter's name.

    PEFT tells adapters apart by name alone, so the newcomer would mix its tensors with LoRD's in every state dict.
    """

    def __setitem__(self, name: str, config: PeftConfig) -> None:
        present = self.get(name)
        if isinstance(present, LordConfig) and present is not config:
            raise ValueError(
                f"the adapter name {name!r} is taken by LoRD; choose another one for {type(config).__name__}"
            )
        super().__setitem__(name, config)

    def update(self, *args: Any, **kwargs: Any) -> None:
        """As dict's, through the check."""
        for name, config in dict(*args, **kwargs).items():
            self[name] = config


def add_guards(model: nn.Module) -> None:
    """Put the guards on the instance, for those methods that its class has."""
    for method in _REFUSED:
        if hasattr(type(model), method):
            model.__dict__[method] = _Refusal(method)
    if hasattr(type(model), "unload_lora"):
        model.__dict__["unload_lora"] = _UnloadLora(model)


def remove_guards(model: nn.Module) -> None:
    """Take the guards off again."""
    for method in (*_REFUSED, "unload_lora"):
        if isinstance(model.__dict__.get(method), _Refusal | _UnloadLora):
            del model.__dict__[method]


def unload_others(model: nn.Module) -> None:
    """Remove every PEFT layer that is not LoRD's, and its adapters' configs."""
    for parent, child, layer in _outermost_tuner_layers(model):
        inner: Any = layer
        while isinstance(inner, BaseTunerLayer) and not isinstance(inner, LordLayer):
            inner = inner.base_layer  # type: ignore[attr-defined]
        setattr(parent, child, inner)
    configs: Any = model.peft_config
    for name in [name for name, config in configs.items() if not isinstance(config, LordConfig)]:
        del configs[name]


def _outermost_tuner_layers(model: nn.Module) -> list[tuple[nn.Module, str, BaseTunerLayer]]:
    """(parent, attribute, layer) of every PEFT layer that is not itself inside one."""
    found: list[tuple[nn.Module, str, BaseTunerLayer]] = []
    outer = ""
    for path, layer in model.named_modules():
        # Depth first: what is inside the last layer found comes right after it.
        if isinstance(layer, BaseTunerLayer) and not (outer and path.startswith(outer)):
            outer = path + "."
            parent_path, _, child = path.rpartition(".")
            found.append((model.get_submodule(parent_path), child, layer))
    return found


def check_unload_for_lord() -> None:
    """Make ``merge_and_unload`` and ``unload`` of other PEFT methods raise on a model with LoRD."""
    original = BaseTuner._unload_and_optionally_merge
    if hasattr(original, "checks_for_lord"):
        return

    @functools.wraps(original)
    def checked(self: BaseTuner, *args: Any, **kwargs: Any) -> Any:
        if self.prefix != "lord_" and any(isinstance(layer, LordLayer) for layer in self.model.modules()):
            raise RuntimeError(
                "unloading this adapter would drop LoRD with it: fold the adapter in with merge_adapter or fuse_lora, "
                "or call lordfast.remove_lord first"
            )
        return original(self, *args, **kwargs)

    checked.checks_for_lord = True  # type: ignore[attr-defined]
    BaseTuner._unload_and_optionally_merge = checked  # type: ignore[method-assign]
