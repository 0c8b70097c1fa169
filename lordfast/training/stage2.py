"""Stage 2: a DreamBooth LoRA on instance images that may be attacked, on top of a frozen LoRD or without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lordfast.data import image_grid, list_images, save_png
from lordfast.diffusion import LatentDiffusion, TensorCache, load_model
from lordfast.diffusion.sampling import generate
from lordfast.training.examples import ImageOptions, LatentBatches, LatentStore, TextStore, WithPrior, read_images
from lordfast.training.lora import LORA_NAME, LoraObjective, add_lora
from lordfast.training.loop import TrainingConfig, check_training, make_accelerator, train
from lordfast.training.run import RunFolder
from lordfast.training.seeds import derive_seed


@dataclass(kw_only=True)
class Stage2Config(ImageOptions, TrainingConfig):
    """Train a DreamBooth LoRA on a folder of images, with the LoRD of stage1 frozen underneath or without it."""

    model: str
    """A diffusers folder, a hub id, or demo."""
    instance_data: Path
    """Folder of images of the subject: clean, attacked, or both."""
    instance_prompt: str
    """The prompt of every instance image, with a rare token: "a photo of a sks person"."""
    lord: Path | None = None
    """The run folder of lordfast stage1; its LoRD stays frozen and active."""
    rank: int = 4
    """Rank r'' of the LoRA."""
    lora_alpha: float | None = None
    """alpha''; equal to the rank when left out."""
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Linear layers of the UNet that get a LoRA."""
    latent_sample: bool = False
    """Sample the VAE's posterior at each step instead of taking its mean."""
    train_text_encoder: bool = False
    """Also train a LoRA in the text encoder."""
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
    if config.rank < 1:
        raise ValueError(f"rank: expected at least 1, got {config.rank}")
    if config.prior_preservation and not config.class_prompt:
        raise ValueError('class_prompt: prior preservation needs one, such as "a photo of a person"; none came')
    if config.validation_every < 1:
        raise ValueError(f"validation_every: expected at least 1, got {config.validation_every}")


def run_stage2(config: Stage2Config) -> dict[str, Any]:
    """Train the LoRA and save it as ``pytorch_lora_weights.safetensors`` in ``config.out``.

    Returns:
        What summary.json holds: steps, loss, seconds, number of examples.

    Raises:
        ValueError: bad settings or data; nothing is written then.
        Interrupted: on Ctrl-C, with a checkpoint saved.
    """
    check(config)
    list_images(config.instance_data)
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    # Everything that bad input can break comes before the run folder is claimed.
    instance = _read(model, config, config.instance_data)
    if config.lord is not None:
        from lordfast.adapter import load_lord

        load_lord(model.unet, config.lord)
    accelerator = make_accelerator(config.dtype, model.device)
    with accelerator.main_process_first():
        run = RunFolder.open(config, "stage2", write=accelerator.is_main_process)
    finished = run.summary()
    if finished is not None:
        return finished
    cache = TensorCache(config.cache_dir)
    batches: LatentBatches | WithPrior = _batches(model, config, cache, instance, config.instance_prompt)
    if config.prior_preservation:
        prior = _read(model, config, _class_images(model, config, run, accelerator))
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
    objective = LoraObjective(
        model,
        prior_weight=config.prior_weight if config.prior_preservation else None,
        text_encoder_lr=config.text_encoder_lr if config.train_text_encoder else None,
    )
    result = train(
        objective,
        batches,
        config,
        accelerator,
        run=run,
        description="stage 2",
        on_step=_validation(model, config, run),
    )
    if accelerator.is_main_process:
        save(model, run.path, config)
    accelerator.wait_for_everyone()
    return run.finish({**result, "examples": len(batches), "lord": str(config.lord) if config.lord else None})


def save(model: LatentDiffusion, folder: Path, config: Stage2Config) -> None:
    """Write the trained LoRA so that plain diffusers (or a kohya reader) loads it without lordfast."""
    from lordfast.adapter import save_lora

    text_encoder = model.text_encoder if config.train_text_encoder else None
    save_lora(model.unet, folder, LORA_NAME, text_encoder=text_encoder, format=config.format)


def _read(model: LatentDiffusion, config: Stage2Config, folder: Path) -> list[np.ndarray]:
    side = model.check_resolution(config.resolution)
    return [image for _, image in read_images(folder, config, side, seed=config.seed, captions="ignore")]


def _batches(
    model: LatentDiffusion, config: Stage2Config, cache: TensorCache, images: list[np.ndarray], prompt: str
) -> LatentBatches:
    store = LatentStore(model, images, cache)
    text = TextStore(model, [prompt] * len(images), cache, trained=config.train_text_encoder)
    return LatentBatches(store, text, model.timesteps, config.latent_sample)


def _class_images(model: LatentDiffusion, config: Stage2Config, run: RunFolder, accelerator: Any) -> Path:
    folder = config.class_data or run.path / "class_images"
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        have = len(list_images(folder)) if any(folder.iterdir()) else 0
        for start in range(have, config.class_images, 8):
            prompts = [config.class_prompt or ""] * min(8, config.class_images - start)
            seed = derive_seed(config.seed, "class", start) % 2**31
            made = generate(model, prompts, seed=seed, resolution=config.resolution)
            for offset, image in enumerate(made):
                save_png(image, folder / f"class-{start + offset:04d}.png")
    accelerator.wait_for_everyone()
    return folder


def _validation(model: LatentDiffusion, config: Stage2Config, run: RunFolder) -> Callable[[int, bool], None] | None:
    if config.validation_prompt is None or not run.write:
        return None
    prompt = config.validation_prompt

    def draw(step: int, last: bool) -> None:
        if last or step % config.validation_every == 0:
            seed = derive_seed(config.seed, "validation") % 2**31
            side = config.resolution
            made = generate(model, [prompt] * config.validation_images, seed=seed, resolution=side)
            save_png(image_grid([made]), run.path / "validation" / f"step-{step:06d}.png")

    return draw
