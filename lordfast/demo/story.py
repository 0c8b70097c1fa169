"""The whole story on the embedded model: attack, Stage 2 with and without LoRD, generate, measure, report.

It only chains the functions behind the other commands; each step leaves an ordinary run folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lordfast.attacks.run import run_attack
from lordfast.data import DrawnSubject, make_faces, make_landscapes
from lordfast.data.procedural import write_folder_once
from lordfast.defense.stage1 import run_stage1
from lordfast.demo import recipes
from lordfast.demo.measures import auroc_of, mean_over, over_seeds, subject_measures
from lordfast.demo.methods import METHODS, TRAINED, method_title
from lordfast.demo.picture import draw_picture
from lordfast.demo.report import demo_page
from lordfast.diffusion.resolve import DEMO_MODEL
from lordfast.evaluation.evaluate import run_evaluate
from lordfast.report import write_page
from lordfast.training.config import RunConfig
from lordfast.training.generate import run_generate
from lordfast.training.progress import console
from lordfast.training.run import RunFolder
from lordfast.training.seeds import derive_seed
from lordfast.training.stage2 import run_stage2

SHIPPED_LORD = DEMO_MODEL / "lord"


@dataclass(kw_only=True)
class DemoConfig(RunConfig):
    """Attack a few images, train with and without LoRD, generate, and measure: on the embedded model, offline.

    A person is drawn; their pictures are attacked; LoRAs are trained on the clean and on the attacked pictures, on top
    of a LoRD that was trained on other people and without it; each draws new pictures, which are measured against
    fresh clean ones. report.html in the run folder shows all of it.
    """

    out: Path = Path("lordfast-demo")
    """Run folder."""
    quick: bool = False
    """A minute instead of several: fewer images and steps. It shows that everything works, not how well."""
    landscape: bool = False
    """A place instead of a person."""
    identity: int | None = None
    """Number of the person or place to draw; each seed draws its own when left out."""
    seeds: int = 1
    """Tell the story this often, from --seed on, and report means with error bars."""
    train_lord: bool = False
    """Train the LoRD on the spot, for a shorter time than the one that comes with the model was trained."""


def subject_of(config: DemoConfig, seed: int) -> DrawnSubject:
    """Who or what the pictures of one seed show."""
    number = config.identity if config.identity is not None else derive_seed(seed, "identity")
    return DrawnSubject.of(number, landscape=config.landscape)


class _Teller:
    """Says what is being done, times it, and logs it."""

    def __init__(self, run: RunFolder, steps: int) -> None:
        self._run, self._steps = run, steps
        self.seconds: dict[str, float] = {}

    def __call__(self, title: str, work: Callable[[Any], dict[str, Any]], config: Any) -> dict[str, Any]:
        started = time.perf_counter()
        number = len(self.seconds) + 1
        console.print(f"[bold][{number}/{self._steps}] {title}[/]", highlight=False)
        result = work(config)
        self.seconds[title] = round(time.perf_counter() - started, 2)
        self._run.log({"step": number, "title": title, "seconds": self.seconds[title]})
        return result


def check(config: DemoConfig) -> None:
    """Raise ValueError for settings no demo can have."""
    if config.seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {config.seeds}")
    if config.identity is not None and config.identity < 0:
        raise ValueError(f"identity: expected a number >= 0, got {config.identity}")


def seed_folder(out: Path, seed: int) -> Path:
    """Where the story of one seed lies."""
    return out / f"seed-{seed}"


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Run every step into ``config.out``; returns what summary.json holds. Finished steps are kept when resumed.

    Raises:
        ValueError: settings out of range, or a run folder that holds something else.
        Interrupted: on Ctrl-C; --resume goes on.
    """
    check(config)
    run = RunFolder.open(config, "demo")
    finished = run.summary()
    if finished is not None:
        return finished
    run.rewind(0)
    scale = recipes.QUICK if config.quick else recipes.FULL
    seeds = list(range(config.seed, config.seed + config.seeds))
    tell = _Teller(run, config.train_lord + len(seeds) * (3 + 3 * len(METHODS) + len(TRAINED)))
    common = {"device": config.device, "dtype": config.dtype, "resume": config.resume}
    lord = SHIPPED_LORD
    if config.train_lord:
        lord = run.path / "stage1"
        others = run.path / "others"
        draw = make_landscapes if config.landscape else make_faces
        write_folder_once(others, lambda: draw(scale.others, derive_seed(config.seed, "others")))
        training = {**common, "seed": config.seed, "cache_dir": run.path / "cache"}
        stage1 = recipes.stage1(lord, others, scale, training)
        tell("Stage 1: LoRD on other pictures, clean and perturbed", run_stage1, stage1)
    stories = {}
    for seed in seeds:
        prefix = f"seed {seed}: " if len(seeds) > 1 else ""
        stories[seed] = _tell_one(config, seed, lord, scale, {**common, "seed": seed}, tell, prefix)
    summary = {
        "quick": config.quick,
        "landscape": config.landscape,
        "identity": config.identity,
        "lord": "trained here" if config.train_lord else "shipped with the model",
        "seeds": seeds,
        "methods": over_seeds([story["methods"] for story in stories.values()]),
        "auroc": mean_over([auroc_of(story["detection"]) for story in stories.values()]),
        "stories": {str(seed): story for seed, story in stories.items()},
        "seconds": tell.seconds,
    }
    draw_picture([seed_folder(run.path, seed) for seed in seeds], run.path / "result.png")
    write_page(demo_page(run.path, summary), run.path / "report.html")
    return run.finish(summary)


