"""Modules of a latent diffusion model by their kind, and what they put out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import Tensor, nn

from lordfast.diffusion import LatentDiffusion

Module = Literal[
    "vae-encoder",
    "quant-conv",
    "self-attention",
    "cross-attention",
    "joint-attention",
    "feed-forward",
    "resnet",
    "post-quant-conv",
    "vae-decoder",
]

# Part of the model, and the names of the modules in it.
_WHERE: dict[str, tuple[str, str]] = {
    "vae-encoder": ("vae", r"encoder"),
    "quant-conv": ("vae", r"quant_conv"),
    # At the top of a transformer a second attention is one of the image with itself (SD 3.5).
    "self-attention": ("unet", r".*\.attn1|transformer_blocks\.\d+\.attn2"),
    "cross-attention": ("unet", r".*\.attentions\..*\.attn2"),
    "joint-attention": ("unet", r"transformer_blocks\.\d+\.attn"),
    "feed-forward": ("unet", r".*\.ff"),
    "resnet": ("unet", r".*\.resnets\.\d+"),
    "post-quant-conv": ("vae", r"post_quant_conv"),
    "vae-decoder": ("vae", r"decoder"),
}
ENCODES: tuple[Module, ...] = ("vae-encoder", "quant-conv")
DECODES: tuple[Module, ...] = ("post-quant-conv", "vae-decoder")


@contextmanager
def caught_outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """The outputs of `modules`, in the order in which they are called."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    hooks = [module.register_forward_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def modules_of(model: LatentDiffusion, kind: Module) -> list[nn.Module]:
    """The modules of a kind.

    Raises:
        ValueError: the model has none.
    """
    found = _find(model, kind)
    if not found:
        there = ", ".join(other for other in _WHERE if _find(model, other))
        raise ValueError(f"module: {model.name} has no {kind}; it has {there}")
    return found


def _find(model: LatentDiffusion, kind: str) -> list[nn.Module]:
    part, pattern = _WHERE[kind]
    return [module for name, module in getattr(model, part).named_modules() if re.fullmatch(pattern, name)]
