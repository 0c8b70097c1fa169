"""What a study consists of: datasets, exposures, methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lordfast.evaluation.experiments.grid import slug
from lordfast.evaluation.experiments.study.config import StudyConfig
from lordfast.evaluation.experiments.study.methods import CLEAN, LORD, Method, Options

DRAWN = ("faces", "landscapes")
"""Datasets that are drawn, as the embedded model knows them."""


@dataclass(frozen=True)
class Dataset:
    """Whose pictures are attacked.

    Attributes:
        name: in tables and folders.
        folder: with a sub-folder per identity; None for drawn ones.
        others: folder that Stage 1 trains on; None draws them.
        prompt: of every identity.
        eps: budgets, weakest first as given.
    """

    name: str
    folder: Path | None
    others: Path | None
    prompt: str
    eps: tuple[str, ...]

    @property
    def landscape(self) -> bool:
        """Whether places are drawn, and not people."""
        return self.folder is None and self.name == DRAWN[1]

    @property
    def subject(self) -> str:
        """What the pictures show, as the prompt has it in the end: person, landscape."""
        return self.prompt.split()[-1].lower()


@dataclass(frozen=True)
class Exposure:
    """What the training pictures went through.

    Attributes:
        attack: its name in the study; None for clean ones.
        eps: the budget.
        proportion: share of the pictures that were attacked.
    """

    attack: str | None = None
    eps: str | None = None
    proportion: float = 0.0

    @property
    def slug(self) -> str:
        if self.attack is None:
            return "clean"
        share = "" if self.proportion == 1 else f"-{self.proportion * 100:g}-percent"
        return f"{slug(self.attack)}-{slug(str(self.eps))}{share}"

    @property
    def title(self) -> str:
        if self.attack is None:
            return "clean"
        share = "" if self.proportion == 1 else f", {self.proportion:.0%} of the pictures"
        return f"{self.attack} {self.eps}{share}"


@dataclass(frozen=True)
class Design:
    """A study, read and checked.

    Attributes:
        attacks: name -> (kind, options).
        methods: in the order of the table.
        evaluate, others: options of the distances, and of what `likeness` measures.
    """

    config: StudyConfig
    datasets: list[Dataset]
    attacks: dict[str, tuple[str, Options]]
    methods: list[Method]
    features: tuple[str, ...]
    evaluate: Options
    others: Options

    def likeness(self, dataset: Dataset) -> Options:
        """Options of what compares pictures by other networks: identity, CLIP and DINO; none where none is asked for.

        They are measured by themselves, so that asking for one more leaves all other measures as they are.
        """
        identity = {"identity": f"lordfast.demo.identity:{dataset.name}"} if dataset.folder is None else {}
        asked = {**identity, **self.others}
        if not any(asked.get(name) for name in ("identity", "clip_model", "dino_model")):
            return {}
        texts = {"clip_prompt": dataset.prompt, "iqa_subject": dataset.subject} if asked.get("clip_model") else {}
        return {"distribution": False, "frequency": False, "paired": "off", **texts, **asked}

    def exposures(self, dataset: Dataset) -> list[Exposure]:
        """Clean, and then every attack, budget and proportion above 0."""
        found = [Exposure()]
        for attack in self.attacks:
            for eps in dataset.eps:
                found += [Exposure(attack, eps, share) for share in self.config.proportions if share > 0]
        return found

    def of(self, exposure: Exposure) -> list[Method]:
        """The methods that are run on such pictures."""
        if exposure.attack is not None:
            return [method for method in self.methods if method.name != CLEAN]
        both = self.config.on_clean or 0 in self.config.proportions
        return [method for method in self.methods if both or method.name == CLEAN]

    @property
    def defenses(self) -> list[Method]:
        """One method for each Stage 1 that is needed; one without a purifier, where there is any."""
        found: dict[str, Method] = {}
        for method in self.methods:
            if method.stage1 is not None:
                key = repr(sorted(method.stage1.items()))
                if found.setdefault(key, method).purifier is not None and method.purifier is None:
                    found[key] = method
        return list(found.values())

    @property
    def gates(self) -> list[Method]:
        """One method for each LoRD whose gate is read."""
        return [method for method in self.defenses if method.defense == LORD] if self.config.gate else []