def _tell_one(
    config: DemoConfig,
    seed: int,
    lord: Path,
    scale: recipes.Scale,
    common: dict[str, Any],
    tell: _Teller,
    prefix: str,
) -> dict[str, Any]:
    out = seed_folder(config.out, seed)
    clean, reference, attacked = out / "data" / "clean", out / "data" / "reference", out / "attacked"
    subject = subject_of(config, seed)
    prompt = subject.prompt
    write_folder_once(clean, lambda: subject.draw(scale.images, derive_seed(seed, "clean")))
    write_folder_once(reference, lambda: subject.draw(scale.reference, derive_seed(seed, "reference")))
    training = {**common, "cache_dir": config.out / "cache"}
    # Picture i starts from seed + i: with 0, 1, 2 as seeds, stories would share nearly all of their noise.
    noise = {**common, "seed": derive_seed(seed, "noise")}
    found: dict[str, Any] = {"prompt": prompt, "stage2": {}, "methods": {}, "warnings": []}
    attack = recipes.attack(attacked, clean, prompt, scale, training)
    found["attack"] = tell(f"{prefix}attack the pictures", lambda job: run_attack("pgd", job), attack)
    attributes = subject.draw(1, 0)[0].attributes
    for name, method in METHODS.items():
        title = method_title(name)
        data, under = (attacked if method.attacked else clean), (lord if method.with_lord else None)
        lora = out / "stage2" / (method.lora or name)
        if name in TRAINED:
            job = recipes.stage2(lora, data, prompt, under, scale, training)
            found["stage2"][name] = tell(f"{prefix}train {title}", run_stage2, job)
        stays = under if method.in_sampling else None
        drawn = recipes.generation(out / "generated" / name, prompt, stays, lora, scale, noise)
        tell(f"{prefix}generate: {title}", run_generate, drawn)
        distance = recipes.distance(out / "metrics" / name, drawn.out, reference, common)
        measured = tell(f"{prefix}measure: {title}", run_evaluate, distance)
        found["warnings"] += measured["warnings"]
        denoising = recipes.denoising(out / "denoising" / name, drawn.out, prompt, common)
        denoised = tell(f"{prefix}denoise: {title}", run_evaluate, denoising)
        found["methods"][name] = subject_measures(measured, denoised, drawn.out, attributes, seed)
    damage = recipes.damage(out / "metrics" / "attack", attacked, clean, common)
    found["damage"] = tell(f"{prefix}measure the attack", run_evaluate, damage)
    detection = recipes.detection(out / "metrics" / "lambda", lord, clean, attacked, prompt, common)
    found["detection"] = tell(f"{prefix}read lambda", run_evaluate, detection)["detection"]
    return found
