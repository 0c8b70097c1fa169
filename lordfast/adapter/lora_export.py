"""Export of an ordinary LoRA (Stage 2's product) to files that plain diffusers, or a kohya reader, load unaided."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save
from torch import Tensor, nn

from lordfast.adapter.control import denoiser_of, layer_name
from lordfast.adapter.kohya import denoiser_key, is_transformer, text_key
from lordfast.files import write_atomic

LORA_WEIGHTS_NAME = "pytorch_lora_weights.safetensors"
FORMATS = ("diffusers", "kohya")

# What diffusers calls the denoiser, and the two factors of a layer; every version of it reads these.
_UNET = ("unet", "lora.down", "lora.up")
_TRANSFORMER = ("transformer", "lora_A", "lora_B")
_TEXT = ("lora_linear_layer.down", "lora_linear_layer.up")


def save_lora(
    module: Any,
    path: str | os.PathLike[str],
    adapter_name: str,
    *,
    text_encoder: nn.Module | None = None,
    text_encoder_2: nn.Module | None = None,
    format: str = "diffusers",
) -> Path:
    """Save a LoRA adapter for use anywhere, whether or not it was trained over LoRD; LoRD itself is not in the file.

    The scale alpha / r is folded into B, so the file means the same to readers that know no alpha; kohya files carry
    ``alpha = r`` beside it. There is no adapter metadata: what one PEFT version writes, another can't always read.

    Args:
        module: a pipeline with a ``unet`` or ``transformer``, or that module.
        path: folder (made if missing) for ``pytorch_lora_weights.safetensors``, or a ``.safetensors`` file.
        adapter_name: the LoRA's name in the model.
        text_encoder, text_encoder_2: text encoders with a LoRA of the same name, saved along.
        format: ``"diffusers"`` or ``"kohya"``: ``lora_unet_*.lora_down.weight`` and ``.alpha``, ``lora_te_*``; for
            SDXL ``lora_te1_*`` and ``lora_te2_*``, and the UNet's layers under the names of its original code.

    Returns:
        The path of the file.

    Raises:
        ValueError: for an unknown format or one that the model has no names in, if there is no such LoRA, or if it is
            not an ordinary one (DoRA, biases).
    """
    model = denoiser_of(module)
    check_lora_format(model, format)
    tensors: dict[str, Tensor] = {}
    names = _TRANSFORMER if is_transformer(model) or getattr(module, "transformer", None) is model else _UNET
    for name, factors in lora_factors(model, adapter_name).items():
        tensors |= (
            _kohya(denoiser_key(model, name), *factors) if format == "kohya" else _diffusers(names, name, *factors)
        )
    encoders = {"text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
    for part, encoder in encoders.items():
        for name, factors in ({} if encoder is None else lora_factors(encoder, adapter_name)).items():
            # Recent versions of transformers have no such level in a CLIPTextModel; every reader expects its name.
            name = name if name.startswith("text_model.") else f"text_model.{name}"
            if format == "kohya":
                tensors |= _kohya(text_key(model, part, name), *factors)
            else:
                tensors |= _diffusers((part, *_TEXT), name, *factors)
    target = Path(path)
    if target.suffix != ".safetensors":
        target = target / LORA_WEIGHTS_NAME
    write_atomic(target, save(tensors, metadata={"format": "pt"}))
    return target


def check_lora_format(model: nn.Module, format: str, layers: Iterable[str] = ()) -> None:
    """Raise a ValueError unless a LoRA of the denoiser `model`, on `layers`, can be saved in `format`."""
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if format == "kohya" and is_transformer(model):
        raise ValueError(
            f"format: kohya has no names for the layers of a {type(model).__name__} that diffusers reads; expected "
            "diffusers"
        )
    for name in layers if format == "kohya" else ():
        denoiser_key(model, name)


def lora_factors(model: nn.Module, adapter_name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """{layer name: (A, s B)} of one LoRA adapter on the CPU, the scale folded in; W + (s B) A is the adapted weight.

    Raises:
        ValueError: if there is no such LoRA, or if A and B alone don't describe it.
    """
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    for path, layer in model.named_modules():
        if not isinstance(layer, LoraLayer) or adapter_name not in layer.lora_A:
            continue
        name = layer_name(path)
        down, up = layer.lora_A[adapter_name], layer.lora_B[adapter_name]
        if layer.use_dora.get(adapter_name) or up.bias is not None:
            raise ValueError(f"LoRA {adapter_name!r} at {name} is a DoRA or has biases; only plain LoRA can be saved")
        scale = _trained_scale(model, layer, adapter_name)
        weight = (up.weight.detach().double() * scale).to(up.weight.dtype)
        factors[name] = down.weight.detach().cpu().contiguous(), weight.cpu().contiguous()
    if not factors:
        raise ValueError(f"{type(model).__name__} has no LoRA adapter named {adapter_name!r}")
    return factors


def _trained_scale(model: nn.Module, layer: LoraLayer, adapter_name: str) -> float:
    """alpha / r, not ``layer.scaling``: set_adapters and fuse_lora leave the user's momentary weight in that."""
    config = getattr(model, "peft_config", {}).get(adapter_name)
    r = layer.r[adapter_name]
    return layer.lora_alpha[adapter_name] / (math.sqrt(r) if getattr(config, "use_rslora", False) else r)


def _diffusers(names: tuple[str, str, str], name: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    prefix, down_name, up_name = names
    return {f"{prefix}.{name}.{down_name}.weight": down, f"{prefix}.{name}.{up_name}.weight": up}


def _kohya(key: str, down: Tensor, up: Tensor) -> dict[str, Tensor]:
    alpha = torch.tensor(float(down.shape[0]))
    return {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": alpha}
