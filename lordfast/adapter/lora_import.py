"""Import of LoRA files of any trainer: every tensor of a file takes effect in the model, or the file is refused."""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lordfast.adapter.control import denoiser_of
from lordfast.adapter.kohya import is_transformer, spellings, split_key
from lordfast.adapter.lora_export import LORA_WEIGHTS_NAME
from lordfast.adapter.save_load import bare_modules

_FILES = (LORA_WEIGHTS_NAME, "pytorch_lora_weights.bin", "adapter_model.safetensors", "adapter_model.bin")
_TEXT_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3")

# Initialisations of PEFT that change the base weights, which the adapter's file does not hold.
_BASE_CHANGING = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class _Factors:
    """One layer's LoRA: A (r, K) or (r, C, h, w), B (N, r) or (N, r, 1, 1), alpha, and DoRA's magnitudes (N,)."""

    A: Tensor
    B: Tensor
    alpha: float
    magnitude: Tensor | None

    @property
    def rank(self) -> int:
        return len(self.A)


def load_lora(module: Any, path: str | os.PathLike[str], adapter_name: str = "lora") -> None:
    """Load a LoRA file into a model, frozen, under, over or without LoRD; the weights become W + (alpha / r) B A.

    Takes the files of diffusers (also of its former attention processors), PEFT, kohya and LyCORIS (LoCon), as
    safetensors or as tensors by ``torch.save``, in any floating-point type: layers of text encoders, convolutions,
    ranks and alphas that differ from layer to layer, DoRA magnitudes (one per output feature). Where nothing says what
    alpha is, it is the rank. Everything is checked before the model is touched.

    Args:
        module: a pipeline with a ``unet`` or ``transformer`` and text encoders, or the denoiser alone.
        path: the file, or a folder with ``pytorch_lora_weights.safetensors``, or PEFT's ``adapter_model.safetensors``.
        adapter_name: a name that no adapter of the model has.

    Raises:
        OSError: if there is no such file, or it can't be read.
        ValueError: if the file holds anything that is not part of a LoRA (such as LoHa, LoKr, embeddings), lacks a
            tensor, has NaN or infinite values, adapts layers that the model does not have or that have other shapes, or
            if the name is taken. The message names the file and the tensor.
    """
    file = _find(Path(path))
    tensors, metadata = _read(file)
    denoiser = denoiser_of(module)
    parts: dict[str, Any] = {"transformer" if is_transformer(denoiser) else "unet": denoiser}
    if module is not denoiser:
        found = {part: getattr(module, part, None) for part in _TEXT_PARTS}
        parts |= {part: encoder for part, encoder in found.items() if isinstance(encoder, nn.Module)}
    layers = _Importer(file, getattr(module, "name", None), parts, metadata).layers(tensors)
    for part in layers:
        if adapter_name in getattr(parts[part], "peft_config", {}):
            raise ValueError(f"the adapter name {adapter_name!r} is taken in the {part}; choose another one for {file}")
    for part, factors in layers.items():
        _inject(parts[part], adapter_name, factors)


def _find(path: Path) -> Path:
    if path.is_dir():
        return next((path / name for name in _FILES if (path / name).is_file()), path / LORA_WEIGHTS_NAME)
    return path


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and the metadata of a safetensors file. No code that a file may hold is run."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; expected a finished stage2 run or a LoRA file")
    with open(file, "rb") as stream:
        is_safetensors = stream.read(9)[8:] == b"{"
    if is_safetensors or file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file} is not a readable safetensors file: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            held = torch.load(file, map_location="cpu", weights_only=True)
    # The unpickler lets through whatever a broken file makes it do.
    except Exception as error:
        raise ValueError(
            f"{file} is neither a safetensors file nor one by torch.save that holds tensors alone; nothing else is read"
        ) from error
    if isinstance(held, dict) and isinstance(held.get("state_dict"), dict):
        held = held["state_dict"]
    if not isinstance(held, dict):
        raise ValueError(f"{file} holds a {type(held).__name__}; expected a LoRA's tensors by their names")
    tensors = {str(key): torch.tensor(v) if isinstance(v, int | float) else v for key, v in held.items()}
    for key, value in tensors.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{file}: {key} is a {type(value).__name__}; expected tensors alone")
    return {key: value.detach() for key, value in tensors.items()}, {}


