"""What kohya's trainer and others call the layers of a LoRA and their tensors in a file."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

# A layer inside of a UNet's block, by diffusers: which half, block, kind of part, its number, and what is inside.
_INSIDE = re.compile(
    r"(?:(down|up)_blocks\.(\d+)|mid_block)\.(attentions|resnets|downsamplers|upsamplers)\.(\d+)\.(.+)"
)
# The rest of a UNet, and the layers of a residual block, by diffusers and by the original code.
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_TEXT_ATTENTION = re.compile(r"\.self_attn\.(q|k|v|out)_proj$")

# What a tensor is to its layer, by the end of its key: kohya's and LyCORIS' spelling, PEFT's (perhaps with the
# adapter's name), diffusers' of the denoiser and of text encoders, and that of diffusers' former attention processors.
_SLOTS = {
    slot: re.compile(pattern)
    for slot, pattern in {
        "A": r"\.(lora_down|lora_A(\.\w+)?|lora(_linear_layer)?\.down)\.weight$|_lora\.down\.weight$",
        "B": r"\.(lora_up|lora_B(\.\w+)?|lora(_linear_layer)?\.up)\.weight$|_lora\.up\.weight$",
        "mid": r"\.lora_mid\.weight$",
        "alpha": r"([._]lora(_linear_layer)?)?\.alpha$",
        "dora_scale": r"([._]lora(_linear_layer)?)?\.dora_scale$",
        "magnitude": r"\.lora_magnitude_vector(\.\w+)*$",
    }.items()
}
# What else such files hold, by a part of the key.
_OTHERS = {
    r"\bhada_": "a LoHa",
    r"\blokr_": "a LoKr",
    r"\b(oft|boft)_": "an OFT",
    r"\.diff(_b)?$": "a full difference of weights",
    r"\.[wb]_norm$": "a trained norm",
    r"\.on_input$": "an IA3",
    r"\.[ab][12]\.weight$": "a GLoRA",
    r"^bundle_emb|string_to_param|^(clip_[lg]|t5xxl|<?s\d+>?|emb_params)$": "an embedding (textual inversion)",
    r"\blora_[AB](\.\w+)?\.bias$": "a LoRA with biases",
}


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
        if ".attentions." not in name:
            # Readers drop part of a file that mixes both spellings, so nothing may keep diffusers' names.
            raise ValueError(
                f"format kohya holds SDXL's layers inside of attentions, got {name}; save it in format diffusers, or "
                "train attention layers only"
            )
        name = _original_name(model, name)
    return f"lora_unet_{name.replace('.', '_')}"


def text_key(model: nn.Module, part: str, name: str) -> str:
    """The key of layer `name` of text encoder `part` (``text_encoder``, ``text_encoder_2``) beside `model`."""
    number = "" if not is_xl(model) else "2" if part.endswith("_2") else "1"
    return f"lora_te{number}_{name.replace('.', '_')}"


def spellings(model: nn.Module, part: str, name: str) -> set[str]:
    """What LoRA files call layer `name` of `part` (``unet``, ``text_encoder``, ...), with "_" for every ".".

    Besides diffusers' name of today: that of the UNet's original code, that of diffusers' former attention processors,
    and a text encoder's with and without the level ``text_model``.
    """
    if part.startswith("text_encoder"):
        bare = name.removeprefix("text_model.")
        names = {bare, _TEXT_ATTENTION.sub(r".self_attn.to_\1", bare)}
        names |= {f"text_model.{one}" for one in names}
    else:
        names = {name, name.removesuffix(".0") if name.endswith(".to_out.0") else name}
        if not is_transformer(model):
            names.add(_original_name(model, name))
    return {one.replace(".", "_") for one in names}


def split_key(key: str) -> tuple[str, str]:
    """The layer and the slot that the key of a tensor in a LoRA file stands for.

    The slots are A, B, mid (LoCon), alpha, dora_scale (LyCORIS' DoRA magnitudes) and magnitude (PEFT's).

    Raises:
        ValueError: the tensor is no part of a LoRA.
    """
    kind = next((kind for pattern, kind in _OTHERS.items() if re.search(pattern, key)), None)
    for slot, pattern in _SLOTS.items() if kind is None else ():
        if match := pattern.search(key):
            return key[: match.start()], slot
    what = f"part of {kind}" if kind else "of an unknown kind"
    raise ValueError(
        f"its tensor {key} is {what}; "
        "expected matrices A and B (lora_down, lora_up), their alpha, lora_mid, DoRA magnitudes, and nothing else"
    )


def _original_name(model: Any, name: str) -> str:
    """Numbers one list of blocks through: two layers and the change of size make three of them a diffusers block."""
    found = _INSIDE.fullmatch(name)
    layers = getattr(getattr(model, "config", None), "layers_per_block", None)
    if found is None or not isinstance(layers, int):
        return _OUTSIDE.get(name, name)
    half, block, kind, number, inside = found.groups()
    if kind == "resnets":
        inside = _RESNET.get(inside, inside)
    if half is None:
        return f"middle_block.{2 * int(number) + (kind == 'attentions')}.{inside}"
    place = int(block) * (layers + 1)
    if kind == "downsamplers":
        return f"input_blocks.{place + layers + 1}.0.op"
    if kind == "upsamplers":
        with_attention = hasattr(model.up_blocks[int(block)], "attentions")
        return f"output_blocks.{place + layers}.{1 + with_attention}.{inside}"
    place += int(number)
    level = 1 if kind == "attentions" else 0
    return f"input_blocks.{1 + place}.{level}.{inside}" if half == "down" else f"output_blocks.{place}.{level}.{inside}"
