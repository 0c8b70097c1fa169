"""A trained LoRD under what is trained or drawn: its flags, and loading it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lordfast.diffusion import LatentDiffusion

GATE = "gate"


@dataclass(kw_only=True)
class LordOptions:
    """The LoRD of stage1, frozen. Mixed into the configs that build on one."""

    lord: Path | None = None
    """The run folder of lordfast stage1, or any folder with a saved LoRD, which stays frozen and active."""
    lord_lambda: str = GATE
    """lambda of the LoRD: gate, or a number in place of what the gates say. 0 is its clean branch alone, 1 both
    branches whole."""


def parse_lambda(options: LordOptions) -> float | None:
    """The number that stands for lambda, None for the gates' own.

    Raises:
        ValueError: it is none from 0 to 1; or there is no LoRD.
    """
    text = options.lord_lambda
    if text == GATE:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise ValueError(f"lord_lambda: expected gate, or a number from 0 to 1, got {text!r}")
    if options.lord is None:
        raise ValueError(f"lord_lambda: {text} was given without lord; expected both or gate")
    return value


def load_frozen_lord(model: LatentDiffusion, options: LordOptions) -> None:
    """Load the LoRD, if there is one, with the lambda that it is to have.

    Raises:
        ValueError, FileNotFoundError: the path holds no LoRD, or one of another model.
    """
    from lordfast.adapter import load_lord, override_lambda

    if options.lord is not None:
        load_lord(model.unet, options.lord)
        value = parse_lambda(options)
        if value is not None:
            override_lambda(model.unet, value)
