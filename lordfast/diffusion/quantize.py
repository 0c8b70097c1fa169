"""A frozen denoiser whose large linear layers hold 8 or 4 bits a weight, through bitsandbytes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

Bits = Literal["8bit", "4bit"]
BLOCK = 64
"""Weights that share a scale in nf4."""


def quantised_layers(denoiser: nn.Module) -> list[str]:
    """Names of the layers that are quantised: attention's and the feed-forwards' linear ones.

    Convolutions can't be; the embeddings of time and pooled text, and the modulations in normalisation layers, are
    small in use and sensitive; rows that are no whole blocks of 64 weights (no published model has any) can't be
    quantised on every device.
    """
    return [
        name
        for name, module in denoiser.named_modules()
        if type(module) is nn.Linear
        and "transformer_blocks." in name
        and ".norm" not in name
        and module.in_features % BLOCK == 0
    ]


def replace_layers(denoiser: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> int:
    """Put `make` of each of `quantised_layers` in its place; returns how many there were.

    Raises:
        ValueError: none, or some of them are inside an adapter already.
    """
    names = quantised_layers(denoiser)
    if not names:
        raise ValueError(f"quantize: a {type(denoiser).__name__} has no linear layers in transformer blocks")
    inside = next((name for name in names if ".base_layer" in name), None)
    if inside is not None:
        raise ValueError(f"quantize: {inside} carries an adapter; quantise the bare model, then inject")
    for name in names:
        path, _, child = name.rpartition(".")
        parent = denoiser.get_submodule(path)
        setattr(parent, child, make(getattr(parent, child)))
    return len(names)


def quantize(denoiser: nn.Module, bits: Bits, device: torch.device, dtype: torch.dtype) -> int:
    """Quantise the linear layers of a frozen denoiser in place, one by one, onto `device`.

    8bit: LLM.int8() with a scale a row. 4bit: nf4 in blocks of 64 (QLoRA). Gradients reach the inputs alone.

    Args:
        denoiser: on any device, such as the CPU when the whole would not fit on `device`.
        dtype: in which 4-bit layers compute.

    Returns:
        How many layers were quantised.

    Raises:
        ValueError: bitsandbytes is missing, or can't be imported; no layer to quantise; `bits` is neither.
    """
    if bits not in ("8bit", "4bit"):
        raise ValueError(f"quantize: expected 8bit or 4bit, got {bits!r}")
    layers = _layers()

    def make(linear: nn.Linear) -> nn.Module:
        size = (linear.in_features, linear.out_features, linear.bias is not None)
        made: Any
        if bits == "4bit":
            made = layers.Linear4bit(*size, compute_dtype=dtype, quant_type="nf4", device="meta")
            made.weight = layers.Params4bit(
                linear.weight.data, requires_grad=False, quant_type="nf4", blocksize=BLOCK, compress_statistics=True
            )
            # On some CPUs the first call that needs no gradient repacks the weight for good, and then none has one.
            made.support_avx512bf16_for_cpu = False
        else:
            made = layers.Linear8bitLt(*size, has_fp16_weights=False, threshold=0.0, device="meta")
            made.weight = layers.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
        made.bias = linear.bias
        # Moving is what quantises.
        return made.to(device).requires_grad_(False).eval()

    return replace_layers(denoiser, make)


def check_quantize() -> None:
    """Raise ValueError where bitsandbytes is missing or can't be imported."""
    _layers()


def _layers() -> Any:
    # It says for each layer that it rounds inputs to half precision, which is what was asked for.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except (ImportError, OSError, RuntimeError) as error:
        raise ValueError(
            f"quantize: needs bitsandbytes, which can't be imported ({error}); pip install 'lordfast[quantize]'"
        ) from error
    return bitsandbytes.nn
