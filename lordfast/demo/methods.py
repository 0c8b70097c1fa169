"""The ways of training that the demo compares."""

from __future__ import annotations

from typing import NamedTuple


class Method(NamedTuple):
    """Whether the LoRA's images are attacked, whether the LoRD lies underneath, and whether it stays for sampling.

    Attributes:
        lora: whose LoRA is drawn with, where it is not a LoRA of this method's own.
    """

    attacked: bool
    with_lord: bool
    in_sampling: bool = True
    lora: str | None = None


METHODS = {
    "clean-lora": Method(attacked=False, with_lord=False),
    "clean-lord": Method(attacked=False, with_lord=True),
    "attacked-lora": Method(attacked=True, with_lord=False),
    "attacked-lord": Method(attacked=True, with_lord=True),
    "attacked-lord-training": Method(attacked=True, with_lord=True, in_sampling=False, lora="attacked-lord"),
}


TRAINED = {name: method for name, method in METHODS.items() if method.lora is None}
"""Those with a LoRA of their own."""


def method_title(name: str) -> str:
    """How a method of `METHODS` is called in pictures and tables."""
    method = METHODS[name]
    images = "attacked" if method.attacked else "clean"
    lord = "LoRD + LoRA" if method.in_sampling else "LoRA trained on LoRD"
    return f"{lord if method.with_lord else 'LoRA'}, {images} images"
