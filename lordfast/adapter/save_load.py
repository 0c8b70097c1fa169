"""LoRD on disk: one safetensors file that carries its own config, and the config once more as JSON for people."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lordfast.adapter.config import LordConfig
from lordfast.adapter.control import denoiser_of, freeze_lord, layer_name, lord_layers, remove_lord
from lordfast.adapter.layer import lord_shapes
from lordfast.adapter.model import LordModel, check_adapter_name
from lordfast.files import write_atomic

WEIGHTS_NAME = "lord.safetensors"
CONFIG_NAME = "lord_config.json"
_METADATA_KEY = "lord_config"


def save_lord(module: Any, path: str | os.PathLike[str], adapter_name: str | None = None) -> Path:
    """Save a LoRD adapter, and nothing else of the model.

    Writes ``lord.safetensors`` (keys are the layers' paths in the bare model, whatever is nested around LoRD; the
    config is in the metadata) and ``lord_config.json`` into the folder ``path``; a ``path`` that ends in
    ``.safetensors`` names the file itself, and the JSON stands beside it under the same stem. Each file is written
    under a temporary name and renamed, so an interrupted save leaves the old file whole.

    Args:
        module: a model or pipeline with LoRD, also compiled or wrapped in DDP.
        path: folder (made if missing) or ``.safetensors`` file.
        adapter_name: which LoRD adapter; None takes the active one.

    Returns:
        The path of the safetensors file.

    Raises:
        ValueError: if the model has no such LoRD adapter.
    """
    layers = lord_layers(denoiser_of(module))
    if adapter_name is None:
        active = {layer.active_lord for layer in layers.values()} - {None}
        if len(active) != 1:
            raise ValueError(f"expected a model with one active LoRD adapter, found {sorted(map(str, active))}")
        adapter_name = active.pop()
    layers = {name: layer for name, layer in layers.items() if adapter_name in layer.lord_config}
    if not layers:
        raise ValueError(f"the model has no LoRD adapter named {adapter_name!r}")
    tensors = {
        f"{name}.{short}": parameter.detach().cpu().contiguous()
        for name, layer in layers.items()
        for short, parameter in layer.parameters_of(str(adapter_name)).items()
    }
    config = next(iter(layers.values())).lord_config[str(adapter_name)]
    record = json.dumps(config.to_record(), indent=2, sort_keys=True)
    weights, readable = _files(Path(path))
    write_atomic(readable, (record + "\n").encode())
    # One entry only: safetensors writes several in random order, and equal adapters shall be equal files.
    metadata = {_METADATA_KEY: record}
    write_atomic(weights, save(tensors, metadata=metadata))
    return weights


def load_lord(
    module: Any, path: str | os.PathLike[str], adapter_name: str = "lord", trainable: bool = False
) -> LordConfig:
    """Load what :func:`save_lord` wrote into a model, under, over or without LoRAs.

    Everything is checked before the model is touched. The parameters have the saved values, in fp32 whatever dtype
    the file or the model has.

    Args:
        module: a pipeline with a ``unet`` or ``transformer``, or that module itself.
        path: the folder or the ``.safetensors`` file.
        adapter_name: a name that no adapter of the model has.
        trainable: False freezes the adapter for good, see ``freeze_lord``.

    Returns:
        The adapter's config.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not a LoRD adapter, if it does not fit the model (naming the layer and both
            shapes), or if the name is taken. The model is unchanged.
    """
    model = denoiser_of(module)
    config, tensors = read_lord(path)
    config.inference_mode = not trainable
    check_adapter_name(model, adapter_name)
    _check_fit(model, config, tensors, Path(path))
    try:
        # Shapes only, on meta: the saved tensors take their places, and the global random generator is left alone.
        with warnings.catch_warnings():
            # PEFT goes by the tensors here, sees nothing to exclude, and says so.
            warnings.filterwarnings("ignore", message="You have passed exclude_modules")
            inject_adapter_in_model(config, model, adapter_name, low_cpu_mem_usage=True, state_dict=tensors)
        for name, layer in lord_layers(model).items():
            for short in layer.parameters_of(adapter_name):
                value = tensors[f"{name}.{short}"].to(layer.base_device()).float()
                getattr(layer, short)[adapter_name] = nn.Parameter(value, requires_grad=trainable)
    except BaseException:
        if any(adapter_name in layer.lord_config for layer in lord_layers(model).values()):
            remove_lord(model, adapter_name)
        raise
    if not trainable:
        freeze_lord(model, adapter_name)
    if hasattr(model, "_hf_peft_config_loaded"):
        model._hf_peft_config_loaded = True  # type: ignore[assignment]
    return config


def read_lord(path: str | os.PathLike[str]) -> tuple[LordConfig, dict[str, Tensor]]:
    """The config and the tensors of a saved LoRD adapter, on the CPU. Errors as for :func:`load_lord`."""
    weights, _ = _files(Path(path))
    if not weights.is_file():
        raise FileNotFoundError(f"no LoRD adapter at {path}: expected a folder with {WEIGHTS_NAME}, or that file")
    try:
        with safe_open(weights, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except SafetensorError as error:
        raise ValueError(f"{weights} is not a readable safetensors file: {error}") from error
    if _METADATA_KEY not in metadata:
        hint = "; it looks like a LoRA, load it with load_lora_weights" if any("lora" in key for key in tensors) else ""
        raise ValueError(f"{weights} is not a LoRD adapter: its metadata has no {_METADATA_KEY!r}{hint}")
    return LordConfig.from_record(json.loads(metadata[_METADATA_KEY])), tensors


def _files(path: Path) -> tuple[Path, Path]:
    if path.suffix == ".safetensors":
        return path, path.with_suffix(".json")
    return path / WEIGHTS_NAME, path / CONFIG_NAME


def _check_fit(model: nn.Module, config: LordConfig, tensors: dict[str, Tensor], path: Path) -> None:
    saved: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, tensor in tensors.items():
        name, _, short = key.rpartition(".")
        saved.setdefault(name, {})[short] = tuple(tensor.shape)
    modules = bare_modules(model)
    for name, shapes in saved.items():
        module = modules.get(name)
        if module is None:
            raise ValueError(f"{path} does not fit the model: it adapts layer {name}, which the model does not have")
        features = getattr(module, "in_features", None), getattr(module, "out_features", None)
        if None in features:
            raise ValueError(f"{path} does not fit the model: layer {name} is a {type(module).__name__}, not linear")
        expected = lord_shapes(*features, config)  # type: ignore[arg-type]
        for short in {**expected, **shapes}:
            came, needed = shapes.get(short, "none"), expected.get(short, "none")
            if came != needed:
                raise ValueError(
                    f"{path} does not fit the model: layer {name}, {short}: the file has shape {came}, "
                    f"the model's layer ({features[0]} -> {features[1]}) needs {needed}"
                )
    uncovered = sorted(_targets(modules, config) - set(saved))
    if uncovered:
        raise ValueError(
            f"{path} does not fit the model: the adapter's target_modules match {len(uncovered)} layers that the file "
            f"has no tensors for, the first of them {uncovered[0]}"
        )


def bare_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The model's modules by bare name; of a layer and the adapters around it, the layer."""
    modules: dict[str, nn.Module] = {}
    adapters: tuple[str, ...] = ()
    for path, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):
            adapters = (*adapters, path + ".")
            modules[layer_name(path)] = module.get_base_layer()
        elif not path.startswith(adapters):
            modules[layer_name(path)] = module
    return modules


def _targets(modules: dict[str, nn.Module], config: LordConfig) -> set[str]:
    if config.target_modules == "all-linear":
        return set()
    return {name for name in modules if name and bool(LordModel._check_target_module_exists(config, name))}
