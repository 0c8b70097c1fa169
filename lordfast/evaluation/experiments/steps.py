"""What every experiment does to pictures, as runs inside a cell: attack, purify, train, draw, measure."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lordfast.attacks.run import run_attack
from lordfast.defense.stage1 import Stage1Config, run_stage1
from lordfast.evaluation.config import EvaluateConfig
from lordfast.evaluation.evaluate import run_evaluate
from lordfast.evaluation.experiments.choices import attack_class, build, purifier_class
from lordfast.evaluation.experiments.grid import CellRun, Result
from lordfast.evaluation.experiments.start import GridConfig
from lordfast.purify.run import run_purify
from lordfast.training.generate import GenerateConfig, run_generate
from lordfast.training.seeds import derive_seed
from lordfast.training.stage2 import Stage2Config, run_stage2

RESERVED = ("out", "images", "model", "prompt", "eps", "seed", "device", "dtype", "resume", "overwrite", "cache_dir")
"""Fields of attacks and purifiers that an experiment sets."""

ATTACKED, PURIFIED, LORA, GENERATED = "attacked", "purified", "lora", "generated"
"""What the runs are called in their cell's folder."""


@dataclass(frozen=True)
class Steps:
    """The steps of the cells that share random numbers, such as those of one replicate.

    Attributes:
        model, device, dtype, resolution: of every run.
        cache: where encoded latents and texts are kept.
        parts: what all seeds are derived from. What a step draws at random depends on them and on the kind of the step
            alone: conditions of one replicate see the same noise.
    """

    model: str
    device: str
    dtype: Any
    resolution: int | None
    cache: Path
    parts: tuple[object, ...]

    @classmethod
    def of(cls, config: GridConfig, model: str, resolution: int | None, *parts: object) -> Steps:
        """Those of an experiment; the cache is its own."""
        # Absolute: another process, which shares the folder, may stand elsewhere.
        return cls(model, config.device, config.dtype, resolution, config.out.resolve() / "cache", parts)

    def attack(
        self, run: CellRun, name: str, images: Path, eps: str, prompt: str, options: Mapping[str, Any]
    ) -> Result:
        """Attacked pictures; the same random numbers at each budget, so that budgets differ in nothing else."""
        needed = {"images": images, "eps": eps, "model": self.model, **self._run(run.folder / ATTACKED, "attack")}
        offered = {"prompt": prompt, "cache_dir": self.cache, "resolution": self.resolution}
        config = build(attack_class(name), needed, offered, options)
        return run.step("attack", lambda: run_attack(name, config))

    def purify(self, run: CellRun, name: str, images: Path, options: Mapping[str, Any]) -> Result:
        """Purified pictures."""
        needed = {"images": images, **self._run(run.folder / PURIFIED, "purify")}
        config = build(purifier_class(name), needed, {"model": self.model, "cache_dir": self.cache}, options)
        return run.step("purify", lambda: run_purify(name, config))

    def defend(self, run: CellRun, data: Path, options: Mapping[str, Any]) -> Result:
        """A LoRD, or its one-branch baseline, in the cell's folder itself below ``lord``."""
        needed = {"model": self.model, "data": data, "tensorboard": False, "cache_dir": self.cache}
        needed |= self._run(run.folder / "lord", "stage1")
        config = build(Stage1Config, needed, {"resolution": self.resolution, "keep_checkpoints": 1}, options)
        return run.step("stage 1", lambda: run_stage1(config))

    def train(
        self, run: CellRun, images: Path, prompt: str, options: Mapping[str, Any], lord: Path | None = None
    ) -> Result:
        """A LoRA: plain, or on top of a frozen LoRD; options of the LoRD are for those that have one."""
        needed = {"model": self.model, "instance_data": images, "instance_prompt": prompt, "lord": lord}
        needed |= {"tensorboard": False, "cache_dir": self.cache, **self._run(run.folder / LORA, "train")}
        offered = {"resolution": self.resolution, "keep_checkpoints": 1}
        config = build(Stage2Config, needed, offered, _without_lord(options) if lord is None else options)
        return run.step("train", lambda: run_stage2(config))

    def draw(
        self, run: CellRun, prompt: str, lora: Path, options: Mapping[str, Any], lord: Path | None = None
    ) -> Result:
        """Pictures, from the same starting noise in every condition."""
        needed = {"model": self.model, "prompt": prompt, "lora": lora, "lord": lord}
        needed |= self._run(run.folder / GENERATED, "noise")
        usable = _without_lord(options) if lord is None else options
        config = build(GenerateConfig, needed, {"resolution": self.resolution}, usable)
        return run.step("generate", lambda: run_generate(config))

    def evaluate(self, run: CellRun, name: str, options: Mapping[str, Any]) -> Result:
        """The summary of an evaluation, in ``metrics/name``."""
        # The spread that counts is the one over replicates.
        offered = {"model": self.model, "resolution": self.resolution, "resamples": 0, "cache_dir": self.cache}
        config = build(EvaluateConfig, self._run(run.folder / "metrics" / name, "measure"), offered, options)
        return run.step("measure", lambda: run_evaluate(config))

    def _run(self, out: Path, kind: str) -> dict[str, Any]:
        """What every run folder of a cell is given. One begun by an interrupted session goes on."""
        if out.is_dir() and not (out / "config.yaml").exists():
            # Killed in its first moments: no run yet, but files that a run would refuse to write beside.
            shutil.rmtree(out)
        common = {"device": self.device, "dtype": self.dtype, "resume": True}
        return {"out": out, "seed": derive_seed(*self.parts, kind), **common}


def _without_lord(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if not name.startswith("lord_")}
