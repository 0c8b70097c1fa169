"""The conditions that a purifier is judged by, and their cells: attack, purify, train, draw, measure."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lordfast.attacks.run import run_attack
from lordfast.evaluation.config import EvaluateConfig
from lordfast.evaluation.evaluate import run_evaluate
from lordfast.evaluation.experiments.changes import CHANGE, PICTURES, Changes
from lordfast.evaluation.experiments.choices import attack_class, build, parse_options, purifier_class
from lordfast.evaluation.experiments.grid import Cell, CellRun, Result
from lordfast.evaluation.experiments.subjects import Replicate, draw_pictures, split_pictures
from lordfast.purify.run import run_purify
from lordfast.training.generate import GenerateConfig, run_generate
from lordfast.training.stage2 import Stage2Config, run_stage2

if TYPE_CHECKING:
    from lordfast.data import ImageRecord
    from lordfast.evaluation.experiments.purifiers import PurifiersConfig

RESERVED = ("out", "images", "model", "prompt", "eps", "seed", "device", "dtype", "resume", "overwrite", "cache_dir")
"""Fields of attacks and purifiers that the experiment sets."""


@dataclass(frozen=True)
class Condition:
    """What is done to the pictures before a LoRA is trained on them.

    Attributes:
        name: of its cells, within a replicate.
        eps: the attack's budget; None leaves the pictures clean.
        purifier: None leaves them as they are.
        before: the name of the same condition without the purifier.
    """

    name: str
    eps: str | None = None
    purifier: str | None = None
    before: str | None = None

    @property
    def title(self) -> str:
        start = "clean" if self.eps is None else f"attacked {self.eps}"
        return start if self.purifier is None else f"{start}, {self.purifier}"


def list_conditions(config: PurifiersConfig) -> list[Condition]:
    """Clean; attacked at each budget; purified at those of ``purify_eps``, and clean too with ``purify_clean``."""
    plain = [Condition("clean"), *(Condition(f"attacked-{_slug(eps)}", eps) for eps in config.eps)]
    found = list(plain)
    for base in plain:
        if config.purify_clean if base.eps is None else base.eps in config.purified_eps:
            found += [Condition(f"{base.name}+{name}", base.eps, name, base.name) for name in config.purifiers]
    return found


def list_cells(
    config: PurifiersConfig, repetitions: Sequence[Replicate], subjects: dict[str, list[ImageRecord]], side: int
) -> list[Cell]:
    """Every cell of the grid, replicate by replicate."""
    conditions = list_conditions(config)
    return [cell for one in repetitions for cell in _Cells(config, one, subjects.get(one.label), side).all(conditions)]


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text)


class _Cells:
    """The cells of one replicate."""

    def __init__(
        self, config: PurifiersConfig, replicate: Replicate, records: list[ImageRecord] | None, side: int
    ) -> None:
        self.config, self.replicate, self.records, self.side = config, replicate, records, side
        # Absolute: another process, which shares the folder, may stand elsewhere.
        self.cells = config.out.resolve() / "cells"
        self.cache = config.out.resolve() / "cache"

    def all(self, conditions: Sequence[Condition]) -> list[Cell]:
        data = self._cell("data", {"images": self.config.images, "reference": self.config.reference}, self._data, ())
        found = [data]
        for eps in self.config.eps:
            settings = {"attack": self.config.attack, "eps": eps, "options": list(self.config.attack_options)}
            found.append(self._cell(f"attack-{_slug(eps)}", settings, self._attack(eps), ("data",)))
        for condition in conditions:
            needs = ["data"] if condition.eps is None else ["data", f"attack-{_slug(condition.eps)}"]
            settings = self._training() | {"eps": condition.eps, "purifier": condition.purifier}
            if condition.purifier is not None:
                settings["options"] = self.config.options_of(condition.purifier)
            found.append(self._cell(condition.name, settings, self._measure(condition), needs))
        return found

    def _cell(
        self, name: str, settings: dict[str, Any], work: Callable[[CellRun], Result], needs: Sequence[str]
    ) -> Cell:
        identity = {"identity": self.replicate.label, "replicate": self.replicate.number, "seed": self.replicate.seed}
        full = tuple(f"{self.replicate.name}/{need}" for need in needs)
        return Cell(f"{self.replicate.name}/{name}", {**identity, "model": self.config.model, **settings}, work, full)

    def _training(self) -> dict[str, Any]:
        names = ("stage2_steps", "lr", "rank", "batch_size", "generated", "sampler_steps", "guidance", "features")
        return json.loads(json.dumps({name: getattr(self.config, name) for name in names}))

    def _run(self, out: Path, *parts: object) -> dict[str, Any]:
        """What every run folder of a cell is given. One begun by an interrupted session goes on."""
        if out.is_dir() and not (out / "config.yaml").exists():
            # Killed in its first moments: no run yet, but files that a run would refuse to write beside.
            shutil.rmtree(out)
        common = {"device": self.config.device, "dtype": self.config.dtype, "resume": True}
        return {"out": out, "seed": self.replicate.derive(*parts), **common}

    def _data(self, run: CellRun) -> Result:
        sizes = {"images": self.config.images, "reference": self.config.reference}
        if self.records is None:
            landscape = self.config.landscape
            prompt = run.step("data", lambda: draw_pictures(self.replicate, run.folder, landscape=landscape, **sizes))
            return {"prompt": self.config.prompt or prompt}
        records = self.records
        run.step("data", lambda: split_pictures(self.replicate, records, run.folder, side=self.side, **sizes))
        return {"prompt": self.config.prompt or "a photo of a sks person"}

    def _attack(self, eps: str) -> Callable[[CellRun], Result]:
        def work(run: CellRun) -> Result:
            cls = attack_class(self.config.attack)
            options = parse_options(self.config.attack_options, cls, "attack_options", RESERVED)
            needed = {"images": self._data_folder("train"), "eps": eps, "model": self.config.model}
            offered = {"prompt": self._prompt(run), "cache_dir": self.cache, "resolution": self.config.resolution}
            # The same seed at each budget, so that budgets differ in nothing else.
            needed |= self._run(run.folder / "attacked", "attack")
            config = build(cls, needed, offered, options)
            return {"attack": run.step("attack", lambda: run_attack(self.config.attack, config))}

        return work

    def _measure(self, condition: Condition) -> Callable[[CellRun], Result]:
        def work(run: CellRun) -> Result:
            images = self._data_folder("train")
            if condition.eps is not None:
                images = self.cells / self.replicate.name / f"attack-{_slug(condition.eps)}" / "attacked"
            found: Result = {}
            if condition.purifier is not None:
                found["purify"] = self._purify(run, condition.purifier, images)
                images = run.folder / "purified"
            training = self._stage2(run, images)
            found["train"] = run.step("train", lambda: run_stage2(training))
            drawing = self._generation(run, training.out)
            run.step("generate", lambda: run_generate(drawing))
            return {**found, "distances": {spec: self._distances(run, spec) for spec in self.config.features}}

        return work

    def _purify(self, run: CellRun, name: str, images: Path) -> Result:
        cls = purifier_class(name)
        options = parse_options(self.config.options_of(name), cls, "purifier_options", RESERVED)
        needed = {"images": images, **self._run(run.folder / "purified", "purify")}
        config = build(cls, needed, {"model": self.config.model, "cache_dir": self.cache}, options)
        return run.step("purify", lambda: run_purify(name, config))

    def _stage2(self, run: CellRun, images: Path) -> Stage2Config:
        """A plain LoRA: no LoRD underneath. Every condition of a replicate sees the same noise."""
        return Stage2Config(
            **self._run(run.folder / "lora", "train"),
            model=self.config.model,
            instance_data=images,
            instance_prompt=self._prompt(run),
            steps=self.config.stage2_steps,
            batch_size=self.config.batch_size,
            lr=self.config.lr,
            rank=self.config.rank,
            resolution=self.config.resolution,
            tensorboard=False,
            keep_checkpoints=1,
            cache_dir=self.cache,
        )

    def _generation(self, run: CellRun, lora: Path) -> GenerateConfig:
        return GenerateConfig(
            **self._run(run.folder / "generated", "noise"),
            model=self.config.model,
            prompt=self._prompt(run),
            lora=lora,
            n=self.config.generated,
            steps=self.config.sampler_steps,
            guidance=self.config.guidance,
            resolution=self.config.resolution,
        )

    def _distances(self, run: CellRun, spec: str) -> dict[str, float]:
        config = EvaluateConfig(
            **self._run(run.folder / "metrics" / _slug(spec), "measure"),
            model=self.config.model,
            generated=run.folder / "generated",
            reference=self._data_folder("reference"),
            features=(spec,),
            paired="off",
            frequency=False,
            # The spread that counts is the one over replicates.
            resamples=0,
            resolution=self.config.resolution,
        )
        found = run.step("measure", lambda: run_evaluate(config))["distribution"]
        return {"frechet": found["frechet_distance"], "kernel": found["kernel_distance"]}

    def _data_folder(self, part: str) -> Path:
        return self.cells / self.replicate.name / "data" / part

    def _prompt(self, run: CellRun) -> str:
        return run.results[f"{self.replicate.name}/data"]["prompt"]


def measure_names(features: Sequence[str]) -> list[tuple[str, str]]:
    """(features, distance) of every measure."""
    return [*((spec, distance) for spec in features for distance in ("frechet", "kernel")), (PICTURES, CHANGE)]


def collect(
    conditions: Sequence[Condition], repetitions: Sequence[Replicate], done: dict[str, Result], changes: Changes
) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Condition -> replicate -> features -> distance -> value, for the cells that are there."""

    def measured(replicate: str, condition: str) -> dict[str, dict[str, float]]:
        found = dict(done[f"{replicate}/{condition}"]["distances"])
        if f"{replicate}/clean" in done:
            found[PICTURES] = {CHANGE: changes.of(replicate, condition)}
        return found

    return {
        condition.name: {
            one.name: measured(one.name, condition.name)
            for one in repetitions
            if f"{one.name}/{condition.name}" in done
        }
        for condition in conditions
    }
