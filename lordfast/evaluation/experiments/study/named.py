"""The studies that have names: the paper's table and figure, and the gate by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lordfast.evaluation.experiments.study.config import Datasets, StudyConfig


@dataclass(kw_only=True)
class Table1Config(StudyConfig):
    """The paper's Table I: every method on attacked pictures of several datasets, and purifiers beside them."""

    datasets: Datasets = ("faces", "landscapes")
    """faces and landscapes are drawn, as the model demo knows them; else DIR or NAME=DIR, a folder with a sub-folder of
    images per identity, such as lordfast dataset writes."""
    identities: int = 2
    """How many people or places of each dataset."""
    methods: tuple[str, ...] = ("clean-lora", "lora", "pgd2", "lord", "diffpure", "diffpure+lord")
    """clean-lora (the reference), lora, pgd2, lord, PURIFIER, PURIFIER+lord, ...; with :NAME, of a variant."""
    on_clean: bool = False
    """Every method on clean pictures too: what it costs those whom nobody attacked."""
    gate: bool = True
    """Read lambda of each LoRD on clean and attacked pictures: AUROC, pooled and per layer and timestep."""


@dataclass(kw_only=True)
class Fig7Config(StudyConfig):
    """The paper's Fig. 7: the methods when only a share of the training pictures is attacked."""

    identities: int = 2
    """How many people or places of each dataset."""
    proportions: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Shares of the training pictures that are attacked; those of a smaller share are among those of a larger one."""


@dataclass(kw_only=True)
class GateConfig(StudyConfig):
    """How well lambda tells attacked pictures, of attacks and budgets that Stage 1 has not seen too."""

    attack: tuple[str, ...] = ("pgd", "untargeted", "mist")
    """Attacks, by their names or by those under attacks in the config file; default: the recipe's."""
    eps: tuple[str, ...] = ("4/255", "8/255", "16/255")
    """Budgets in [0, 1] pixels, EPS, or DATASET=EPS for one dataset alone; default: the recipe's."""
    methods: tuple[str, ...] = ("lord",)
    """clean-lora (the reference), lora, pgd2, lord, PURIFIER, PURIFIER+lord, ...; with :NAME, of a variant."""
    draw: bool = False
    """Train LoRAs and measure what they draw; without it, only --gate is answered."""
    gate: bool = True
    """Read lambda of each LoRD on clean and attacked pictures: AUROC, pooled and per layer and timestep."""


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "recipe": "quick",
        "identities": 1,
        "images": 4,
        "reference": 32,
        "stage1_images": 16,
    },
    # Stage 1 on 1000 captioned pictures for 100 epochs, 100 test pictures, 100 drawn ones; each dataset's budget is its
    # own: --eps celeba=4/255 vggface2=2/255 landscapes=8/255 in pixels.
    "paper": {"recipe": "paper", "images": 100, "reference": 100, "stage1_images": 1000},
}
