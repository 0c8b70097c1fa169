"""LoRA fine-tuning of a latent diffusion model: the objective of Eq. 9 and the adapter it trains."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lordfast.diffusion import LatentDiffusion
from lordfast.ranges import phase
from lordfast.training.loop import Objective
from lordfast.training.seeds import derive_seed

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""The linear layers of the denoiser that get a LoRA unless told otherwise: attention, as in diffusers' DreamBooth."""
LORA_NAME = "lora"


def check_targets(model: LatentDiffusion, targets: Sequence[str]) -> list[str]:
    """The linear layers of the denoiser that `targets` name by the end of their paths.

    Raises:
        ValueError: one of `targets` names none, which PEFT passes over as long as another one does.
    """
    linear = [f".{name}" for name, module in model.unet.named_modules() if isinstance(module, nn.Linear)]
    missing = [target for target in targets if not any(name.endswith(f".{target}") for name in linear)]
    if missing or not targets:
        got = ", ".join(map(repr, missing)) or "none"
        raise ValueError(f"target_modules: expected names of linear layers of {model.name}'s denoiser, got {got}")
    return [name[1:] for name in linear if name.endswith(tuple(f".{target}" for target in targets))]


@contextmanager
def stacking_adapters() -> Iterator[None]:
    """Silence peft's warning of several adapters in a model: a LoRA above a LoRD is the point."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        yield


def add_lora(
    model: LatentDiffusion,
    *,
    rank: int,
    alpha: float,
    target_modules: Sequence[str],
    text_encoder: bool = False,
    seed: int = 0,
    name: str = LORA_NAME,
) -> None:
    """Inject a trainable fp32 LoRA `name` (B'' = 0, A'' gaussian) into the denoiser and, on request, the text encoders
    that the model's family can train."""
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(derive_seed(seed, "lora"))
    config: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "init_lora_weights": "gaussian"}
    with stacking_adapters():
        model.unet.add_adapter(LoraConfig(target_modules=list(target_modules), **config), adapter_name=name)
    cast_training_params(model.unet, torch.float32)
    for part, encoder in model.lora_text_encoders.items() if text_encoder else ():
        # Not the encoder's add_adapter: transformers and PEFT refuse each other's releases there.
        inject_adapter_in_model(LoraConfig(target_modules=model.text_lora_targets(part), **config), encoder, name)
        cast_training_params(encoder, torch.float32)


class LoraObjective(Objective):
    """L_LDM over the instance images (Eq. 9), plus `prior_weight` times L_LDM over as many class images.

    With a prior the batch is (2B, ...): B instance examples, then B class examples. ``text`` holds the conditioning,
    or, when the text encoders are trained, their token ids (``ids`` and, for a second one, ``ids_2``), each (B, L).
    """

    def __init__(
        self, model: LatentDiffusion, *, prior_weight: float | None = None, text_encoder_lr: float | None = None
    ) -> None:
        super().__init__()
        self.unet = model.unet
        self._encoders = model.lora_text_encoders if text_encoder_lr is not None else {}
        for part, encoder in self._encoders.items():
            # By these names checkpoints know the weights.
            setattr(self, part, encoder)
        self._model = model
        self._prior_weight = prior_weight
        self._text_lr = text_encoder_lr

    def forward(  # type: ignore[override]
        self, *, latents: Tensor, noise: Tensor, timesteps: Tensor, text: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        if "ids" in text:
            with phase("text"):
                text = self._model.embed_tokens(text)
        losses = self._model.loss(latents, noise, timesteps, text)
        if self._prior_weight is None:
            return {"loss": losses.mean()}
        instance, prior = (half.mean() for half in losses.chunk(2))
        return {"loss": instance + self._prior_weight * prior, "instance_loss": instance, "prior_loss": prior}

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        groups = [{"params": [p for p in self.unet.parameters() if p.requires_grad], "lr": lr}]
        if self._encoders:
            trained = [p for encoder in self._encoders.values() for p in encoder.parameters() if p.requires_grad]
            groups.append({"params": trained, "lr": self._text_lr})
        return groups
