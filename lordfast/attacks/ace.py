"""ACE: pull the prediction to one error everywhere, on a surrogate that trains on the images as they change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lordfast.attacks.options import PictureOptions, SteppedConfig, SurrogateOptions
from lordfast.attacks.pgd import TargetedLoss
from lordfast.attacks.protocol import Attack, Perturb, Phase, Preset, Train
from lordfast.attacks.target import Target


@dataclass(kw_only=True)
class AceConfig(PictureOptions, SurrogateOptions, SteppedConfig):
    """Perturb a folder of images in turn with a LoRA that trains on them, pulling its errors to one picture (ACE)."""

    eps: str = "4/255"
    """Budget in [0, 1] pixels."""
    step_size: str = "0.0025"
    """Step in [0, 1] pixels."""
    rounds: int = 5
    """N: outer iterations."""
    attack_steps: int = 30
    """K: image steps in each round."""
    train_steps: int = 10
    """M: optimiser steps of the surrogate on the perturbed images in each round, kept for the next."""


def ace_schedule(config: AceConfig) -> Sequence[Phase]:
    """A round: attack the surrogate, then train it on the perturbed images, for good."""
    one: list[Phase] = [Perturb(config.attack_steps), Train("perturbed", config.train_steps)]
    return config.rounds * one


def _paper(eps: str, step: str) -> dict[str, Any]:
    alternation = {"rounds": 4, "train_steps": 10, "attack_steps": 50, "surrogate": "lora", "surrogate_lr": 1e-5}
    return {"eps": eps, "step_size": step, **alternation}


# The LoRD paper does not say on which scale its numbers are; both readings are here, and neither is called "paper".
_LORD = "N 4, M 10, K 50, step 5e-3, lr 1e-5"
PAPER_PRESETS = {
    f"ace-paper-{scale}{suffix}": Preset(
        f"the LoRD paper's {data}: zeta {levels}/255, {_LORD}, read as {reading}",
        _paper(f"{levels if scale == 's1' else levels // 2}/255", "0.005" if scale == "s1" else "0.0025"),
    )
    for scale, reading in (
        ("s1", "[0, 1] pixels: grey levels as they stand"),
        ("s2", "[-1, 1] tensors, as mist-v2 does: half as many grey levels"),
    )
    for data, levels, suffix in (
        ("CelebA-HQ", 8, ""),
        ("VGGFace2", 4, "-vggface2"),
        ("landscape", 16, "-landscape"),
    )
}

RULE = (
    "N rounds: K image steps that descend || prediction - z_target ||^2 on the surrogate, then M optimiser steps of it "
    "on the perturbed images, kept"
)
SOURCE = "Zheng et al. 2023, Targeted Attack Improves Protection against Unauthorized Diffusion Customization (ACE)"

ATTACKS = (
    Attack(
        name="ace",
        summary="targeted PGD in turn with a surrogate's fine-tuning on the perturbed images",
        rule=lambda config: RULE,
        source=SOURCE,
        config=AceConfig,
        loss=lambda config, model: TargetedLoss(Target(config.target)),
        schedule=ace_schedule,
        presets={
            "ace": Preset(
                "eps 8/255, step 0.005, N 5, M 10, K 30, lr 1e-4, on [-1, 1] tensors",
                {
                    "eps": "4/255",
                    "step_size": "0.0025",
                    "rounds": 5,
                    "train_steps": 10,
                    "attack_steps": 30,
                    "surrogate_lr": 1e-4,
                },
            ),
            **PAPER_PRESETS,
        },
    ),
)
