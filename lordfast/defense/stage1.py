"""Stage 1: perturb a folder of clean images, then train a LoRD, or its one-branch baseline, on both (Eq. 6-8)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lordfast.adapter import LordConfig, save_lord, sees_image
from lordfast.defense.adversaries import adversaries_of, check_adversaries
from lordfast.defense.objective import DefenseObjective, PairedBatches
from lordfast.defense.options import AdversaryOptions, DetectionOptions, GateOptions
from lordfast.defense.twins import Example, Refreshing, Twins, check_refresh, find_twins
from lordfast.diffusion import LatentDiffusion, TensorCache, resolve_device
from lordfast.training.examples import ImageOptions, LatentStore, TextStore, list_folder, read_images, report_cut
from lordfast.training.fsdp import FsdpOptions, shard_base, wants_fsdp
from lordfast.training.loop import TrainingConfig, check_training, train
from lordfast.training.lora import check_targets
from lordfast.training.memory.auto import recompute_if_needed
from lordfast.training.placement import PlacementOptions, check_placement, load_placed, recompute
from lordfast.training.processes import make_accelerator, on_main, open_run
from lordfast.training.run import RunFolder, check_apart
from lordfast.training.seeds import derive_seed
from lordfast.training.speed import SpeedOptions, speed_up

LORD_NAME = "lord"


@dataclass(kw_only=True)
class Stage1Config(
    ImageOptions,
    GateOptions,
    DetectionOptions,
    AdversaryOptions,
    SpeedOptions,
    PlacementOptions,
    FsdpOptions,
    TrainingConfig,
):
    """Train a LoRD on clean images and on their perturbed twins, which are made first."""

    model: str
    """A diffusers folder, a hub id, or demo."""
    data: Path
    """Folder of clean images with captions."""
    prompt: str | None = None
    """One caption for all images; else name.txt, metadata.jsonl or the like."""
    rank: int = 4
    """Rank r of the LoRD."""
    lord_alpha: float = 32.0
    """alpha; the LoRD is scaled by alpha / r."""
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Linear layers of the denoiser that get a LoRD; SD 3 has add_q_proj, add_k_proj, add_v_proj and to_add_out too."""
    one_branch: bool = False
    """Train A and B alone: the adversarial-training baseline that the paper calls PGD-2. B' stays zero, so the gate has
    nothing to mix in and gets no detection loss."""
    clean_branch: bool = True
    """Train B. Without it B stays zero, and a shut gate leaves the denoiser as it was before Stage 1; the gate has to
    read something else than that branch (--gate-input)."""
    lambda_adv: float = 2.0
    """Weight of the perturbed images' loss (Eq. 7)."""
    latent_sample: bool = False
    """Sample the VAE's posterior at each step instead of taking its mean."""
    cache_dir: Path | None = None
    """Where encoded latents and texts are kept; default: $LORDFAST_CACHE or ~/.cache/lordfast."""


