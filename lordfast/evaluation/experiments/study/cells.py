"""The cells of a study: pictures, attacks, Stage 1, training, drawing, measuring, gates."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lordfast.data import ImageRecord
from lordfast.evaluation.experiments.grid import Cell, CellRun, Result, slug
from lordfast.evaluation.experiments.steps import ATTACKED, GENERATED, LORA, PURIFIED, Steps
from lordfast.evaluation.experiments.study.design import Dataset, Design, Exposure
from lordfast.evaluation.experiments.study.material import draw_others, mix, prepare
from lordfast.evaluation.experiments.study.measuring import Pictures, measure_pictures
from lordfast.evaluation.experiments.study.methods import CLEAN, PLAIN, Method, Options
from lordfast.evaluation.experiments.subjects import Replicate
from lordfast.training.seeds import derive_seed


def fingerprint(settings: Any) -> str:
    """Eight letters that differ where the settings differ: cells with one are shared by all that need them."""
    return hashlib.sha256(json.dumps(plain(settings), sort_keys=True).encode()).hexdigest()[:8]


def plain(value: Any) -> Any:
    """Settings as JSON has them."""
    return json.loads(json.dumps(value, default=str))


class StudyCells:
    """All cells, in the order in which they are best computed, and where what lies.

    Args:
        subjects: dataset -> identity's label -> images, for the datasets that are folders.
        side: of the pictures.
    """

    def __init__(self, design: Design, subjects: dict[str, dict[str, list[ImageRecord]]], side: int) -> None:
        self.design, self.config, self.subjects, self.side = design, design.config, subjects, side
        # Absolute: another process, which shares the folder, may stand elsewhere.
        self.folder = self.config.out.resolve() / "cells"
        self._cells: dict[str, Cell] = {}
        self.replicates = {dataset.name: self._replicates(dataset) for dataset in design.datasets}
        # One replicate of every dataset after the other: half a study is a fair half.
        for index in range(self.config.identities * self.config.seeds):
            for dataset in design.datasets:
                self._add_replicate(dataset, self.replicates[dataset.name][index])

    @property
    def all(self) -> list[Cell]:
        return list(self._cells.values())

    def drawn(self, replicate: Replicate, exposure: Exposure, method: Method) -> str:
        """Name of the cell with a method's pictures."""
        word = PLAIN if method.name == CLEAN else method.name
        return f"{replicate.name}/{exposure.slug}/{word.replace(':', '.')}"

    def measured(self, replicate: Replicate, exposure: Exposure, method: Method) -> str:
        """Name of the cell with their measures."""
        return f"{self.drawn(replicate, exposure, method)}.measured-{fingerprint(self._measures())}"

    def compared(self, replicate: Replicate, exposure: Exposure, method: Method) -> str:
        """Name of the cell with what other networks say of them."""
        dataset = next(one for one in self.design.datasets if one.name == replicate.dataset)
        return f"{self.drawn(replicate, exposure, method)}.compared-{fingerprint(self.design.likeness(dataset))}"

    def gate(self, replicate: Replicate, exposure: Exposure, method: Method) -> str:
        """Name of the cell with what the gates of its LoRD say."""
        settings = [method.stage1, self.config.gate_timesteps]
        whole = dataclasses.replace(exposure, proportion=1.0)
        return f"{replicate.name}/{whole.slug}/gate-{fingerprint(settings)}"

    def attacked(self, replicate: Replicate, exposure: Exposure) -> str:
        """Name of the cell with the attacked pictures."""
        return f"{replicate.name}/attack-{slug(str(exposure.attack))}-{slug(str(exposure.eps))}"

    def _replicates(self, dataset: Dataset) -> list[Replicate]:
        first = self.config.first_identity
        numbers = range(first, first + self.config.identities)
        labels = list(self.subjects.get(dataset.name, {})) or list(map(str, numbers))
        pairs = list(zip(numbers, labels, strict=True))
        return [
            Replicate(number, seed, label, self.config.seed, dataset.name)
            for seed in range(self.config.seeds)
            for number, label in pairs
        ]

    def _add(self, name: str, settings: Options, work: Callable[[CellRun], Result], needs: Sequence[str] = ()) -> str:
        full = plain({"model": self.config.model, "seed": self.config.seed, **settings})
        self._cells.setdefault(name, Cell(name, full, work, tuple(dict.fromkeys(needs))))
        return name

    def _add_replicate(self, dataset: Dataset, one: Replicate) -> None:
        sizes = {"images": self.config.images, "reference": self.config.reference}
        source = str(dataset.folder) if dataset.folder is not None else "drawn"
        settings = {"identity": one.label, "dataset": source, "prompt": dataset.prompt, **sizes}
        settings |= {"side": self.side, "dtype": self.config.dtype}
        records = self.subjects[dataset.name][one.label] if dataset.folder is not None else None

        def work(run: CellRun) -> Result:
            run.step("data", lambda: prepare(run.folder, dataset, one, records, side=self.side, **sizes))
            return {}

        self._add(f"{one.name}/data", settings, work)
        for exposure in self.design.exposures(dataset):
            if exposure.attack is not None:
                self._add_attack(dataset, one, exposure)
                for method in self.design.gates:
                    self._add_gate(dataset, one, exposure, method)
            for method in self.design.of(exposure) if self.config.draw else ():
                self._add_method(dataset, one, exposure, method)

    def _add_attack(self, dataset: Dataset, one: Replicate, exposure: Exposure) -> None:
        kind, options = self.design.attacks[str(exposure.attack)]
        eps = str(exposure.eps)

        def work(run: CellRun) -> Result:
            images = self.folder / one.name / "data" / "train"
            return {"attack": self._steps(*one.seeds).attack(run, kind, images, eps, dataset.prompt, options)}

        settings = {"attack": kind, "eps": eps, "options": options}
        self._add(self.attacked(one, exposure), settings, work, [f"{one.name}/data"])

    def _add_stage1(self, dataset: Dataset, one: Replicate, method: Method) -> str:
        number, options = one.number % self.config.stage1_seeds, method.stage1 or {}
        needs = []
        data = dataset.others
        name = f"{dataset.name}/others-{self.config.stage1_images}"
        if data is None:
            data = self.folder / name / "pictures"
            needs = [self._add(name, {}, lambda run: self._others(run, dataset))]
        settings: Options = {"options": options, "data": str(dataset.others or name), "side": self.side}

        def work(run: CellRun) -> Result:
            steps = self._steps(self.config.seed, dataset.name, "stage1", number)
            return {"stage1": steps.defend(run, data, options)}

        name = f"{dataset.name}/stage1/{method.defense}-{fingerprint(settings)}/seed-{number}"
        return self._add(name, {**settings, "number": number}, work, needs)

    def _add_method(self, dataset: Dataset, one: Replicate, exposure: Exposure, method: Method) -> None:
        needs = [f"{one.name}/data"]
        if exposure.attack is not None:
            needs.append(self.attacked(one, exposure))
        lord = self._add_stage1(dataset, one, method) if method.defense is not None else None
        settings = {
            "attack": exposure.attack,
            "eps": exposure.eps,
            "proportion": exposure.proportion,
            "purifier": method.purifier,
            "purifier_options": method.options,
            "lord": lord,
            "stage2": method.variant.stage2,
        }
        under = self.folder / lord / "lord" if lord is not None else None
        steps, prompt = self._steps(*one.seeds), dataset.prompt

        def train(run: CellRun) -> Result:
            images = self._pictures(run, one, exposure)
            found: Result = {}
            if method.purifier is not None:
                found["purify"] = steps.purify(run, method.purifier, images, method.options)
                images = run.folder / PURIFIED
            return {**found, "train": steps.train(run, images, prompt, method.variant.stage2, under)}

        trained = f"{one.name}/{exposure.slug}/train-{fingerprint(settings)}"
        self._add(trained, settings, train, [*needs, *([lord] if lord is not None else [])])
        sampling = under if method.variant.lord else None

        def draw(run: CellRun) -> Result:
            steps.draw(run, prompt, self.folder / trained / LORA, method.variant.generate, sampling)
            return {"trained": trained}

        drawing = {"generate": method.variant.generate, "lord_in_sampling": sampling is not None}
        name = self.drawn(one, exposure, method)
        self._add(name, {**settings, **drawing}, draw, [trained])
        clean = self.drawn(one, Exposure(), self.design.methods[0])
        knows = {"lora": self.folder / trained / LORA, "lord": sampling, "prompt": prompt}
        if sampling is not None and "lord_lambda" in method.variant.generate:
            knows["lord_lambda"] = method.variant.generate["lord_lambda"]
        reference = self.folder / one.name / "data" / "reference"
        pictures = Pictures(self.folder / name / GENERATED, reference, self.folder / clean / GENERATED, knows)

        def measure(run: CellRun) -> Result:
            return measure_pictures(run, steps, self.design, pictures)

        def compare(run: CellRun) -> Result:
            return {"summary": steps.evaluate(run, "likeness", likeness | pictures.sets)}

        measured = self.measured(one, exposure, method)
        self._add(measured, {"measures": self._measures()}, measure, [f"{one.name}/data", name, clean])
        likeness = self.design.likeness(dataset)
        if likeness:
            self._add(self.compared(one, exposure, method), likeness, compare, [f"{one.name}/data", name])

    def _measures(self) -> Options:
        return {"features": self.design.features, "evaluate": self.design.evaluate}

    def _add_gate(self, dataset: Dataset, one: Replicate, exposure: Exposure, method: Method) -> None:
        lord, attacked = self._add_stage1(dataset, one, method), self.attacked(one, exposure)
        options = {
            "lord": self.folder / lord / "lord",
            "clean": self.folder / one.name / "data" / "train",
            "attacked": self.folder / attacked / ATTACKED,
            "timesteps": self.config.gate_timesteps,
            "prompt": dataset.prompt,
        }

        def work(run: CellRun) -> Result:
            return {"detection": self._steps(*one.seeds).evaluate(run, "gate", options)["detection"]}

        settings = {"lord": lord, "attacked": attacked, "timesteps": self.config.gate_timesteps}
        self._add(self.gate(one, exposure, method), settings, work, [f"{one.name}/data", attacked, lord])

    def _steps(self, *parts: object) -> Steps:
        return Steps.of(self.config, self.config.model, self.config.resolution, *parts)

    def _others(self, run: CellRun, dataset: Dataset) -> Result:
        seed, count = derive_seed(self.config.seed, dataset.name, "others"), self.config.stage1_images
        run.step("data", lambda: draw_others(run.folder / "pictures", dataset, count, seed))
        return {}

    def _pictures(self, run: CellRun, one: Replicate, exposure: Exposure) -> Path:
        """The folder that the LoRA is trained on; where only a share is attacked, a mixed one is made."""
        clean = self.folder / one.name / "data" / "train"
        if exposure.attack is None:
            return clean
        attacked = self.folder / self.attacked(one, exposure) / ATTACKED
        if exposure.proportion == 1:
            return attacked
        return mix(clean, attacked, run.folder / "mixed", exposure.proportion, one.derive("mixture"))
