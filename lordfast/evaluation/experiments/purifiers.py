"""``lordfast experiment purifiers``: how strong is an attack, and how much of it does a purifier undo?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lordfast.attacks.budget import parse_budget
from lordfast.diffusion import load_model
from lordfast.evaluation.experiments.changes import Changes
from lordfast.evaluation.experiments.choices import attack_class, parse_options, purifier_class
from lordfast.evaluation.experiments.conditions import Condition, collect, list_cells, list_conditions
from lordfast.evaluation.experiments.effects import table_rows
from lordfast.evaluation.experiments.effects_chart import write_chart
from lordfast.evaluation.experiments.effects_table import to_csv, to_markdown
from lordfast.evaluation.experiments.grid import Status
from lordfast.evaluation.experiments.page import check_page, fill_page
from lordfast.evaluation.experiments.start import GridConfig, check_features, compute, open_grid, overview
from lordfast.evaluation.experiments.steps import RESERVED
from lordfast.evaluation.experiments.subjects import Replicate, list_subjects, replicates
from lordfast.files import write_atomic
from lordfast.training.config import check_choices
from lordfast.training.run import write_json

COMMAND = "experiment purifiers"


@dataclass(kw_only=True)
class PurifiersConfig(GridConfig):
    """Attack pictures at several budgets, purify them, train a plain LoRA on the result, and measure what it draws.

    A replicate is an identity and a seed. In each, a LoRA is trained on the clean pictures, on the attacked ones at
    every budget, and on the attacked ones after every purifier; what it draws is measured against fresh pictures of the
    same identity. table.md in the run folder has means over replicates with intervals, table.csv and results.json have
    all numbers, chart.png shows them.

    Started again with the same --out, it goes on where it was; started several times at once, the processes share the
    work. Set OMP_NUM_THREADS so that together they use no more cores than there are.
    """

    model: str = "demo"
    """A diffusers folder, a hub id, or demo."""
    data: Path | None = None
    """Folder with a sub-folder of images per identity; without it, people are drawn, as the model demo knows them."""
    landscape: bool = False
    """Draw places instead of people."""
    prompt: str | None = None
    """Instance prompt with a rare token; default: "a photo of a sks person", or landscape."""
    identities: int = 3
    """How many people or places; with --data its first sub-folders."""
    seeds: int = 2
    """Replicates of each identity; each has training pictures, an attack and a training of its own."""
    images: int = 12
    """Pictures that are attacked and trained on."""
    reference: int = 256
    """Fresh pictures of the same identity to measure against; with --data, at most what is left."""
    attack: str = "ace"
    """Which attack."""
    attack_options: tuple[str, ...] = ()
    """Its options as NAME=VALUE words, such as attack-steps=40."""
    eps: tuple[str, ...] = ("4/255", "8/255", "16/255")
    """Budgets in [0, 1] pixels."""
    purifiers: tuple[str, ...] = (
        "jpeg",
        "gaussian-noise",
        "blur",
        "resize",
        "tv",
        "vae-roundtrip",
        "diffpure",
        "gridpure",
        "impress",
        "noisy-upscale",
    )
    """Which purifiers."""
    purifier_options: tuple[str, ...] = ()
    """Their options as PURIFIER.NAME=VALUE words, such as jpeg.quality=50."""
    purify_eps: tuple[str, ...] = ()
    """Those of --eps whose pictures are purified; default: the last."""
    purify_clean: bool = False
    """Purify clean pictures too: what a purifier itself costs."""
    stage2_steps: int = 150
    """Optimiser steps of the LoRA."""
    lr: float = 2e-3
    """Its learning rate."""
    rank: int = 4
    """Its rank."""
    batch_size: int = 4
    """Pictures per training step."""
    generated: int = 24
    """Pictures that each LoRA draws."""
    sampler_steps: int = 20
    """Sampler steps of each."""
    guidance: float = 3.0
    """Classifier-free guidance scale."""
    features: tuple[str, ...] = ("vae", "lordfast.demo.classifier:load_classifier")
    """What the distances compare, as --features of lordfast evaluate. The demo's classifier is for drawn pictures."""
    resolution: int | None = None
    """Side in pixels; the model's own when left out."""

    @property
    def purified_eps(self) -> tuple[str, ...]:
        return self.purify_eps or self.eps[-1:]

    def options_of(self, purifier: str) -> list[str]:
        """The NAME=VALUE words of one purifier."""
        start = f"{purifier}."
        return [word.removeprefix(start) for word in self.purifier_options if word.startswith(start)]


