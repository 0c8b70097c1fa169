"""Stage 2: a DreamBooth LoRA on instance images that may be attacked, on top of a frozen LoRD or without one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lordfast.data import ImageRecord, NoImagesError, image_grid, save_png
from lordfast.diffusion import LatentDiffusion, TensorCache, resolve_device
from lordfast.diffusion.sampling import generate
from lordfast.training.examples import (
    ImageOptions,
    LatentBatches,
    LatentStore,
    TextStore,
    WithPrior,
    list_folder,
    read_images,
    report_cut,
)
from lordfast.training.fsdp import FsdpOptions, shard_base, wants_fsdp
from lordfast.training.generate import draw_missing
from lordfast.training.inputs import CLASS_IMAGE, class_folder
from lordfast.training.loop import Batches, TrainingConfig, check_training, train
from lordfast.training.lora import LORA_NAME, TARGETS, LoraObjective, add_lora, check_targets
from lordfast.training.lord import LordOptions, load_frozen_lord, parse_lambda
from lordfast.training.memory.auto import recompute_if_needed
from lordfast.training.placement import Placed, PlacementOptions, check_placement, load_placed
from lordfast.training.processes import make_accelerator, on_main, open_run
from lordfast.training.run import RunFolder
from lordfast.training.seeds import derive_seed
from lordfast.training.speed import SpeedOptions, speed_up


@dataclass(kw_only=True)
class Stage2Config(ImageOptions, LordOptions, SpeedOptions, PlacementOptions, FsdpOptions, TrainingConfig):
    """Train a DreamBooth LoRA on a folder of images, with the LoRD of stage1 frozen underneath or without it."""

    model: str
    """A diffusers folder, a hub id, or demo."""
    instance_data: Path
    """Folder of images of the subject: clean, attacked, or both."""
    instance_prompt: str
    """The prompt of every instance image, with a rare token: "a photo of a sks person"."""
    rank: int = 4
    """Rank r'' of the LoRA."""
    lora_alpha: float | None = None
    """alpha''; equal to the rank when left out."""
    target_modules: tuple[str, ...] = TARGETS
    """Linear layers of the denoiser that get a LoRA."""
    latent_sample: bool = False
    """Sample the VAE's posterior at each step instead of taking its mean."""
    train_text_encoder: bool = False
    """Also train a LoRA in the text encoder; in both CLIP encoders of SDXL and SD 3, whose T5 stays as it is."""
    text_encoder_lr: float = 5e-5
    """Its learning rate."""
    prior_preservation: bool = False
    """Keep the class: train on class images too. Missing ones are drawn from the model."""
    class_prompt: str | None = None
    """Prompt of the class, "a photo of a person"; needed with --prior-preservation."""
    class_data: Path | None = None
    """Folder of class images; default: class_images in the run folder."""
    class_images: int = 100
    """How many class images there should be."""
    prior_weight: float = 1.0
    """Weight of the class images' loss."""
    validation_prompt: str | None = None
    """Draw a grid from this prompt as training goes on."""
    validation_every: int = 100
    """Steps between validation grids."""
    validation_images: int = 4
    """Images in a validation grid."""
    format: Literal["diffusers", "kohya"] = "diffusers"
    """Keys of the saved LoRA: diffusers, or kohya for other user interfaces."""
    cache_dir: Path | None = None
    """Where encoded latents and texts are kept; default: $LORDFAST_CACHE or ~/.cache/lordfast."""


PRESETS: dict[str, dict[str, Any]] = {
    # mist-v2's own evaluation, which the paper follows: rank 4, batch 1, lr 1e-4, prior 1.0 with 100 class images,
    # text encoder at 5e-5.
    "paper": {
        "rank": 4,
        "batch_size": 1,
        "steps": 1000,
        "lr": 1e-4,
        "prior_preservation": True,
        "class_images": 100,
        "prior_weight": 1.0,
        "train_text_encoder": True,
        "text_encoder_lr": 5e-5,
    },
}


def check(config: Stage2Config) -> None:
    """Raise ValueError for a config that can't be run."""
    check_training(config)
    for name in ("rank", "class_images", "validation_every", "validation_images"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")
    for name in ("text_encoder_lr", "prior_weight"):
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name}: expected 0 or more, got {getattr(config, name)}")
    parse_lambda(config)
    if config.lora_alpha is not None and not config.lora_alpha > 0:
        raise ValueError(f"lora_alpha: expected more than 0, got {config.lora_alpha}")
    if config.prior_preservation and not config.class_prompt:
        raise ValueError('class_prompt: prior preservation needs one, such as "a photo of a person"; none came')


