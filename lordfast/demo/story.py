"""The whole story on the embedded model: attack, Stage 1, Stage 2 with and without LoRD, generate, measure.

It only chains the functions behind the other commands; each step leaves an ordinary run folder.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lordfast.attacks.folder import AttackConfig, run_attack
from lordfast.data import image_grid, list_images, load_image, save_png
from lordfast.data.faces import draw_identity
from lordfast.data.procedural import make_faces, write_folder
from lordfast.defense.stage1 import Stage1Config, run_stage1
from lordfast.evaluation.evaluate import EvaluateConfig, run_evaluate
from lordfast.training.config import RunConfig
from lordfast.training.generate import GenerateConfig, run_generate
from lordfast.training.progress import console
from lordfast.training.run import RunFolder
from lordfast.training.seeds import derive_seed
from lordfast.training.stage2 import Stage2Config, run_stage2

PROMPT = "a photo of a sks person"


@dataclass(kw_only=True)
class DemoConfig(RunConfig):
    """Attack a few images, train with and without LoRD, generate, and measure: on the embedded model, offline.

    One identity is drawn; its images are attacked; a LoRD is trained on other people (Stage 1); LoRAs are trained on
    the clean and on the attacked images, with the LoRD and without (Stage 2); each draws new pictures.
    """

    out: Path = Path("lordfast-demo")
    """Run folder."""
    quick: bool = False
    """A minute instead of several: fewer images and steps. It shows that everything works, not how well."""


@dataclass(frozen=True)
class _Scale:
    images: int
    attack_steps: int
    others: int
    stage1_attack_steps: int
    stage1_steps: int
    stage2_steps: int
    generated: int
    sampler_steps: int


QUICK = _Scale(
    images=6,
    attack_steps=10,
    others=16,
    stage1_attack_steps=4,
    stage1_steps=20,
    stage2_steps=30,
    generated=6,
    sampler_steps=10,
)
FULL = _Scale(
    images=12,
    attack_steps=40,
    others=96,
    stage1_attack_steps=10,
    stage1_steps=200,
    stage2_steps=150,
    generated=16,
    sampler_steps=25,
)

METHODS = {
    "clean-lora": ("clean", False),
    "clean-lord": ("clean", True),
    "attacked-lora": ("attacked", False),
    "attacked-lord": ("attacked", True),
}
"""Run name -> the instance images it is trained on, and whether the LoRD lies underneath."""


def method_title(name: str) -> str:
    """How a method of `METHODS` is called in pictures and tables."""
    images, with_lord = METHODS[name]
    return f"{'LoRD + LoRA' if with_lord else 'LoRA'}, {images} images"


def run_demo(config: DemoConfig) -> dict[str, Any]:
    """Run every step into ``config.out``; returns what summary.json holds. Finished steps are kept when resumed."""
    run = RunFolder.open(config, "demo")
    finished = run.summary()
    if finished is not None:
        return finished
    run.rewind(0)
    scale = QUICK if config.quick else FULL
    seconds: dict[str, float] = {}

    def timed(title: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        started = time.perf_counter()
        console.print(f"[bold]{title}[/]")
        result = work()
        seconds[title] = round(time.perf_counter() - started, 2)
        run.log({"step": len(seconds), "title": title, "seconds": seconds[title]})
        return result

    out = run.path
    clean, others = out / "data" / "clean", out / "data" / "others"
    _draw_data(clean, others, scale, config.seed)
    common: dict[str, Any] = {
        "seed": config.seed,
        "device": config.device,
        "dtype": config.dtype,
        "resume": config.resume,
    }
    training = {**common, "cache_dir": out / "cache"}
    attack = timed(
        "attack: PGD on the images of one person",
        lambda: run_attack("pgd", _attack_config(out / "attacked", clean, scale, training)),
    )
    stage1 = timed(
        "stage 1: LoRD on other people, clean and perturbed",
        lambda: run_stage1(_stage1_config(out / "stage1", others, scale, training)),
    )
    stage2, metrics = {}, {}
    for name, (images, with_lord) in METHODS.items():
        data = clean if images == "clean" else out / "attacked"
        lord = out / "stage1" if with_lord else None
        title = f"stage 2: {'LoRD + LoRA' if with_lord else 'plain LoRA'} on {images} images"
        stage2[name] = timed(
            title, _bind(run_stage2, _stage2_config(out / "stage2" / name, data, lord, scale, training))
        )
        drawn = _generate_config(out / "generated" / name, lord, out / "stage2" / name, scale, common)
        timed(f"generate: {method_title(name)}", _bind(run_generate, drawn))
        measured = _distance_config(out / "metrics" / name, drawn.out, clean, common)
        metrics[name] = timed(f"measure: {method_title(name)}", _bind(run_evaluate, measured))
    damage = timed(
        "measure: attack", _bind(run_evaluate, _pairs_config(out / "metrics" / "attack", clean, out, common))
    )
    detection = timed(
        "measure: lambda", _bind(run_evaluate, _lambda_config(out / "metrics" / "lambda", clean, out, common))
    )
    picture(out, scale.generated)
    summary = {
        "quick": config.quick,
        "attack": attack,
        "attack_damage": damage,
        "stage1": stage1,
        "stage2": stage2,
        "generated": metrics,
        "detection": detection,
        "seconds": seconds,
    }
    # Imported here: it brings matplotlib, which is slow to start and which bad input should not wait for.
    from lordfast.demo.report import demo_page
    from lordfast.report import write_page

    write_page(demo_page(out, summary), out / "report.html")
    return run.finish(summary)


def _bind(function: Callable[[Any], dict[str, Any]], config: Any) -> Callable[[], dict[str, Any]]:
    return lambda: function(config)


def _draw_data(clean: Path, others: Path, scale: _Scale, seed: int) -> None:
    if not (others / "done").exists():
        identity = draw_identity(np.random.default_rng(derive_seed(seed, "identity")))
        write_folder(make_faces(scale.images, derive_seed(seed, "clean"), identity), clean)
        write_folder(make_faces(scale.others, derive_seed(seed, "others")), others)
        (others / "done").touch()


def _attack_config(out: Path, clean: Path, scale: _Scale, common: dict[str, Any]) -> AttackConfig:
    # At 8 grey levels the attack hardly shows at this size; 16 is what the field calls strong.
    return AttackConfig(
        out=out,
        model="demo",
        images=clean,
        prompt=PROMPT,
        eps="16/255",
        step_size="2/255",
        attack_steps=scale.attack_steps,
        targeted=True,
        **common,
    )


def _stage1_config(out: Path, others: Path, scale: _Scale, common: dict[str, Any]) -> Stage1Config:
    return Stage1Config(
        out=out,
        model="demo",
        data=others,
        eps="16/255",
        step_size="4/255",
        attack_steps=scale.stage1_attack_steps,
        targeted=True,
        steps=scale.stage1_steps,
        batch_size=4,
        lr=5e-4,
        lambda_det=1.0,
        tensorboard=False,
        **common,
    )


def _stage2_config(out: Path, data: Path, lord: Path | None, scale: _Scale, common: dict[str, Any]) -> Stage2Config:
    return Stage2Config(
        out=out,
        model="demo",
        instance_data=data,
        instance_prompt=PROMPT,
        lord=lord,
        steps=scale.stage2_steps,
        batch_size=4,
        lr=2e-3,
        tensorboard=False,
        **common,
    )


def _generate_config(out: Path, lord: Path | None, lora: Path, scale: _Scale, common: dict[str, Any]) -> GenerateConfig:
    return GenerateConfig(
        out=out,
        model="demo",
        prompt=PROMPT,
        lord=lord,
        lora=lora,
        n=scale.generated,
        steps=scale.sampler_steps,
        guidance=3.0,
        **common,
    )


def _distance_config(out: Path, generated: Path, clean: Path, common: dict[str, Any]) -> EvaluateConfig:
    return EvaluateConfig(out=out, model="demo", generated=generated, reference=clean, **common)


def _pairs_config(out: Path, clean: Path, root: Path, common: dict[str, Any]) -> EvaluateConfig:
    return EvaluateConfig(out=out, model="demo", generated=root / "attacked", reference=clean, **common)


def _lambda_config(out: Path, clean: Path, root: Path, common: dict[str, Any]) -> EvaluateConfig:
    return EvaluateConfig(
        out=out, model="demo", lord=root / "stage1", clean=clean, attacked=root / "attacked", prompt=PROMPT, **common
    )


def picture(out: Path, columns: int) -> Path:
    """Write ``result.png``: clean, attacked, difference x 8, and what each method draws, a row each."""

    def row(folder: Path) -> list[np.ndarray]:
        return [load_image(record.path) for record in list_images(folder, captions="ignore")][:columns]

    clean, attacked = row(out / "data" / "clean"), row(out / "attacked")
    difference = [
        (128 + 8 * (b.astype(int) - a.astype(int))).clip(0, 255).astype(np.uint8)
        for a, b in zip(clean, attacked, strict=True)
    ]
    rows = {"clean images": clean, "attacked images": attacked, "difference x 8": difference}
    for name in METHODS:
        rows[method_title(name)] = row(out / "generated" / name)
    path = out / "result.png"
    save_png(image_grid(list(rows.values()), labels=list(rows), scale=2), path)
    return path
