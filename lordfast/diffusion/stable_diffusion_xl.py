"""Stable Diffusion XL: two text encoders, and a UNet that is also told a pooled text and the image's size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lordfast.diffusion.loading import load_parts
from lordfast.diffusion.model import Text, Tokens
from lordfast.diffusion.stable_diffusion import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """SDXL. Of the sizes it is conditioned on, (original, crop, target), the image is always all there is.

    In training, attacks and sampling alike the original and the target size are those of the image at hand, and the
    crop begins at (0, 0): an image is what it was cut to, and counts as neither cropped nor scaled. That is also what
    diffusers' pipeline does unless told otherwise. The sizes follow from the latents, so they are no part of a `Text`.

    Attributes:
        zeros_for_empty: guidance without a negative prompt moves away from zeros instead of from the empty prompt's
            conditioning (``force_zeros_for_empty_prompt`` of the pipeline). Images whose caption is empty are trained
            on the empty prompt all the same.
    """

    _enforced: ClassVar[Mapping[str, Any]] = {"clip_sample": False}

    text_encoder_2: Any
    tokenizer_2: Any

    def __init__(self, *, zeros_for_empty: bool = True, **parts: Any) -> None:
        super().__init__(**parts)
        self.zeros_for_empty = zeros_for_empty
        self._sizes: dict[tuple[int, int], Tensor] = {}

    def _denoiser_config(self) -> dict[str, Any]:
        sizes = 6 * (self.unet.config.addition_time_embed_dim or 0)
        return super()._denoiser_config() | {
            "addition_embed_type": "text_time",
            "projection_class_embeddings_input_dim": self.text_encoder_2.config.projection_dim + sizes,
        }

    def embed_tokens(self, tokens: Tokens) -> Text:
        """``encoder_hidden_states`` (B, L, D1 + D2), of both encoders the states before the last layer;
        ``text_embeds`` (B, D2), the second one's pooled and projected text."""
        states = []
        for part, encoder in self.text_encoders.items():
            out = encoder(tokens[part.replace("text_encoder", "ids")], output_hidden_states=True)
            states.append(out.hidden_states[-2])
        return {"encoder_hidden_states": torch.cat(states, dim=-1), "text_embeds": out.text_embeds}

    def unconditional(self) -> Text:
        empty = super().unconditional()
        return {name: torch.zeros_like(value) for name, value in empty.items()} if self.zeros_for_empty else empty

    def negative(self, prompt: str, count: int) -> list[str] | None:
        # The pipeline takes zeros only where no negative prompt is given at all.
        return None if prompt == "" and self.zeros_for_empty else super().negative(prompt, count)

    def _denoise(self, noisy: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        height, width = noisy.shape[-2] * self.vae_factor, noisy.shape[-1] * self.vae_factor
        if (height, width) not in self._sizes:
            # Once for each size: a copy to the device in every step would make the host wait.
            sizes = torch.tensor([height, width, 0, 0, height, width], device=self.device)
            self._sizes[height, width] = sizes.to(self.dtype)
        added = {
            "text_embeds": text["text_embeds"],
            "time_ids": self._sizes[height, width].expand(len(noisy), -1),
        }
        states = text["encoder_hidden_states"]
        return self.unet(noisy, timesteps, encoder_hidden_states=states, added_cond_kwargs=added).sample

    def pipeline(self, sampler: str | None = None) -> Any:
        import diffusers

        pipeline: Any = diffusers.StableDiffusionXLPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            text_encoder_2=self.text_encoder_2,
            tokenizer=self.tokenizer,
            tokenizer_2=self.tokenizer_2,
            unet=self.unet,
            scheduler=self._sampling_scheduler(sampler),
            force_zeros_for_empty_prompt=self.zeros_for_empty,
            # It would mark pictures, where the package for it is installed.
            add_watermarker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def text_lora_targets(self, part: str) -> list[str]:
        found = super().text_lora_targets(part)
        if part == "text_encoder_2":
            return found
        # Nothing depends on the first encoder's last layer: its LoRA would get no gradient, which DDP takes for an
        # error.
        last = f"encoder.layers.{self.text_encoder.config.num_hidden_layers - 1}."
        return [path for path in found if last not in path]


def load(
    source: str, *, index: Mapping[str, Any], name: str, device: torch.device, dtype: torch.dtype
) -> StableDiffusionXL:
    """Load the seven parts of a base model; a refiner, which lacks the first text encoder, is another pipeline.

    Raises:
        ValueError: a part is missing, unreadable or incomplete; the message names it.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    classes = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": CLIPTextModelWithProjection,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "scheduler": DDPMScheduler,
    }
    parts = load_parts(source, name, classes)
    zeros = bool(index.get("force_zeros_for_empty_prompt", True))
    return StableDiffusionXL(name=name, device=device, dtype=dtype, zeros_for_empty=zeros, **parts)