def run_stage2(config: Stage2Config) -> dict[str, Any]:
    """Train the LoRA and save it as ``pytorch_lora_weights.safetensors`` in ``config.out``.

    Returns:
        What summary.json holds: steps, loss, seconds, number of examples.

    Raises:
        ValueError, OSError: bad settings or data; nothing is written then.
        Interrupted: on Ctrl-C, with a checkpoint saved.
    """
    check(config)
    instance = list_folder(config.instance_data, "instance_data", captions="ignore", skip_bad=config.skip_bad)
    accelerator = make_accelerator(config.dtype, resolve_device(config.device))
    sharded = wants_fsdp(config, accelerator)
    finished = on_main(accelerator, lambda: RunFolder.inspect(config, "stage2"))
    if finished is not None:
        return finished
    check_placement(
        config,
        compiled=config.compile,
        optimized=config.optimize,
        processes=accelerator.num_processes,
        sharded=sharded,
    )
    # A text encoder that is trained is at work all the time.
    stay = ("text",) if config.train_text_encoder else ()
    placed = load_placed(config.model, config, accelerator.device, config.dtype, stay=stay)
    model = placed.model
    speed_up(model, config)
    # Everything that bad input can break comes before the run folder is claimed.
    images = _read(model, config, instance)
    report_cut(model, [config.instance_prompt, config.class_prompt, config.validation_prompt], "prompts")
    if config.prior_preservation and config.class_data is not None:
        _read(model, config, existing_images(config.class_data, config.skip_bad))
    model.check_lora_format(config.format, check_targets(model, config.target_modules))
    load_frozen_lord(model, config)
    run = open_run(config, "stage2", accelerator)
    cache = TensorCache(config.cache_dir)
    batches: Batches = _batches(model, config, cache, images, config.instance_prompt)
    if config.prior_preservation:
        folder = class_folder(run.path, config.class_data)
        on_main(accelerator, lambda: draw_class_images(model, config, folder))
        # What was drawn is an input from now on.
        run.record_inputs(config)
        records = list_folder(folder, "class_data", captions="ignore", skip_bad=config.skip_bad)
        prior = _read(model, config, records)
        batches = WithPrior(batches, _batches(model, config, cache, prior, config.class_prompt or ""))
    add_lora(
        model,
        rank=config.rank,
        alpha=config.lora_alpha if config.lora_alpha is not None else config.rank,
        target_modules=config.target_modules,
        text_encoder=config.train_text_encoder,
        seed=config.seed,
    )
    if config.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    placed.settle()
    recompute_if_needed(model, config, "stage2", model.check_resolution(config.resolution))
    objective = LoraObjective(
        model,
        prior_weight=config.prior_weight if config.prior_preservation else None,
        text_encoder_lr=config.text_encoder_lr if config.train_text_encoder else None,
    )
    result = train(
        objective,
        batches,
        config,
        shard_base(model.unet, accelerator) if sharded else accelerator,
        run=run,
        description="stage 2",
        on_step=_validation(placed, config, run, everywhere=sharded),
    )
    if accelerator.is_main_process:
        save(model, run.path, config)
    accelerator.wait_for_everyone()
    return run.finish({**result, "examples": len(batches), "lord": str(config.lord) if config.lord else None})


def save(model: LatentDiffusion, folder: Path, config: Stage2Config) -> None:
    """Write the trained LoRA so that plain diffusers (or a kohya reader) loads it without lordfast."""
    model.save_lora(folder, LORA_NAME, text=config.train_text_encoder, format=config.format)


def _read(model: LatentDiffusion, config: Stage2Config, records: Sequence[ImageRecord]) -> list[np.ndarray]:
    side = model.check_resolution(config.resolution)
    return [image for _, image in read_images(records, config, side, seed=config.seed)]


def _batches(
    model: LatentDiffusion, config: Stage2Config, cache: TensorCache, images: list[np.ndarray], prompt: str
) -> LatentBatches:
    store = LatentStore.of(model, images, cache)
    text = TextStore(model, [prompt] * len(images), cache, trained=config.train_text_encoder)
    return LatentBatches(store, text, model.timesteps, config.latent_sample)


def existing_images(folder: Path, skip_bad: bool = False) -> list[ImageRecord]:
    """The images of a folder that may be empty or not there yet.

    Raises:
        NotADirectoryError: it is a file.
        ValueError: images of formats that are not read, without `skip_bad`.
    """
    try:
        return list_folder(folder, "class_data", captions="ignore", skip_bad=skip_bad)
    except (FileNotFoundError, NoImagesError):
        return []


def draw_class_images(model: LatentDiffusion, config: Stage2Config, folder: Path) -> None:
    """Fill `folder` up to ``config.class_images`` with what the model draws from the class prompt.

    A LoRD that is loaded draws along: the images show what the model knows before the LoRA changes it.
    """
    brought = [r for r in existing_images(folder, config.skip_bad) if not CLASS_IMAGE.fullmatch(r.name)]
    paths = [folder / f"class-{i:04d}.png" for i in range(config.class_images - len(brought))]
    draw_missing(
        model,
        config.class_prompt or "",
        paths,
        seed=derive_seed(config.seed, "class") % 2**31,
        batch_size=8,
        description="class images",
        resolution=config.resolution,
    )


def _validation(
    placed: Placed, config: Stage2Config, run: RunFolder, everywhere: bool
) -> Callable[[int, bool], None] | None:
    # A sharded model computes only where all processes do.
    if config.validation_prompt is None or not (run.write or everywhere):
        return None
    prompt = config.validation_prompt

    def draw(step: int, last: bool) -> None:
        if last or step % config.validation_every == 0:
            seed = derive_seed(config.seed, "validation") % 2**31
            side = config.resolution
            made = generate(placed.model, [prompt] * config.validation_images, seed=seed, resolution=side)
            placed.settle()
            if run.write:
                save_png(image_grid([made]), run.path / "validation" / f"step-{step:06d}.png")

    return draw
