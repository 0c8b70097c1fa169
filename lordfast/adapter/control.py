"""Finding, freezing, switching off and removing the LoRD of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from lordfast.adapter.config import LordConfig
from lordfast.adapter.guards import remove_guards
from lordfast.adapter.layer import LordLayer
from lordfast.adapter.timestep import remove_clock

# What wrappers (PEFT layers, torch.compile, checkpoint wrappers, FSDP) put into a module's path.
_WRAPPER_PARTS = frozenset({"base_layer", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
_WRAPPER_PREFIXES = ("module.", "base_model.model.")


def layer_name(path: str) -> str:
    """A layer's path in the bare model, whatever wraps it now: the name in files, gates and errors."""
    path = ".".join(part for part in path.split(".") if part not in _WRAPPER_PARTS)
    for prefix in _WRAPPER_PREFIXES:
        path = path.removeprefix(prefix)
    return path


def lord_layers(module: nn.Module) -> dict[str, LordLayer]:
    """Every LoRD layer in ``module`` by its :func:`layer_name`, in module order."""
    return {layer_name(path): child for path, child in module.named_modules() if isinstance(child, LordLayer)}


def denoiser_of(pipe_or_module: Any) -> nn.Module:
    """The module that carries LoRD: the ``unet`` or ``transformer`` of a pipeline, or the module itself, unwrapped.

    Raises:
        TypeError: if there is none.
    """
    found = pipe_or_module
    if not isinstance(found, nn.Module):
        found = getattr(pipe_or_module, "unet", None) or getattr(pipe_or_module, "transformer", None)
    while isinstance(found, nn.Module):
        if hasattr(found, "_orig_mod"):
            found = found._orig_mod
        elif isinstance(found, PeftModel):
            found = found.get_base_model()
        elif isinstance(found, nn.parallel.DistributedDataParallel | nn.DataParallel):
            found = found.module
        else:
            return found
    raise TypeError(
        f"expected a torch module, or a pipeline with a unet or a transformer, got {type(pipe_or_module).__name__}"
    )


def freeze_lord(module: Any, adapter_name: str | None = None) -> None:
    """Freeze LoRD for good: no gradient until :func:`unfreeze_lord`, whatever ``set_adapter`` calls come.

    Args:
        module: a model or a pipeline with LoRD.
        adapter_name: only this adapter; None means all.

    Raises:
        ValueError: if there is no such LoRD adapter.
    """
    for layer, name in _chosen(module, adapter_name):
        layer.lord_frozen.add(name)
        layer.set_requires_grad(name, False)


def unfreeze_lord(module: Any, adapter_name: str | None = None) -> None:
    """Undo :func:`freeze_lord`; the active adapter is trainable afterwards. Arguments and errors as there."""
    for layer, name in _chosen(module, adapter_name):
        layer.lord_frozen.discard(name)
        layer.set_requires_grad(name, name == layer.active_lord)


def _chosen(module: Any, adapter_name: str | None) -> list[tuple[LordLayer, str]]:
    layers = lord_layers(denoiser_of(module)).values()
    chosen = [(layer, name) for layer in layers for name in layer.lord_config if adapter_name in (None, name)]
    if not chosen:
        what = "LoRD adapter" if adapter_name is None else f"LoRD adapter named {adapter_name!r}"
        raise ValueError(f"the model has no {what}")
    return chosen


@contextmanager
def lord_disabled(module: Any) -> Iterator[None]:
    """Inside, the layers run without LoRD, as if it were not there; other adapters are as they were.

    Raises:
        ValueError: if the model has no LoRD.
    """
    layers = {id(layer): layer for layer, _ in _chosen(module, None)}.values()
    before = [(layer, layer.lord_enabled) for layer in layers]
    try:
        for layer in layers:
            layer.lord_enabled = False
        yield
    finally:
        for layer, enabled in before:
            layer.lord_enabled = enabled


class override_lambda:
    """Set lambda in every LoRD layer of a model, in place of what the gates say; as a context, until it ends.

    ::

        lordfast.override_lambda(pipe, 0)            # from now on the clean branch alone: W + s B A
        lordfast.override_lambda(pipe, None)         # the gates decide again
        with lordfast.override_lambda(unet, 1.0):    # W + s (B + B') A, in here
            ...

    The gates are still computed where ``collect_gates`` reads their logits. A loss under gradient checkpointing needs
    the context open until after its backward pass, which computes the layers again.

    Args:
        module: a model or a pipeline with LoRD; layers that get LoRD later are not concerned.
        value: lambda, from 0 to 1, or None for the gates' own.

    Raises:
        TypeError: the value is no number.
        ValueError: it is not within [0, 1], or the model has no LoRD.
    """

    def __init__(self, module: Any, value: float | None) -> None:
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise TypeError(
                f"value must be a number from 0 to 1, or None, got {value!r} of type {type(value).__name__}"
            )
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"value must lie within [0, 1], got {value}")
        self._layers = list({id(layer): layer for layer, _ in _chosen(module, None)}.values())
        self._value = None if value is None else float(value)
        # The first context ends where the object was made, later ones where they began.
        self._made: list[float | None] | None = self._set()
        self._before: list[list[float | None]] = []

    def _set(self) -> list[float | None]:
        before = [layer.lord_lambda for layer in self._layers]
        for layer in self._layers:
            layer.lord_lambda = self._value
        return before

    def __enter__(self) -> None:
        before = self._set()
        self._before.append(before if self._made is None else self._made)
        self._made = None

    def __exit__(self, *_: Any) -> None:
        for layer, value in zip(self._layers, self._before.pop(), strict=True):
            layer.lord_lambda = value


def remove_lord(module: Any, adapter_name: str | None = None) -> None:
    """Take LoRD out of a model in place; LoRAs around it stay, and the layers are the bare ones again.

    Args:
        module: a model or a pipeline with LoRD.
        adapter_name: only this LoRD adapter; None means all.

    Raises:
        ValueError: if there is no such LoRD adapter.
    """
    model = denoiser_of(module)
    layers = lord_layers(model).values()
    if not layers or adapter_name is not None:
        # delete_adapters("lord") leaves layers without an adapter behind: they are removed without complaint.
        _chosen(model, adapter_name)
    for layer in layers:
        for name in list(layer.lord_config):
            if adapter_name in (None, name):
                layer.delete_adapter(name)
    for path, layer in list(model.named_modules()):
        if isinstance(layer, LordLayer) and not layer.lord_config:
            parent_path, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent_path), child, layer.base_layer)
    for owner in list(model.modules()):
        # A property (PeftModel) or a forwarded attribute (BaseTuner) leads to the same dict: only holders count.
        if "peft_config" in owner.__dict__:
            _forget_configs(owner, adapter_name)
        inside = lord_layers(owner).values()
        if not inside:
            remove_guards(owner)
        if not any(config.gate_timestep for layer in inside for config in layer.lord_config.values()):
            remove_clock(owner)


def _forget_configs(owner: nn.Module, adapter_name: str | None) -> None:
    configs: Any = owner.peft_config
    for name in [name for name, config in configs.items() if isinstance(config, LordConfig)]:
        if adapter_name in (None, name):
            del configs[name]
    if not configs and not isinstance(owner, BaseTuner):
        del owner.peft_config
        if getattr(owner, "_hf_peft_config_loaded", False):
            owner._hf_peft_config_loaded = False  # type: ignore[assignment]
