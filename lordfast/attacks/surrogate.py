"""The surrogate: the model being fine-tuned, on which alternating attacks take their gradients."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lordfast.attacks.options import SurrogateOptions
from lordfast.diffusion import LatentDiffusion, TensorCache
from lordfast.diffusion.cache import cached_text
from lordfast.diffusion.model import Text
from lordfast.training.config import RunConfig
from lordfast.training.examples import LatentBatches, TextStore
from lordfast.training.loop import TrainingConfig, check_training, train
from lordfast.training.lora import TARGETS, LoraObjective, add_lora
from lordfast.training.processes import make_accelerator, on_all
from lordfast.training.seeds import derive_seed
from lordfast.training.unwrapped import Alone

LOSS_SCALE = 1024.0
"""Of fp16 training: phases are too short to come down to a scale that does not overflow."""


class Surrogate(Protocol):
    """What a schedule does with the model that it attacks."""

    def train(self, pixels: Sequence[Tensor], steps: int, phase: int) -> None:
        """Fine-tune on images (3, H, W) in [-1, 1]; `phase` seeds what is drawn."""
        ...

    def state(self) -> dict[str, Tensor]:
        """A copy of everything that training changes, on the CPU."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put `state` back, exactly."""
        ...

    def text(self, captions: Sequence[str]) -> Text:
        """The conditioning for `captions` as it is now."""
        ...

    def precision(self) -> AbstractContextManager[Any]:
        """The context in which the model as it is now computes."""
        ...


class FineTuned:
    """A LoRA in the model, or its whole UNet, trained by the same loop and objective as Stage 2.

    Between phases of training nothing of it requires a gradient.

    Args:
        captions: of all images, in their order.

    Raises:
        ValueError: settings that no training can run with.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        options: SurrogateOptions,
        run: RunConfig,
        captions: Sequence[str],
        cache: TensorCache,
    ) -> None:
        self._model, self._options, self._captions, self._cache = model, options, list(captions), cache
        self._config = training_config(options, run)
        with_text = options.surrogate_text_encoder
        parts = [model.unet, *(model.lora_text_encoders.values() if with_text else ())]
        if options.surrogate == "lora":
            rank = options.surrogate_rank
            add_lora(model, rank=rank, alpha=rank, target_modules=TARGETS, text_encoder=with_text, seed=run.seed)
        else:
            for part in parts:
                # AdamW in half precision loses most updates to rounding.
                nn.Module.to(part, dtype=torch.float32).requires_grad_(True)
        if options.gradient_checkpointing:
            model.unet.enable_gradient_checkpointing()
        self._trained = {
            f"{number}.{name}": parameter
            for number, part in enumerate(parts)
            for name, parameter in part.named_parameters()
            if parameter.requires_grad
        }
        self._wants_gradient(False)

    def _wants_gradient(self, wanted: bool) -> None:
        for parameter in self._trained.values():
            parameter.requires_grad_(wanted)

    def precision(self) -> AbstractContextManager[Any]:
        """The context in which a fully trained model, whose weights are fp32, computes in the run's dtype."""
        if self._options.surrogate == "lora" or self._model.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._model.device.type, self._model.dtype)

    def train(self, pixels: Sequence[Tensor], steps: int, phase: int) -> None:
        if steps == 0:
            return
        model = self._model
        config = replace(self._config, steps=steps, seed=derive_seed(self._config.seed, "surrogate", phase))
        with_text = self._options.surrogate_text_encoder
        # Anew in each phase: what its fp16 scaling has learnt would be lost where an interrupted attack goes on.
        accelerator = make_accelerator(config.dtype, model.device, loss_scale=LOSS_SCALE)
        several = accelerator.num_processes > 1
        store = _EncodedWhenDrawn(model, pixels)
        text = TextStore(model, self._captions, self._cache, trained=with_text)
        self._wants_gradient(True)
        try:
            objective = LoraObjective(model, text_encoder_lr=config.lr if with_text else None)
            batches = LatentBatches(store, text, model.timesteps)
            # Its batch is often one image, which several processes can't share: each makes every step, so that the
            # result does not depend on how many they are.
            on_all(
                accelerator, lambda: train(objective, batches, config, Alone(accelerator) if several else accelerator)
            )
            if several:
                # Devices may round differently, and from here on all have to see the same weights.
                for value in self._trained.values():
                    torch.distributed.broadcast(value.data, src=0)
        finally:
            self._wants_gradient(False)
            accelerator.free_memory()

    def state(self) -> dict[str, Tensor]:
        return {name: value.detach().to("cpu", copy=True) for name, value in self._trained.items()}

    @torch.no_grad()
    def restore(self, state: dict[str, Tensor]) -> None:
        for name, value in self._trained.items():
            value.copy_(state[name])

    def text(self, captions: Sequence[str]) -> Text:
        if self._options.surrogate_text_encoder:
            with self.precision():
                return self._model.embed(captions)
        return cached_text(self._model, captions, self._cache)


class _EncodedWhenDrawn:
    """Latents of images (3, H, W) in [-1, 1]; a phase of a few steps draws few of them."""

    def __init__(self, model: LatentDiffusion, pixels: Sequence[Tensor]) -> None:
        self._model, self._pixels = model, pixels
        self._mean: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._pixels)

    @torch.no_grad()
    def draw(self, index: int, generator: torch.Generator, sample: bool) -> Tensor:
        """The posterior's mean (C, h, w) of the middle of an image; nothing is sampled."""
        if index not in self._mean:
            self._mean[index] = self._model.encode(_square(self._pixels[index])[None])[0].cpu()
        return self._mean[index]


def _square(image: Tensor) -> Tensor:
    """The middle of an image (3, H, W), as long as its shorter side: what fine-tuning would see of it."""
    side = min(image.shape[1:])
    top, left = ((length - side) // 2 for length in image.shape[1:])
    return image[:, top : top + side, left : left + side]


def training_config(options: SurrogateOptions, run: RunConfig) -> TrainingConfig:
    """The settings of the surrogate's training loop; steps and seed change from phase to phase.

    Raises:
        ValueError: they are out of range; the message names the option.
    """
    for name, least in (("surrogate_rank", 1), ("surrogate_batch_size", 1), ("surrogate_lr", 0)):
        if not getattr(options, name) >= least:
            raise ValueError(f"{name}: expected at least {least}, got {getattr(options, name)}")
    config = TrainingConfig(
        out=Path(run.out),
        seed=run.seed,
        device=run.device,
        dtype=run.dtype,
        lr=options.surrogate_lr,
        batch_size=options.surrogate_batch_size,
        tensorboard=False,
    )
    check_training(config)
    return config
