"""Stage 1: perturb a folder of clean images, then train a LoRD on both (Eq. 6-8)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from lordfast.adapter import LordConfig, save_lord
from lordfast.attacks.folder import PgdOptions, attack_images
from lordfast.attacks.pgd import pgd_loss
from lordfast.data import ImageRecord, list_images, load_image
from lordfast.defense.objective import DefenseObjective, PairedBatches
from lordfast.diffusion import LatentDiffusion, TensorCache, load_model
from lordfast.training.examples import ImageOptions, LatentStore, TextStore, read_images
from lordfast.training.loop import TrainingConfig, check_training, make_accelerator, train
from lordfast.training.run import RunFolder
from lordfast.training.seeds import derive_seed

LORD_NAME = "lord"


@dataclass(kw_only=True)
class Stage1Config(ImageOptions, PgdOptions, TrainingConfig):
    """Train a LoRD on clean images and on their perturbed twins, which are made first."""

    model: str
    """A diffusers folder, a hub id, or demo."""
    data: Path
    """Folder of clean images with captions."""
    prompt: str | None = None
    """One caption for all images; else name.txt or metadata.jsonl."""
    rank: int = 4
    """Rank r of the LoRD."""
    lord_alpha: float = 32
    """alpha; the LoRD is scaled by alpha / r."""
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Linear layers of the UNet that get a LoRD."""
    gate_hidden: int = 16
    """Width H of the gate."""
    gate_activation: Literal["relu", "silu", "gelu"] = "silu"
    """Its activation."""
    gate_granularity: Literal["token", "sample"] = "token"
    """One lambda a token (Eq. 4 literally), or one a sample."""
    lambda_adv: float = 2.0
    """Weight of the perturbed images' loss (Eq. 7)."""
    lambda_det: float = 0.1
    """Weight of the detection loss (Eq. 7)."""
    latent_sample: bool = False
    """Sample the VAE's posterior at each step instead of taking its mean."""
    attack_batch_size: int = 8
    """Images per forward while they are perturbed."""
    cache_dir: Path | None = None
    """Where encoded latents and texts are kept; default: $LORDFAST_CACHE or ~/.cache/lordfast."""
    attack_steps: int = 10
    """Iterations of the perturbation."""
    step_size: str = "2/255"
    """Its step in [0, 1] pixels."""


PRESETS: dict[str, dict[str, Any]] = {
    # The paper, with diffusers' text-to-image LoRA settings where it names none. Its perturbation has
    # Anti-DreamBooth's parameters with 2 iterations: steps of 5e-3 on [-1, 1] tensors, which are 0.0025 pixels, and
    # eps 0.05 there, 0.025 pixels; no random start, so no pixel moves by more than 1.28 grey levels.
    "paper": {
        "rank": 4,
        "lord_alpha": 32,
        "target_modules": ["to_q", "to_v"],
        "lambda_adv": 2.0,
        "lambda_det": 0.1,
        "lr": 1e-4,
        "lr_schedule": "constant",
        "epochs": 100,
        "batch_size": 16,
        "weight_decay": 1e-2,
        "clip_norm": 1.0,
        "eps": "0.025",
        "step_size": "0.0025",
        "attack_steps": 2,
        "random_start": False,
    },
}


def check(config: Stage1Config) -> None:
    """Raise ValueError for a config that can't be run."""
    check_training(config)
    config.settings(config.seed)
    for name in ("rank", "gate_hidden", "attack_batch_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")
    for name in ("lambda_adv", "lambda_det"):
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name}: expected 0 or more, got {getattr(config, name)}")


def run_stage1(config: Stage1Config) -> dict[str, Any]:
    """Perturb, train, and save the LoRD into ``config.out``; returns what summary.json holds.

    Raises:
        ValueError: bad settings or data; nothing is written then.
        Interrupted: on Ctrl-C, with finished perturbations and a checkpoint saved.
    """
    check(config)
    list_images(config.data, prompt=config.prompt, captions="required")
    model = load_model(config.model, device=config.device, dtype=config.dtype)
    side = model.check_resolution(config.resolution)
    loss = pgd_loss(model, targeted=config.targeted, target=config.target, resolution=side)
    found = read_images(config.data, config, side, seed=config.seed, prompt=config.prompt, captions="required")
    accelerator = make_accelerator(config.dtype, model.device)
    with accelerator.main_process_first():
        run = RunFolder.open(config, "stage1", write=accelerator.is_main_process)
    finished = run.summary()
    if finished is not None:
        return finished

    cache = TensorCache(config.cache_dir)
    folder = run.path / "perturbed"
    jobs = [(record, f"{i:06d}.png", image) for i, (record, image) in enumerate(found)]
    # Whole batches are dealt out, so that their composition does not depend on the number of processes.
    size, world, rank = config.attack_batch_size, accelerator.num_processes, accelerator.process_index
    mine = [job for i, job in enumerate(jobs) if (i // size) % world == rank]
    attack_images(
        model,
        mine,
        loss,
        config.settings(config.seed),
        folder,
        batch_size=size,
        cache=cache,
        show=accelerator.is_main_process,
    )
    accelerator.wait_for_everyone()

    perturbed = [load_image(folder / name) for _, name, _ in jobs]
    batches = _pairs(model, found, perturbed, cache, config)
    inject(model, config)
    result = train(
        DefenseObjective(model, lambda_adv=config.lambda_adv, lambda_det=config.lambda_det),
        batches,
        config,
        accelerator,
        run=run,
        description="stage 1",
    )
    if accelerator.is_main_process:
        save_lord(model.unet, run.path, LORD_NAME)
    accelerator.wait_for_everyone()
    return run.finish({**result, "examples": len(batches)})


def inject(model: LatentDiffusion, config: Stage1Config) -> None:
    """Add a fresh, trainable LoRD to the UNet; the same seed gives the same weights."""
    torch.manual_seed(derive_seed(config.seed, "lord"))
    lord = LordConfig(
        r=config.rank,
        lord_alpha=config.lord_alpha,
        target_modules=list(config.target_modules),
        gate_hidden=config.gate_hidden,
        gate_activation=config.gate_activation,
        gate_granularity=config.gate_granularity,
    )
    model.unet.add_adapter(lord, adapter_name=LORD_NAME)
    if config.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()


def _pairs(
    model: LatentDiffusion,
    found: list[tuple[ImageRecord, np.ndarray]],
    perturbed: list[np.ndarray],
    cache: TensorCache,
    config: Stage1Config,
) -> PairedBatches:
    return PairedBatches(
        LatentStore(model, [image for _, image in found], cache),
        LatentStore(model, perturbed, cache),
        TextStore(model, [record.caption or "" for record, _ in found], cache),
        model.timesteps,
        config.latent_sample,
    )