class _Importer:
    """Finds the layer of every tensor of a file in the parts of a model.

    Args:
        name: what messages call the model.
        parts: the denoiser and the text encoders, by diffusers' names; the denoiser first.
    """

    def __init__(self, file: Path, name: Any, parts: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
        self._file = file
        self._model = name if isinstance(name, str) else "the model"
        self._parts = parts
        self._denoiser = next(iter(parts))
        self._bases = {part: bare_modules(model) for part, model in parts.items()}
        self._names: dict[str, dict[str, str]] = {
            part: {
                spelling: path
                for path, base in bases.items()
                if _shapes(base, 1) is not None
                for spelling in spellings(parts[part], part, path)
            }
            for part, bases in self._bases.items()
        }
        self._configs = self._read_configs(metadata)

    def layers(self, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, _Factors]]:
        """{part: {layer: its LoRA}} of all `tensors`. Errors as of `load_lora`."""
        try:
            split = {key: split_key(key) for key in tensors}
        except ValueError as error:
            raise ValueError(f"{self._file} is no plain LoRA: {error}") from None
        if not any(slot in ("A", "B") for _, slot in split.values()):
            raise ValueError(f"{self._file} holds no LoRA")
        for key, tensor in tensors.items():
            # Types of one byte have no isfinite.
            if not bool(torch.isfinite(tensor.double()).all()):
                raise ValueError(f"{self._file}: {key} holds NaN or infinite values; the LoRA is broken")
        slots: dict[tuple[str, str], dict[str, str]] = {}
        alphas: dict[tuple[str, str], tuple[float | None, bool]] = {}
        for key, (layer, slot) in split.items():
            part, path, written = self._locate(layer, key)
            if (other := slots.setdefault((part, path), {}).setdefault(slot, key)) != key:
                raise ValueError(f"{self._file}: {other} and {key} are the same tensor of layer {path}; expected one")
            alphas[part, path] = self._configured_alpha(part, written)
        found: dict[str, dict[str, _Factors]] = {}
        for (part, path), keys in slots.items():
            found.setdefault(part, {})[path] = self._factors(part, path, keys, tensors, alphas[part, path])
        return found

    def _locate(self, layer: str, key: str) -> tuple[str, str, str]:
        """Part and path of a layer in the model, and its path as the file has it."""
        if kohya := re.fullmatch(r"(lora|lycoris)_(?:(unet|transformer)_|te([123]?)_)?([^.]+)", layer):
            number = kohya[3]
            part = self._denoiser if number is None else "text_encoder" + {"2": "_2", "3": "_3"}.get(number, "")
            written = kohya[4]
        else:
            part, _, written = layer.partition(".")
            if part not in ("unet", "transformer", *_TEXT_PARTS):
                part, written = "", layer
            written = written.removeprefix("base_model.model.").replace(".processor.", ".")
            written = written.removesuffix(".processor")
        if part and part not in self._parts:
            raise ValueError(
                f"{self._file} does not fit {self._model}: it adapts a {part} ({key}), and the model that it is loaded "
                f"into has {', '.join(self._parts)}"
            )
        spelling = written.replace(".", "_")
        where = [one for one in ([part] if part else self._parts) if spelling in self._names[one]]
        if not part and self._denoiser in where:
            where = [self._denoiser]
        if len(where) != 1:
            raise ValueError(
                f"{self._file} does not fit {self._model}: it adapts layer {layer} ({key}), and "
                + (f"{' and '.join(where)} have one" if where else "the model has no linear layer or convolution there")
            )
        return where[0], self._names[where[0]][spelling], written

    def _factors(
        self,
        part: str,
        path: str,
        keys: Mapping[str, str],
        tensors: Mapping[str, Tensor],
        configured: tuple[float | None, bool],
    ) -> _Factors:
        for slot, called in (("A", "matrix A (lora_down)"), ("B", "matrix B (lora_up)")):
            if slot not in keys:
                there = next(iter(keys.values()))
                raise ValueError(f"{self._file} is incomplete: layer {path} of the {part} has {there}, but no {called}")
        got = {slot: tensors[key] for slot, key in keys.items()}
        for slot in {"A", "B", "mid", "dora_scale", "magnitude"} & got.keys():
            if not got[slot].is_floating_point():
                raise ValueError(f"{self._file}: {keys[slot]} is of {got[slot].dtype}; expected floating-point numbers")
        rank = len(got["A"]) if got["A"].ndim else 0
        base = self._bases[part][path]
        down, up = _shapes(base, rank)  # type: ignore[misc]
        if "mid" in got:
            got["A"] = self._with_mid(path, keys, got, down)
        matrices: dict[str, Tensor] = {}
        for slot, expected in (("A", down), ("B", up)):
            if rank == 0 or _core(got[slot].shape) != _core(expected):
                raise ValueError(
                    f"{self._file} does not fit {self._model}: layer {path} of the {part}: {keys[slot]} has shape "
                    f"{tuple(got[slot].shape)}, expected {expected} for {_described(base)} at rank {rank}"
                )
            matrices[slot] = got[slot].reshape(expected)
        alpha, rank_stabilised = configured
        if alpha is None:
            alpha = rank
        elif rank_stabilised:
            alpha *= math.sqrt(rank)
        if "alpha" in got:
            if got["alpha"].numel() != 1:
                raise ValueError(
                    f"{self._file}: {keys['alpha']} has {got['alpha'].numel()} values; expected one number"
                )
            alpha = float(got["alpha"])
        magnitude = self._magnitude(base, len(matrices["B"]), keys, got)
        return _Factors(**matrices, alpha=float(alpha), magnitude=magnitude)

    def _with_mid(
        self, path: str, keys: Mapping[str, str], got: Mapping[str, Tensor], expected: tuple[int, ...]
    ) -> Tensor:
        """LoCon's third factor (r, r, h, w) between A (r, C, 1, 1) and B, multiplied into A."""
        down, mid = got["A"], got["mid"]
        rank = len(down)
        if len(expected) != 4 or mid.shape != (rank, rank, *expected[2:]) or _core(down.shape) != expected[:2]:
            raise ValueError(
                f"{self._file} does not fit {self._model}: layer {path}: {keys['mid']} has shape {tuple(mid.shape)} "
                f"beside {keys['A']} of {tuple(down.shape)}, expected a product of shape {expected}"
            )
        return torch.einsum("rshw,sc->rchw", mid.double(), down.reshape(expected[:2]).double())

    def _magnitude(self, base: Any, out: int, keys: Mapping[str, str], got: Mapping[str, Tensor]) -> Tensor | None:
        slot = next((slot for slot in ("dora_scale", "magnitude") if slot in got), None)
        if slot is None:
            return None
        # PEFT keeps a convolution's as (1, N, 1, 1), LyCORIS as (N, 1, 1, 1).
        tensor = got[slot]
        across = slot == "magnitude" and tensor.shape == (1, out, 1, 1)
        if len({"dora_scale", "magnitude"} & got.keys()) > 1 or not (
            across or _core(tensor.shape) in ((out,), (out, 1))
        ):
            raise ValueError(
                f"{self._file}: {keys[slot]} has shape {tuple(tensor.shape)}; expected one DoRA magnitude for each of "
                f"{out} outputs of {_described(base)}; magnitudes of the inputs can't be loaded"
            )
        return tensor.flatten()

    # --- alpha from beside the tensors --------------------------------------------------------------------------

    def _read_configs(self, metadata: Mapping[str, str]) -> dict[str, Mapping[str, Any]]:
        """PEFT's config of each part: from diffusers' metadata, or from the JSON beside PEFT's own file."""
        beside = self._file.parent / "adapter_config.json"
        source = self._file
        try:
            if "lora_adapter_metadata" in metadata:
                flat = json.loads(metadata["lora_adapter_metadata"])
                configs: dict[str, Any] = {}
                for key, value in flat.items():
                    part, _, option = key.partition(".")
                    configs.setdefault(part, {})[option] = value
            elif self._file.stem == "adapter_model" and beside.is_file():
                source = beside
                configs = dict.fromkeys(self._parts, json.loads(beside.read_text("utf-8")))
            else:
                return {}
            for config in configs.values():
                self._check_config(source, config)
            return configs
        except (TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{source}: the LoRA's config can't be read: {error}") from error

    def _check_config(self, source: Path, config: Mapping[str, Any]) -> None:
        kind, init = config.get("peft_type") or "LORA", config.get("init_lora_weights")
        if kind != "LORA":
            raise ValueError(f"{source}: the adapter is of type {kind}; expected LORA")
        if str(init).lower().startswith(_BASE_CHANGING):
            raise ValueError(
                f"{source}: a LoRA by {init} goes with other base weights than the model's; convert it first"
            )
        numbers = [config.get("lora_alpha"), *(config.get("alpha_pattern") or {}).values()]
        for number in numbers:
            if number is not None and not (isinstance(number, int | float) and math.isfinite(number)):
                raise ValueError(f"{source}: lora_alpha is {number!r}; expected a number")

    def _configured_alpha(self, part: str, written: str) -> tuple[float | None, bool]:
        """A layer's alpha, None where nothing says it, and whether it is divided by sqrt(r) instead of r."""
        config = self._configs.get(part, {})
        pattern = config.get("alpha_pattern") or {}
        return pattern.get(get_pattern_key(list(pattern), written), config.get("lora_alpha")), bool(
            config.get("use_rslora")
        )


def _shapes(base: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The shapes of A and B on a layer; None for what is neither linear nor a convolution."""
    if hasattr(base, "in_features") and hasattr(base, "out_features"):
        return (rank, base.in_features), (base.out_features, rank)
    if isinstance(base, nn.Conv2d):
        return (rank, base.in_channels // base.groups, *base.kernel_size), (base.out_channels, rank, 1, 1)
    return None


def _core(shape: Iterable[int]) -> tuple[int, ...]:
    """A shape without a 1 x 1 kernel: trainers write a linear layer as such a convolution, and the reverse."""
    sizes = tuple(shape)
    return sizes[:-2] if len(sizes) == 4 and sizes[2:] == (1, 1) else sizes


def _described(base: Any) -> str:
    if isinstance(base, nn.Conv2d):
        return f"a convolution {base.in_channels} -> {base.out_channels}"
    return f"a linear layer {base.in_features} -> {base.out_features}"


def _inject(model: nn.Module, adapter_name: str, layers: Mapping[str, _Factors]) -> None:
    dora = any(one.magnitude is not None for one in layers.values())
    ranks = {path: one.rank for path, one in layers.items()}
    alphas = {path: one.alpha for path, one in layers.items()}
    config = LoraConfig(
        r=_most_common(ranks),
        lora_alpha=_most_common(alphas),  # type: ignore[arg-type]
        rank_pattern=_patterns(ranks),
        alpha_pattern=_patterns(alphas),
        target_modules=_any_of(layers),
        use_dora=dora,
        inference_mode=True,
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        # DoRA takes the norms of the initial weights, which must exist for that.
        inject_adapter_in_model(config, model, adapter_name, low_cpu_mem_usage=not dora)
    for path, one in layers.items():
        layer: Any = model.get_submodule(path)
        weight = layer.get_base_layer().weight
        like = {"device": weight.device, "dtype": weight.dtype if weight.is_floating_point() else torch.float32}
        for held, value in ((layer.lora_A, one.A), (layer.lora_B, one.B)):
            held[adapter_name].weight = nn.Parameter(value.to(**like).contiguous(), requires_grad=False)
        if dora:
            norms = layer.lora_magnitude_vector[adapter_name]
            if one.magnitude is None:
                # The norms as they are: a DoRA that changes none of them is a LoRA.
                a, b = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
                norms.update_layer(
                    base_layer=layer.get_base_layer(), lora_A=a, lora_B=b, scaling=layer.scaling[adapter_name]
                )
                norms.weight.requires_grad_(False)
            else:
                value = one.magnitude.to(**like).reshape(norms.weight.shape)
                norms.weight = nn.Parameter(value, requires_grad=False)
    if hasattr(model, "load_lora_adapter"):
        # Without it diffusers does not look for adapters; transformers' models are searched by their layers.
        model._hf_peft_config_loaded = True  # type: ignore[assignment]


def _most_common(values: Mapping[str, Any]) -> Any:
    return Counter(values.values()).most_common(1)[0][0]


def _patterns(values: Mapping[str, Any]) -> dict[str, Any]:
    """PEFT's pattern of the layers whose value is not the most common one, one for each value."""
    usual = _most_common(values)
    groups: dict[Any, list[str]] = {}
    for path, value in values.items():
        if value != usual:
            groups.setdefault(value, []).append(path)
    return {"^" + _any_of(paths): value for value, paths in groups.items()}


def _any_of(paths: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, paths))})"
