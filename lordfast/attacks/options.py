"""The options that attacks share, and how they become the settings of the perturbation loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from lordfast.attacks.budget import Budget, parse_budget
from lordfast.attacks.engine import PgdSettings
from lordfast.training.config import RunConfig
from lordfast.training.placement import PlacementOptions
from lordfast.training.speed import SpeedOptions


@dataclass(kw_only=True)
class BudgetOptions:
    """What every attack has: a budget, and how its gradient is taken."""

    eps: str = "8/255"
    """Budget in [0, 1] pixels: 8/255 is 8 grey levels; for l2, of the whole image's norm, so choose one of order 1."""
    norm: Literal["linf", "l2"] = "linf"
    """Shape of the budget."""
    draws: int = 1
    """Noise and timestep draws averaged per iteration."""
    least_timestep: int = 0
    """Timesteps are drawn from this one on."""
    most_timestep: int | None = None
    """Timesteps are drawn up to this one; the model's last when left out."""
    low_memory: bool = False
    """Two-pass gradient, one draw at a time: about half the memory, one more encode."""
    attack_latent_sample: bool = False
    """Attack samples of the VAE's posterior instead of its mean."""

    def settings(self, seed: int) -> PgdSettings:
        """Parsed and checked settings.

        Raises:
            ValueError: a budget that is negative, not a number, or (linf) above 1 or too small for any 8-bit image to
                change; steps, draws or timesteps out of range.
        """
        # One step of the whole budget, which is FGSM; what has more overrides it.
        return self._settings(seed, self.eps)

    def _settings(self, seed: int, step_size: str) -> PgdSettings:
        budget = Budget(parse_budget(self.eps), parse_budget(step_size, "step_size"), self.norm)
        if budget.eps > 0 and budget.norm == "linf" and budget.grey_levels == 0:
            raise ValueError(
                f"eps: {self.eps} is less than one grey level, 1/255, so no saved 8-bit image could change; expected "
                "0, or 1/255 or more"
            )
        return PgdSettings(
            budget=budget,
            steps=1,
            draws=self.draws,
            random_start=False,
            least_timestep=self.least_timestep,
            most_timestep=self.most_timestep,
            latent_sample=self.attack_latent_sample,
            low_memory=self.low_memory,
            seed=seed,
        )


@dataclass(kw_only=True)
class PgdOptions(BudgetOptions):
    """Attacks of several steps."""

    step_size: str = "1/255"
    """Step in [0, 1] pixels."""
    attack_steps: int = 40
    """Iterations."""
    random_start: bool = True
    """Start at a random point within the budget."""

    def settings(self, seed: int) -> PgdSettings:
        found = self._settings(seed, self.step_size)
        return replace(found, steps=self.attack_steps, random_start=self.random_start)


@dataclass(kw_only=True)
class PictureOptions:
    """Attacks that always pull towards a picture."""

    target: Path | None = None
    """The picture to pull towards; a built-in high-contrast pattern when left out."""


@dataclass(kw_only=True)
class TargetOptions:
    """Attacks that pull towards a picture on request."""

    targeted: bool = False
    """Pull towards a picture instead of pushing the loss up."""
    target: Path | None = None
    """That picture; a built-in high-contrast pattern when left out."""


@dataclass(kw_only=True)
class AttackConfig(BudgetOptions, SpeedOptions, PlacementOptions, RunConfig):
    """Perturb a folder of images so that fine-tuning on them fails."""

    model: str
    """The model whose fine-tuning is attacked: a diffusers folder, a hub id, or demo."""
    images: Path
    """Folder of images, JPEG, PNG and others, of any size and mode. Or webdataset archives, each of which becomes one
    of the same name: a .tar, or a pattern such as data-{000000..000099}.tar or "data-*.tar"."""
    share: str | None = None
    """K/N: attack the K-th of N shares, one of N independent jobs that write into one --out. Give --resume to each."""
    prompt: str | None = None
    """One caption for all images; else name.txt, metadata.jsonl or the like, or the empty prompt."""
    resolution: int | None = None
    """Side in pixels at which the model sees the images; the model's own when left out."""
    size: Literal["model", "original", "tiles"] = "model"
    """Of the results. model: the centre-cropped square that training would see. original: as given; the image is
    attacked scaled down or up to --resolution and the change, not the image, is resampled. tiles: as given; attacked at
    full size in overlapping squares."""
    batch_size: int = 8
    """Images (or tiles) per forward."""
    gradient_checkpointing: bool = False
    """Recompute the activations of denoiser and VAE in the backward pass: less memory, same gradients."""
    skip_bad: bool = False
    """Go on without images that can't be read, naming each."""
    cache_dir: Path | None = None
    """Where text embeddings are kept; default: $LORDFAST_CACHE or ~/.cache/lordfast."""


@dataclass(kw_only=True)
class SteppedConfig(PgdOptions, AttackConfig):
    """Perturb a folder of images, step by step, so that fine-tuning on them fails."""


@dataclass(kw_only=True)
class SurrogateOptions:
    """How the surrogate, a fine-tuned copy of the model on which gradients are taken, is trained."""

    random_start: bool = False
    """Start at a random point within the budget."""

    surrogate: Literal["lora", "unet"] = "lora"
    """What is trained: a LoRA, or the whole UNet in fp32, which takes 16 bytes a weight."""
    surrogate_text_encoder: bool = False
    """Also train the text encoder, in the same way."""
    surrogate_rank: int = 4
    """Rank of the LoRA."""
    surrogate_lr: float = 1e-4
    """Learning rate of AdamW, which starts afresh in every phase of training."""
    surrogate_batch_size: int = 1
    """Images per optimiser step."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass, in the surrogate's training and in the attack: less memory."""
