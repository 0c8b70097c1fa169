"""Gradient checkpointing where a training step would not fit into the device's free memory without it."""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import Any, Literal

import torch

from lordfast.adapter import LordConfig
from lordfast.adapter.control import lord_layers
from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.topologies import Config, Topology
from lordfast.training.loop import TrainingConfig
from lordfast.training.memory.estimate import Estimator, Switches
from lordfast.training.memory.fit import RESERVED
from lordfast.training.memory.pieces import Adapters
from lordfast.training.memory.sizes import show_memory

logger = logging.getLogger(__name__)


def recompute_if_needed(
    model: LatentDiffusion, config: TrainingConfig, task: Literal["stage1", "stage2"], side: int
) -> bool:
    """Turn checkpointing of the denoiser on, and say so, if a step's estimate is more than what is free now.

    Args:
        model: loaded, with its adapters, everything where it stays during training.
        config: of `task`; its batch size, rank, targets and switches count.
        side: of the images, in pixels.

    Returns:
        Whether it was turned on here: never on a CPU, where `free_memory` is not known, nor against the config.
    """
    free = free_memory(model.device)
    if free is None or config.gradient_checkpointing or not config.auto_checkpointing:
        return False
    estimator = Estimator(topology_of(model), side, adapters_of(model, config), cuda=model.device.type == "cuda")
    batch = config.batch_size * (2 if getattr(config, "prior_preservation", False) else 1)
    needed = estimator.step(task, batch, _switches(config))
    if needed <= free * (1 - RESERVED):
        return False
    model.unet.enable_gradient_checkpointing()
    logger.warning(
        "gradient checkpointing is on: without it a step would take an estimated %s, and %s are free on %s "
        "(--no-auto-checkpointing prevents this)",
        show_memory(needed),
        show_memory(free),
        model.device,
    )
    return True


def free_memory(device: torch.device) -> int | None:
    """Bytes that torch can still get on a CUDA device; None elsewhere."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds and does not use it can give out again.
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def topology_of(model: LatentDiffusion) -> Topology:
    """The denoiser and the VAE of a loaded model, as a topology without text encoders."""
    denoiser = (type(model.unet).__name__, _config(model.unet))
    return Topology(model.name, "", model.resolution, denoiser, _config(model.vae), (), ("", {}))


def _config(part: Any) -> Config:
    return {name: value for name, value in dict(part.config).items() if not name.startswith("_")}


def adapters_of(model: LatentDiffusion, config: Any) -> Adapters:
    """With the gate of the LoRD in the model: Stage 2's config does not say which the one that it loaded has."""
    lords = [lord for layer in lord_layers(model.unet).values() for lord in layer.lord_config.values()]
    gate = [
        (field.name, getattr(lords[0], field.name))
        for field in fields(LordConfig)
        if lords and field.name.startswith("gate_") and getattr(lords[0], field.name) != field.default
    ]
    return Adapters(config.rank, tuple(config.target_modules), tuple(sorted(gate)))


def _switches(config: Any) -> Switches:
    return Switches(dtype=config.dtype, quantize=config.quantize, offload=config.offload)
