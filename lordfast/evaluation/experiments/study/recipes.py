"""Recipes: the settings of every step where a study gives none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lordfast.defense.stage1 import PRESETS as STAGE1
from lordfast.training.stage2 import PRESETS as STAGE2

Options = dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """Defaults of a study.

    Attributes:
        attack: names of the attacks that are run where a study names none.
        attacks: name -> options, with the kind under ``attack``.
        eps: budgets.
        stage1, stage2, generate, evaluate: options of these commands.
        features: of the distances.
    """

    attack: tuple[str, ...]
    attacks: dict[str, Options]
    eps: tuple[str, ...]
    stage1: Options
    stage2: Options
    generate: Options
    features: tuple[str, ...]
    evaluate: Options = field(default_factory=dict)


_DRAWN = ("lordfast.demo.classifier:load_classifier", "vae")
# Read off the demo: what LoRD sees in Stage 1 is the same kind of attack, with fewer and larger steps.
_STEPS = {"step_size": "2/255", "attack_steps": 40}
_DRAWN_ATTACKS: dict[str, Options] = {
    "pgd": {"attack": "pgd", "targeted": True, **_STEPS},
    "untargeted": {"attack": "pgd", "targeted": False, **_STEPS},
    "mist": {"attack": "mist", **_STEPS},
    "ace": {"attack": "ace"},
}
_STAGE1 = {"eps": "16/255", "step_size": "4/255", "attack_steps": 10, "targeted": True, "steps": 200, "batch_size": 4}

RECIPES = {
    "demo": Recipe(
        attack=("pgd",),
        attacks=_DRAWN_ATTACKS,
        eps=("16/255",),
        stage1={**_STAGE1, "lr": 5e-4, "lambda_det": 1.0},
        stage2={"steps": 150, "batch_size": 4, "lr": 2e-3, "rank": 4},
        generate={"n": 24, "steps": 20, "guidance": 3.0},
        features=_DRAWN,
    ),
    "quick": Recipe(
        attack=("pgd",),
        attacks={name: {**options, "attack_steps": 4} for name, options in _DRAWN_ATTACKS.items()},
        eps=("16/255",),
        stage1={**_STAGE1, "attack_steps": 4, "steps": 20, "lr": 5e-4, "lambda_det": 1.0},
        stage2={"steps": 30, "batch_size": 4, "lr": 2e-3, "rank": 4},
        generate={"n": 6, "steps": 10, "guidance": 3.0},
        features=_DRAWN,
    ),
    # LoRD's section IV. Where it leaves the scale of its numbers open, they are read as mist-v2, which it follows,
    # writes them: on [-1, 1] tensors, half as large in pixels. Class images of prior preservation need a prompt that
    # depends on the dataset, so mist-v2's are left to ``stage2``.
    "paper": Recipe(
        attack=("ace",),
        attacks={
            "ace": {
                "attack": "ace",
                "rounds": 4,
                "train_steps": 10,
                "attack_steps": 50,
                "step_size": "0.0025",
                "surrogate_lr": 1e-5,
            }
        },
        eps=("4/255",),
        stage1=dict(STAGE1["paper"]),
        stage2={name: STAGE2["paper"][name] for name in ("rank", "batch_size", "steps", "lr")},
        generate={"n": 100, "steps": 50, "guidance": 7.0, "sampler": "euler-a"},
        features=("inception",),
        evaluate={"clip_model": "openai/clip-vit-base-patch16"},
    ),
}