PRESETS: dict[str, dict[str, Any]] = {
    # The paper, with diffusers' text-to-image LoRA settings where it names none. Its perturbation has
    # Anti-DreamBooth's parameters with 2 iterations: steps of 5e-3 on [-1, 1] tensors, which are 0.0025 pixels, and
    # eps 0.05 there, 0.025 pixels; no random start, so no pixel moves by more than 1.28 grey levels.
    "paper": {
        "rank": 4,
        "lord_alpha": 32.0,
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
    check_adversaries(config)
    lord_config(config)
    if config.attack_batch_size < 1:
        raise ValueError(f"attack_batch_size: expected at least 1, got {config.attack_batch_size}")
    if config.refresh_every and config.perturbed and not config.adversaries:
        raise ValueError("refresh_every: the twins in --perturbed stay as they are; expected 0, or --adversaries too")
    if not config.clean_branch and (config.one_branch or config.gate_input == "branch"):
        came = "one_branch" if config.one_branch else "gate_input branch, which reads it"
        raise ValueError(f"clean_branch: expected it to be trained, or another setting than {came}")
    for name in ("lambda_adv", "lambda_det", "refresh_every"):
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name}: expected 0 or more, got {getattr(config, name)}")


def lord_config(config: Stage1Config) -> LordConfig:
    """The adapter that `config` describes.

    Raises:
        ValueError: a number or a name that no LoRD can have.
    """
    if config.rank < 1:
        raise ValueError(f"rank: expected at least 1, got {config.rank}")
    return LordConfig(
        r=config.rank,
        # A whole number from Python, a float from YAML: one file for both.
        lord_alpha=float(config.lord_alpha),
        target_modules=list(config.target_modules),
        gate_hidden=config.gate_hidden,
        gate_activation=config.gate_activation,
        gate_granularity=config.gate_granularity,
        gate_input=config.gate_input,
        gate_norm=config.gate_norm,
        gate_timestep=config.gate_timestep,
        gate_temperature=float(config.gate_temperature),
    )


def run_stage1(config: Stage1Config) -> dict[str, Any]:
    """Perturb, train, and save the LoRD into ``config.out``; returns what summary.json holds.

    Raises:
        ValueError, OSError: bad settings or data; nothing is written then.
        Interrupted: on Ctrl-C, with finished perturbations and a checkpoint saved.
    """
    check(config)
    records = list_folder(config.data, "data", prompt=config.prompt, captions="required", skip_bad=config.skip_bad)
    accelerator = make_accelerator(config.dtype, resolve_device(config.device))
    if config.refresh_every and accelerator.num_processes > 1:
        raise ValueError(f"refresh_every: expected one process, got {accelerator.num_processes}; or 0")
    sharded = wants_fsdp(config, accelerator)
    finished = on_main(accelerator, lambda: RunFolder.inspect(config, "stage1"))
    if finished is not None:
        return finished
    check_placement(
        config,
        compiled=config.compile,
        optimized=config.optimize,
        processes=accelerator.num_processes,
        sharded=sharded,
    )
    placed = load_placed(config.model, config, accelerator.device, config.dtype)
    model = placed.model
    speed_up(model, config)
    if config.gradient_checkpointing:
        recompute(model)
    # Everything that bad input can break comes before the run folder is claimed.
    layers = check_targets(model, config.target_modules)
    if not (config.one_branch or any(map(sees_image, layers))):
        raise ValueError(
            f"target_modules: {', '.join(config.target_modules)} read the text only, where no gate can tell images "
            "apart; expected some that see the image, such as to_q"
        )
    side = model.check_resolution(config.resolution)
    adversaries = adversaries_of(config, model)
    found = read_images(records, config, side, seed=config.seed)
    report_cut(model, [record.caption for record in records])
    check_refresh(config, len(found))
    for folder in config.perturbed:
        check_apart(config, {"perturbed": folder})
    ready = find_twins(config.perturbed, records, found, config, side)
    run = open_run(config, "stage1", accelerator)

    cache = TensorCache(config.cache_dir)
    twins = Twins(model, found, adversaries, ready, config, run.path / "perturbed", accelerator, cache)
    batches = _pairs(model, found, twins.make(), cache, config)
    inject(model, config)
    placed.settle()
    recompute_if_needed(model, config, "stage1", side)
    result = train(
        DefenseObjective(
            model,
            lambda_adv=config.lambda_adv,
            lambda_det=None if config.one_branch else config.lambda_det,
            det_layers=config.det_layers,
            det_tokens=config.det_tokens,
            det_timesteps=config.det_timesteps,
        ),
        batches,
        config,
        shard_base(model.unet, accelerator) if sharded else accelerator,
        run=run,
        description="stage 1",
        prepare=Refreshing(twins, batches, model, config, placed.settle) if config.refresh_every else None,
    )
    if accelerator.is_main_process:
        save_lord(model.unet, run.path, LORD_NAME)
    accelerator.wait_for_everyone()
    return run.finish({**result, "examples": len(batches)})


def inject(model: LatentDiffusion, config: Stage1Config) -> None:
    """Add a fresh LoRD to the denoiser, trainable whole or in parts; the seed decides the weights."""
    torch.manual_seed(derive_seed(config.seed, "lord"))
    model.unet.add_adapter(lord_config(config), adapter_name=LORD_NAME)
    for name, parameter in model.unet.named_parameters():
        if config.one_branch and ".lord_A." not in name and ".lord_B." not in name:
            parameter.requires_grad_(False)
        if not config.clean_branch and ".lord_B." in name:
            parameter.requires_grad_(False)


def _pairs(
    model: LatentDiffusion,
    found: list[Example],
    perturbed: list[np.ndarray],
    cache: TensorCache,
    config: Stage1Config,
) -> PairedBatches:
    return PairedBatches(
        LatentStore.of(model, [image for _, image in found], cache),
        LatentStore.of(model, perturbed, cache),
        TextStore(model, [record.caption or "" for record, _ in found], cache),
        model.timesteps,
        config.latent_sample,
    )
