"""The options of ``lordfast profile``, and those of each job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lordfast.training.config import RunConfig, check_choices
from lordfast.training.speed import SpeedOptions


@dataclass(kw_only=True)
class ProfileConfig(SpeedOptions, RunConfig):
    """Run a few steps on made-up data and say where their time goes."""

    model: str = "demo"
    """A diffusers folder, a hub id, or demo."""
    topology: str | None = None
    """Instead of --model, random weights in a published architecture, which take as long as trained ones: sd15, sd21,
    sdxl or sd3, each also at toy width as sd15-narrow and so on. Nothing is downloaded."""
    steps: int = 5
    """Steps that are timed undisturbed, and again as many that are traced."""
    warmup: int = 3
    """Steps before that."""
    batch_size: int = 2
    """Images per forward."""
    resolution: int | None = None
    """Side in pixels; the model's own when left out."""
    nvtx_backward: bool = False
    """Under nsys or another reader of NVTX: also ranges for layers in the backward pass, which slow it a little."""
    ceiling_seconds: float = 2.0
    """How long to measure what the machine can do at best: the bandwidth of a copy, the rate of a matrix product."""


@dataclass(kw_only=True)
class LordOptions:
    """The LoRD of the model that is profiled."""

    rank: int = 4
    """Rank r of the LoRD."""
    gate_hidden: int = 16
    """Width H of its gate."""
    gate_granularity: Literal["token", "sample"] = "token"
    """One lambda a token, or one a sample."""


@dataclass(kw_only=True)
class TrainingOptions(LordOptions):
    """What both trainings have."""

    accumulate: int = 1
    """Forwards per optimiser step."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass."""


@dataclass(kw_only=True)
class Stage1Profile(TrainingOptions, ProfileConfig):
    """Find out where the time of stage1's training steps goes: each has clean images and as many perturbed ones."""


@dataclass(kw_only=True)
class Stage2Profile(TrainingOptions, ProfileConfig):
    """Find out where the time of stage2's training steps goes."""

    lord: bool = True
    """A frozen LoRD under the LoRA."""
    lora_rank: int = 4
    """Rank of the LoRA."""
    train_text_encoder: bool = False
    """Also train a LoRA in the text encoder."""


@dataclass(kw_only=True)
class PgdProfile(LordOptions, ProfileConfig):
    """Find out where the time of PGD's steps goes, the inner loop of stage1's perturbation and of most attacks."""

    lord: bool = False
    """Attack a model with a LoRD."""
    draws: int = 1
    """Noise and timestep draws averaged per step."""
    low_memory: bool = False
    """Two-pass gradient, one draw at a time."""


@dataclass(kw_only=True)
class GenerateProfile(LordOptions, ProfileConfig):
    """Find out where the time of drawing images goes; a step is a batch of images from its prompts to its pixels."""

    steps: int = 2
    """Batches that are timed undisturbed, and again as many that are traced."""
    warmup: int = 1
    """Batches before that."""
    lord: bool = True
    """Draw with a LoRD."""
    sampler_steps: int = 10
    """Sampler steps for each batch."""
    guidance: float = 7.5
    """Classifier-free guidance scale; 1 turns it off."""


def check(config: ProfileConfig) -> None:
    """Raise ValueError for a config that can't be run."""
    check_choices(config)
    for name, least in (
        ("steps", 1),
        ("warmup", 0),
        ("batch_size", 1),
        ("rank", 1),
        ("gate_hidden", 1),
        ("accumulate", 1),
        ("lora_rank", 1),
        ("draws", 1),
        ("sampler_steps", 1),
    ):
        if getattr(config, name, least) < least:
            raise ValueError(f"{name}: expected at least {least}, got {getattr(config, name)}")
    if not 0 < config.ceiling_seconds < float("inf"):
        raise ValueError(f"ceiling_seconds: expected a positive number, got {config.ceiling_seconds}")