def check(config: PurifiersConfig) -> None:
    """Raise ValueError for settings that no experiment can have."""
    check_choices(config)
    least = {"identities": 1, "seeds": 1, "images": 1, "reference": 2, "stage2_steps": 1, "rank": 1, "batch_size": 1}
    for name, low in {**least, "generated": 2, "sampler_steps": 1}.items():
        if getattr(config, name) < low:
            raise ValueError(f"{name}: expected at least {low}, got {getattr(config, name)}")
    for name in ("lr", "guidance"):
        if not (math.isfinite(getattr(config, name)) and getattr(config, name) >= 0):
            raise ValueError(f"{name}: expected a finite number, 0 or more, got {getattr(config, name)}")
    for name in ("eps", "purify_eps", "purifiers", "features"):
        values = getattr(config, name)
        if len(set(values)) != len(values) or (not values and name in ("eps", "features")):
            raise ValueError(f"{name}: expected different values, at least one, got {', '.join(values) or 'none'}")
    for eps in config.eps:
        parse_budget(eps)
    unknown = [eps for eps in config.purify_eps if eps not in config.eps]
    if unknown:
        raise ValueError(f"purify_eps: expected values of eps ({', '.join(config.eps)}), got {unknown[0]}")
    parse_options(config.attack_options, attack_class(config.attack), "attack_options", RESERVED)
    for name in config.purifiers:
        parse_options(config.options_of(name), purifier_class(name), f"purifier_options: {name}", RESERVED)
    for word in config.purifier_options:
        if word.partition(".")[0] not in config.purifiers:
            raise ValueError(f"purifier_options: expected words PURIFIER.NAME=VALUE, got {word!r}")
    if config.data is None and config.model != "demo":
        raise ValueError(f"data: pictures are drawn for the model demo only; {config.model} needs a folder of images")
    if config.data is not None and config.landscape:
        raise ValueError("landscape: places are drawn, which --data replaces; expected one of the two")
    if config.page is not None:
        check_page(config.page)


def run_purifiers(config: PurifiersConfig) -> dict[str, Any]:
    """Compute what is missing in ``config.out`` and write the tables; returns what results.json holds.

    Failed cells don't stop the others; ``failed`` in the result names them.

    Raises:
        ValueError, OSError: settings, data, a model or features that can't be used, or a folder that holds an
            experiment with other settings; nothing is written then.
        Interrupted: on Ctrl-C, with the tables of what is there.
    """
    check(config)
    subjects = {} if config.data is None else list_subjects(config.data, config.identities, config.images)
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    side = model.check_resolution(config.resolution)
    check_features(config.features, model, side)
    labels = list(subjects) or [str(number) for number in range(config.identities)]
    repetitions = replicates(config.identities, config.seeds, labels, config.seed)
    conditions = list_conditions(config)
    cells = list_cells(config, repetitions, subjects, side)
    run, grid = open_grid(config, COMMAND, cells)

    changes = Changes(grid.folder)

    def write(status: Status) -> dict[str, Any]:
        results = summarise(config, conditions, repetitions, status, changes)
        write_json(run.path / "results.json", results)
        write_atomic(run.path / "table.md", to_markdown(results))
        write_atomic(run.path / "table.csv", to_csv(results))
        return results

    def finish(results: dict[str, Any]) -> None:
        write_chart(results, run.path / "chart.png")
        if config.page is not None:
            fill_page(config.page, to_markdown(results))

    return compute(config, run, grid, write, finish)


def summarise(
    config: PurifiersConfig,
    conditions: list[Condition],
    repetitions: list[Replicate],
    status: Status,
    changes: Changes,
) -> dict[str, Any]:
    """What results.json holds of a grid that may be half finished."""
    found = collect(conditions, repetitions, status.done, changes)
    return {
        "experiment": "purifiers",
        **overview(status),
        "model": config.model,
        "attack": config.attack,
        "identities": config.identities,
        "seeds": config.seeds,
        "replicates": len(repetitions),
        "rows": table_rows(conditions, found, config.features),
    }
