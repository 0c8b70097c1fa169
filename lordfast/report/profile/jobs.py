"""What can be profiled: each job runs the very code of its command, on a few procedural faces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lordfast.adapter import freeze_lord
from lordfast.attacks.engine import perturb
from lordfast.attacks.options import PgdOptions
from lordfast.attacks.pgd import LdmLoss
from lordfast.data import fit_image, make_faces
from lordfast.defense.objective import DefenseObjective, PairedBatches
from lordfast.defense.stage1 import Stage1Config, inject
from lordfast.diffusion import LatentDiffusion, TensorCache
from lordfast.diffusion.sampling import generate
from lordfast.pixels import Uint8Image, to_tensor
from lordfast.report.profile.config import (
    GenerateProfile,
    PgdProfile,
    ProfileConfig,
    Stage1Profile,
    Stage2Profile,
)
from lordfast.training.examples import LatentBatches, LatentStore, TextStore
from lordfast.training.loop import Batches, Objective, TrainingConfig, train
from lordfast.training.lora import LoraObjective, add_lora
from lordfast.training.processes import make_accelerator

Loop = Callable[[Callable[[], None]], Any]
"""Runs all steps, and calls what it is given after each."""


@dataclass(frozen=True)
class Job:
    """Something to profile.

    Attributes:
        summary: one line for the list of jobs.
        step: what a step is.
        config: the dataclass of its options.
        prepare: (config, model, folder for temporary files, how many steps) -> the loop.
    """

    summary: str
    step: str
    config: type[ProfileConfig]
    prepare: Callable[[Any, LatentDiffusion, Path, int], Loop]


@dataclass(frozen=True)
class _Examples:
    images: list[Uint8Image]
    captions: list[str]


def _examples(config: ProfileConfig, model: LatentDiffusion) -> _Examples:
    side = model.check_resolution(config.resolution)
    faces = make_faces(config.batch_size, config.seed)
    return _Examples([fit_image(face.image, (side, side)) for face in faces], [face.caption for face in faces])


def _perturbed(images: Sequence[Uint8Image], seed: int) -> list[Uint8Image]:
    """Images within 8 grey levels: training does not see how they came about."""
    random = np.random.default_rng(seed)
    noise = [random.integers(-8, 9, image.shape) for image in images]
    return [(image + n).clip(0, 255).astype(np.uint8) for image, n in zip(images, noise, strict=True)]


@torch.no_grad()
def _encoded(model: LatentDiffusion, images: Sequence[Uint8Image]) -> LatentStore:
    moments = [model.encode_moments(to_tensor([image])) for image in images]
    mean, std = (torch.cat(group).cpu() for group in zip(*moments, strict=True))
    return LatentStore(mean, std)


def _frozen_lord(config: Any, model: LatentDiffusion) -> None:
    if config.lord:
        inject(model, _stage1(config))
        freeze_lord(model.unet)


def _stage1(config: Any, **more: Any) -> Stage1Config:
    return Stage1Config(
        out=config.out,
        data=config.out,
        model=config.model,
        seed=config.seed,
        rank=config.rank,
        lord_alpha=8.0 * config.rank,
        gate_hidden=config.gate_hidden,
        gate_granularity=config.gate_granularity,
        **more,
    )


def _training(
    objective: Objective,
    batches: Batches,
    config: Stage1Profile | Stage2Profile,
    model: LatentDiffusion,
    total: int,
) -> Loop:
    settings = TrainingConfig(
        out=config.out,
        seed=config.seed,
        dtype=config.dtype,
        steps=total,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
    )
    accelerator = make_accelerator(config.dtype, model.device)

    def run(on_step: Callable[[], None]) -> None:
        train(objective, batches, settings, accelerator, on_step=lambda step, last: on_step())

    return run


def _prepare_stage1(config: Stage1Profile, model: LatentDiffusion, folder: Path, total: int) -> Loop:
    found = _examples(config, model)
    perturbed = _perturbed(found.images, config.seed)
    clean, twins = (_encoded(model, images) for images in (found.images, perturbed))
    batches = PairedBatches(clean, twins, TextStore(model, found.captions, TensorCache(folder)), model.timesteps)
    settings = _stage1(config)
    inject(model, settings)
    if config.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    objective = DefenseObjective(model, lambda_adv=settings.lambda_adv, lambda_det=settings.lambda_det)
    return _training(objective, batches, config, model, total)


def _prepare_stage2(config: Stage2Profile, model: LatentDiffusion, folder: Path, total: int) -> Loop:
    found = _examples(config, model)
    prompts = ["a photo of a sks person"] * len(found.images)
    text = TextStore(model, prompts, TensorCache(folder), trained=config.train_text_encoder)
    batches = LatentBatches(_encoded(model, found.images), text, model.timesteps)
    _frozen_lord(config, model)
    add_lora(
        model,
        rank=config.lora_rank,
        alpha=config.lora_rank,
        target_modules=Stage1Config.target_modules,
        text_encoder=config.train_text_encoder,
        seed=config.seed,
    )
    if config.gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
    objective = LoraObjective(model, text_encoder_lr=5e-5 if config.train_text_encoder else None)
    return _training(objective, batches, config, model, total)


def _prepare_pgd(config: PgdProfile, model: LatentDiffusion, folder: Path, total: int) -> Loop:
    found = _examples(config, model)
    text = model.embed(found.captions)
    _frozen_lord(config, model)
    options = PgdOptions(attack_steps=total, draws=config.draws, low_memory=config.low_memory)
    settings = options.settings(config.seed)
    return lambda on_step: perturb(model, found.images, text, LdmLoss(), settings, lambda _: on_step())


def _prepare_generate(config: GenerateProfile, model: LatentDiffusion, folder: Path, total: int) -> Loop:
    prompts = _examples(config, model).captions
    _frozen_lord(config, model)

    def run(on_step: Callable[[], None]) -> None:
        for step in range(total):
            generate(
                model,
                prompts,
                seed=config.seed + step,
                steps=config.sampler_steps,
                guidance=config.guidance,
                resolution=config.resolution,
                batch_size=config.batch_size,
            )
            on_step()

    return run


JOBS: dict[str, Job] = {
    "stage1": Job(
        summary="training steps of stage1: a LoRD on clean and perturbed images",
        step="a training step",
        config=Stage1Profile,
        prepare=_prepare_stage1,
    ),
    "stage2": Job(
        summary="training steps of stage2: a LoRA on a frozen LoRD",
        step="a training step",
        config=Stage2Profile,
        prepare=_prepare_stage2,
    ),
    "pgd": Job(
        summary="steps of projected gradient descent on images",
        step="an attack step",
        config=PgdProfile,
        prepare=_prepare_pgd,
    ),
    "generate": Job(
        summary="drawing batches of images",
        step="a batch",
        config=GenerateProfile,
        prepare=_prepare_generate,
    ),
}
