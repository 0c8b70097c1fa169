"""Generate images with a model, a LoRD and a LoRA: Eq. 10, and the class images of prior preservation."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lordfast.data import image_grid, load_image, save_png
from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.diffusion.sampling import generate
from lordfast.training.config import RunConfig
from lordfast.training.interrupt import Interrupted, StopOnSignal
from lordfast.training.progress import progress
from lordfast.training.run import RunFolder


@dataclass(kw_only=True)
class GenerateConfig(RunConfig):
    """Draw images from a prompt, with a trained LoRD and LoRA or without."""

    model: str
    """A diffusers folder, a hub id, or demo."""
    prompt: str
    """What to draw, for instance "a photo of a sks person"."""
    lord: Path | None = None
    """The run folder of lordfast stage1, or any folder with a saved LoRD."""
    lora: Path | None = None
    """The run folder of lordfast stage2, or a LoRA file or folder in diffusers or kohya format."""
    n: int = 8
    """How many images."""
    negative_prompt: str = ""
    """What to stay away from."""
    steps: int = 25
    """Sampler steps."""
    guidance: float = 7.5
    """Classifier-free guidance scale; 1 turns it off."""
    sampler: Literal["ddim", "dpm++", "euler", "euler-a"] = "ddim"
    """Which sampler."""
    resolution: int | None = None
    """Side in pixels; the model's own when left out."""
    batch_size: int = 8
    """Images per forward; it does not change which images come out."""


def load_adapters(model: LatentDiffusion, lord: Path | None, lora: Path | None) -> None:
    """Load a frozen LoRD and then a LoRA into `model`.

    Raises:
        ValueError: a path holds no such weights, or weights of another model.
    """
    from lordfast.adapter import load_lord

    if lord is not None:
        load_lord(model.unet, lord)
    if lora is not None:
        from lordfast.diffusion.stable_diffusion import build_pipeline

        path = Path(lora)
        if path.is_dir():
            path = path / "pytorch_lora_weights.safetensors"
        if not path.is_file():
            raise ValueError(f"lora: {lora} holds no pytorch_lora_weights.safetensors; expected a stage2 run or a LoRA file")
        try:
            build_pipeline(model).load_lora_weights(path.parent, weight_name=path.name, adapter_name="lora")
        except (RuntimeError, KeyError, OSError) as error:
            raise ValueError(f"lora: {path} does not fit {model.name}: {error}") from error


def run_generate(config: GenerateConfig) -> dict[str, Any]:
    """Write ``0000.png`` ... and ``preview/grid.png`` into ``config.out``; finished images are kept when resumed."""
    if config.n < 1:
        raise ValueError(f"n: expected at least 1 image, got {config.n}")
    run = RunFolder.open(config, "generate")
    names = [f"{i:04d}.png" for i in range(config.n)]
    missing = [i for i, name in enumerate(names) if not (run.path / name).exists()]
    started = time.perf_counter()
    if missing:
        model = load_model(config.model, device=config.device, dtype=config.dtype)
        load_adapters(model, config.lord, config.lora)
        _draw(model, config, run.path, names, missing[0])
    pictures = [load_image(run.path / name) for name in names[:64]]
    save_png(image_grid([pictures[i : i + 8] for i in range(0, len(pictures), 8)]), run.path / "preview" / "grid.png")
    return run.finish({"images": config.n, "seconds": round(time.perf_counter() - started, 2)})


def _draw(model: LatentDiffusion, config: GenerateConfig, folder: Path, names: list[str], first: int) -> None:
    with StopOnSignal() as stop, progress("generating", config.n, start=first) as advance:
        for start in range(first, config.n, config.batch_size):
            chunk = names[start : start + config.batch_size]
            made = generate(
                model,
                [config.prompt] * len(chunk),
                seed=config.seed + start,
                steps=config.steps,
                guidance=config.guidance,
                sampler=config.sampler,
                negative_prompt=config.negative_prompt,
                resolution=config.resolution,
                batch_size=config.batch_size,
            )
            for name, image in zip(chunk, made, strict=True):
                save_png(image, folder / name)
            advance(len(chunk))
            if stop.requested and start + len(chunk) < config.n:
                raise Interrupted(f"after {start + len(chunk)} of {config.n} images")
