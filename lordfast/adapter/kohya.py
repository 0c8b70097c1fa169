"""What kohya's trainer, and the user interfaces that read its files, call the layers of a LoRA."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

# A layer inside of an attention of a UNet, by diffusers: which half, block, attention, and what is inside.
_ATTENTION = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.attentions\.(\d+)\.(.+)")


def is_transformer(model: nn.Module) -> bool:
    """Whether the denoiser is a transformer, for which kohya's layout fuses what diffusers keeps apart."""
    return "Transformer" in type(model).__name__


def is_xl(model: nn.Module) -> bool:
    """Whether the denoiser is SDXL's, which kohya trains under the names of the original code, not of diffusers."""
    config: Any = getattr(model, "config", None)
    return getattr(config, "addition_embed_type", None) == "text_time"


def denoiser_key(model: nn.Module, name: str) -> str:
    """The key of layer `name` (its path in diffusers) of the denoiser `model`, without the factor's suffix.

    Raises:
        ValueError: SDXL's layer is in no attention.
    """
    if is_xl(model):
        name = _original_name(model, name)
    return f"lora_unet_{name.replace('.', '_')}"


def text_key(model: nn.Module, part: str, name: str) -> str:
    """The key of layer `name` of text encoder `part` (``text_encoder``, ``text_encoder_2``) beside `model`."""
    number = "" if not is_xl(model) else "2" if part.endswith("_2") else "1"
    return f"lora_te{number}_{name.replace('.', '_')}"


def _original_name(model: Any, name: str) -> str:
    """Numbers one list of blocks through: two layers and the change of size make three of them a diffusers block."""
    found = _ATTENTION.fullmatch(name)
    if found is None:
        # Readers drop part of a file that mixes both spellings, so nothing may keep diffusers' names.
        raise ValueError(
            f"format kohya holds SDXL's layers inside of attentions, got {name}; save it in format diffusers, or train "
            "attention layers only"
        )
    half, block, attention, inside = found.groups()
    if half is None:
        return f"middle_block.{1 + 2 * int(attention)}.{inside}"
    place = int(block) * (model.config.layers_per_block + 1) + int(attention)
    return f"input_blocks.{1 + place}.1.{inside}" if half == "down" else f"output_blocks.{place}.1.{inside}"
