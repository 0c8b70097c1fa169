"""LordModel: injects LoRD into a model, as PEFT's tuner for the type LORD."""

from __future__ import annotations

import warnings
from typing import Any, NoReturn

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from lordfast.adapter.config import LordConfig
from lordfast.adapter.guards import AdapterConfigs, add_guards, remove_guards
from lordfast.adapter.layer import LordLayer, LordLinear
from lordfast.adapter.timestep import check_clock, clock_of, remove_clock


class LordModel(BaseTuner):
    """Wraps the linear layers that a LordConfig names, always the innermost ones: LoRAs may be there already or come
    later, the nesting is ``lora.Linear > LordLinear > nn.Linear`` either way, and so is the output.

    Use it through ``unet.add_adapter``, ``peft.get_peft_model`` or ``peft.inject_adapter_in_model``.
    """

    prefix: str = "lord_"
    tuner_layer_cls = LordLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - PEFT declares it so

    def __init__(
        self, model: nn.Module, peft_config: PeftConfig | dict[str, PeftConfig], adapter_name: str, **kwargs: Any
    ) -> None:
        check_adapter_name(model, adapter_name)
        config = peft_config[adapter_name] if isinstance(peft_config, dict) else peft_config
        self._check_targets(model, config)
        if getattr(config, "gate_timestep", False):
            check_clock(model)
        with warnings.catch_warnings():
            # PEFT warns of every further adapter; that there are others is what LoRD is made for.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            super().__init__(model, peft_config, adapter_name, **kwargs)
        self.peft_config = AdapterConfigs(self.peft_config)
        self.model.peft_config = self.peft_config
        add_guards(model)
        if getattr(config, "gate_timestep", False):
            clock = clock_of(model)
            for module in model.modules():
                if isinstance(module, LordLayer) and adapter_name in module.lord_config:
                    module.lord_clock = clock

    def _check_targets(self, model: nn.Module, config: Any) -> None:
        """Everything that can be wrong with the layers, before the first one is touched."""
        for path, module in model.named_modules():
            if getattr(module, "fused_projections", False):
                raise ValueError(
                    f"{path} has fused projections, which would bypass LoRD; call unfuse_qkv_projections() first"
                )
            if config.target_modules == "all-linear" or ".base_layer" in path or not path:
                continue
            if bool(self._check_target_module_exists(config, path)):
                _check_linear(path, module)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, LordConfig)
        while isinstance(target, BaseTunerLayer) and not isinstance(target, LordLayer):
            parent, target_name, target = target, "base_layer", target.base_layer  # type: ignore[attr-defined,assignment]
        if isinstance(target, LordLayer):
            target.update_layer(adapter_name, peft_config)
            return
        _check_linear(current_key, target)
        setattr(parent, target_name, LordLinear(target, adapter_name, peft_config))

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        # PEFT before 0.21 also freezes the adapters of other methods here, going by the parameters' names.
        keep: set[int] = set()
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                names = [name for name in module.adapter_layer_names if hasattr(module, name)]
                keep.update(id(p) for name in names for p in _parameters(getattr(module, name)))
            elif isinstance(module, AuxiliaryTrainingWrapper):
                keep.update(id(p) for p in module.parameters())
        for parameter in model.parameters():
            if id(parameter) not in keep:
                parameter.requires_grad_(False)

    def disable_adapter_layers(self) -> None:
        """Off with every adapter, LoRD included: what a PeftModel's ``disable_adapter`` promises of its own method."""
        self._switch(False)

    def enable_adapter_layers(self) -> None:
        """The inverse of :meth:`disable_adapter_layers`."""
        self._switch(True)

    def _switch(self, enabled: bool) -> None:
        for module in self.model.modules():
            if isinstance(module, LordLayer):
                module.lord_enabled = enabled
            elif isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
                module.enable_adapters(enabled)

    def _check_merge_allowed(self) -> NoReturn:
        raise ValueError(
            "LoRD can't be merged into the base weights: its gate depends on the input. Keep it injected, or take it "
            "out with unload() or lordfast.remove_lord"
        )

    def unload(self) -> nn.Module:
        """The base model without any PEFT layer."""
        model = super().unload()
        remove_guards(self.model)
        remove_clock(self.model)
        return model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        # PEFT 0.21's default takes what any tuner layer owns; around LoRD there may be LoRAs.
        return {key: value for key, value in state_dict.items() if f".{cls.prefix}" in key}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # Keys must not depend on how many LoRAs are around LoRD at the moment.
        return key.removesuffix(f".{adapter_name}").replace(".base_layer.", ".")


def _parameters(container: Any) -> list[torch.nn.Parameter]:
    return list(container.parameters()) if isinstance(container, nn.Module) else []


def check_adapter_name(model: nn.Module, adapter_name: str) -> None:
    """Raise a ValueError unless ``adapter_name`` can be PEFT's name for one more adapter of ``model``."""
    if not isinstance(adapter_name, str) or not adapter_name or "." in adapter_name:
        raise ValueError(f"adapter_name must be a non-empty string without dots, got {adapter_name!r}")
    present = getattr(model, "peft_config", {}).get(adapter_name)
    if present is not None:
        raise ValueError(
            f"the adapter name {adapter_name!r} is already in use in the model, by a {type(present).__name__}; "
            "PEFT tells adapters apart by name alone, so LoRD needs one of its own"
        )


def _check_linear(name: str, module: Any) -> None:
    while isinstance(module, BaseTunerLayer):
        module = module.base_layer  # type: ignore[attr-defined]
    if not (isinstance(getattr(module, "in_features", None), int) and isinstance(module.out_features, int)):
        raise ValueError(f"target_modules matches {name}, a {type(module).__name__}; LoRD adapts linear layers only")
