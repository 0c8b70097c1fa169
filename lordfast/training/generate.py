"""Generate images with a model, a LoRD and a LoRA: Eq. 10, and the class images of prior preservation."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lordfast.data import image_grid, load_image, save_png
from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.diffusion.sampling import generate
from lordfast.training.config import RunConfig, check_choices
from lordfast.training.examples import report_cut
from lordfast.training.interrupt import Interrupted, StopOnSignal
from lordfast.training.lora import LORA_NAME
from lordfast.training.lord import GATE, LordOptions, load_frozen_lord, parse_lambda
from lordfast.training.progress import progress
from lordfast.training.run import RunFolder
from lordfast.training.speed import SpeedOptions, speed_up


@dataclass(kw_only=True)
class GenerateConfig(LordOptions, SpeedOptions, RunConfig):
    """Draw images from a prompt, with a trained LoRD and LoRA or without."""

    model: str
    """A diffusers folder, a hub id, or demo."""
    prompt: str
    """What to draw, for instance "a photo of a sks person"."""
    lora: Path | None = None
    """The run folder of lordfast stage2, or a LoRA file or folder of diffusers, PEFT, kohya or LyCORIS (LoCon)."""
    n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 8
    """How many images."""
    negative_prompt: str = ""
    """What to stay away from."""
    steps: int = 25
    """Sampler steps."""
    guidance: float = 7.5
    """Classifier-free guidance scale; 1 turns it off."""
    sampler: Literal["ddim", "dpm++", "euler", "euler-a", "flow-euler"] | None = None
    """Which sampler: flow-euler for SD 3, any other for the rest. Left out, ddim or flow-euler."""
    resolution: int | None = None
    """Side in pixels; the model's own when left out."""
    batch_size: int = 8
    """Images per forward; it does not change which images come out."""


def load_adapters(model: LatentDiffusion, lord: Path | None, lora: Path | None, lord_lambda: str = GATE) -> None:
    """Load a frozen LoRD and then a LoRA into `model`.

    Args:
        lord_lambda: as in `LordOptions`.

    Raises:
        ValueError, FileNotFoundError: a path holds no such weights, or weights of another model.
    """
    from lordfast.adapter import load_lora

    load_frozen_lord(model, LordOptions(lord=lord, lord_lambda=lord_lambda))
    if lora is not None:
        try:
            load_lora(model, lora, LORA_NAME)
        except (ValueError, OSError) as error:
            raise ValueError(f"lora: {error}") from error


def draw_missing(
    model: LatentDiffusion,
    prompt: str,
    paths: Sequence[Path],
    *,
    seed: int,
    batch_size: int,
    description: str,
    **sampling: Any,
) -> None:
    """Draw image i from `seed` + i into ``paths[i]``, wherever that does not exist; `sampling` goes to `generate`.

    Batches have the same composition whatever is there already, so a resumed folder equals an uninterrupted one.

    Raises:
        Interrupted: SIGINT or SIGTERM; everything finished is saved.
    """
    batches = [range(start, min(start + batch_size, len(paths))) for start in range(0, len(paths), batch_size)]
    left = [batch for batch in batches if not all(paths[i].exists() for i in batch)]
    there = len(paths) - sum(map(len, left))
    with StopOnSignal() as stop, progress(description, len(paths), start=there) as advance:
        for batch in left:
            prompts = [prompt] * len(batch)
            made = generate(model, prompts, seed=seed + batch.start, batch_size=batch_size, **sampling)
            for i, image in zip(batch, made, strict=True):
                if not paths[i].exists():
                    save_png(image, paths[i])
            there += len(batch)
            advance(len(batch))
            if stop.requested and batch is not left[-1]:
                raise Interrupted(f"after {there} of {len(paths)} images")


def check(config: GenerateConfig) -> None:
    """Raise ValueError for a config that can't be run."""
    check_choices(config)
    parse_lambda(config)
    for name in ("n", "steps", "batch_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")
    if not math.isfinite(config.guidance):
        raise ValueError(f"guidance: expected a finite number, got {config.guidance}")


def run_generate(config: GenerateConfig) -> dict[str, Any]:
    """Write ``0000.png`` ... and ``preview/grid.png`` into ``config.out``; finished images are kept when resumed.

    Raises:
        ValueError, FileNotFoundError: bad settings, model or weights; nothing is written then.
        Interrupted: on Ctrl-C, with every finished image saved.
    """
    check(config)
    finished = RunFolder.inspect(config, "generate")
    if finished is not None:
        return finished
    started = time.perf_counter()
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    model.check_resolution(config.resolution)
    model.check_sampler(config.sampler)
    load_adapters(model, config.lord, config.lora, config.lord_lambda)
    speed_up(model, config)
    report_cut(model, [config.prompt, config.negative_prompt], "prompts")
    run = RunFolder.open(config, "generate")
    paths = [run.path / f"{i:04d}.png" for i in range(config.n)]
    draw_missing(
        model,
        config.prompt,
        paths,
        seed=config.seed,
        batch_size=config.batch_size,
        description="generating",
        steps=config.steps,
        guidance=config.guidance,
        sampler=config.sampler,
        negative_prompt=config.negative_prompt,
        resolution=config.resolution,
    )
    run.rewind(0)
    for i, path in enumerate(paths):
        run.log({"step": i + 1, "image": path.name, "seed": config.seed + i})
    pictures = [load_image(path) for path in paths[:64]]
    rows = [pictures[i : i + 8] for i in range(0, len(pictures), 8)]
    save_png(image_grid(rows, scale=max(1, 192 // len(pictures[0]))), run.path / "preview" / "grid.png")
    return run.finish({"images": config.n, "seconds": round(time.perf_counter() - started, 2)})
