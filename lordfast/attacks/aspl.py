"""ASPL: images and a surrogate in turn, looking ahead to what fine-tuning on the clean images would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lordfast.attacks.fsmg import ORIGINAL, PIXELS, SOURCE, surrogate_loss, surrogate_rule
from lordfast.attacks.options import SteppedConfig, SurrogateOptions, TargetOptions
from lordfast.attacks.protocol import Attack, Perturb, Phase, Preset, Recall, Remember, Train


@dataclass(kw_only=True)
class AsplConfig(TargetOptions, SurrogateOptions, SteppedConfig):
    """Perturb a folder of images in turn with a surrogate that trains on them (ASPL)."""

    eps: str = "0.025"
    """Budget in [0, 1] pixels."""
    step_size: str = "0.0025"
    """Step in [0, 1] pixels."""
    rounds: int = 50
    """N: outer iterations."""
    train_steps: int = 3
    """M: optimiser steps of a copy on the clean images, and of the surrogate on the perturbed ones, in each round."""
    attack_steps: int = 6
    """K: image steps in each round."""
    surrogate: Literal["lora", "unet"] = "unet"
    """What is trained: a LoRA, or the whole UNet in fp32, which takes 16 bytes a weight."""
    surrogate_lr: float = 5e-7
    """Learning rate of AdamW, which starts afresh in every phase of training; a LoRA wants about 1e-4."""


def aspl_schedule(config: AsplConfig) -> Sequence[Phase]:
    """A round: look ahead with a copy trained on clean images, attack it, drop it; train on the perturbed images."""
    train, attack = config.train_steps, config.attack_steps
    one: list[Phase] = [Remember(), Train("clean", train), Perturb(attack), Recall(), Train("perturbed", train)]
    return config.rounds * one


ATTACKS = (
    Attack(
        name="aspl",
        summary="Anti-DreamBooth: PGD in turn with a surrogate's fine-tuning, untargeted or --targeted",
        rule=lambda config: (
            "N rounds: copy the surrogate, train the copy M steps on the clean images, K image steps on it, drop it; "
            f"train the surrogate M steps on the perturbed images. Each image step {surrogate_rule(config)}"
        ),
        source=SOURCE,
        config=AsplConfig,
        loss=surrogate_loss,
        schedule=aspl_schedule,
        presets={
            "antidreambooth": Preset(
                f"{ORIGINAL}, N 50, M 3, K 6, UNet and text encoder at lr 5e-7",
                {
                    **PIXELS,
                    "rounds": 50,
                    "train_steps": 3,
                    "attack_steps": 6,
                    "surrogate": "unet",
                    "surrogate_text_encoder": True,
                    "surrogate_lr": 5e-7,
                },
            ),
        },
    ),
)
