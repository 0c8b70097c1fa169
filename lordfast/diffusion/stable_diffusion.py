"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet, a KL autoencoder, epsilon or v prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from lordfast.diffusion.loading import load_parts
from lordfast.diffusion.model import LatentDiffusion, Text, Tokens


class StableDiffusion(LatentDiffusion):
    """A UNet that predicts the noise, or v, of a variance-preserving process: a_t^2 + s_t^2 = 1.

    a_t^2 is the scheduler's cumulative product of the alphas, with ``rescale_betas_zero_snr`` where its config says so;
    its config goes on to the samplers, with whatever it says of v prediction, rescaling and spacing.

    Attributes:
        prediction_type: ``epsilon`` or ``v_prediction``.
    """

    samplers: ClassVar[Mapping[str, str]] = {
        "ddim": "DDIMScheduler",
        "dpm++": "DPMSolverMultistepScheduler",
        "euler": "EulerDiscreteScheduler",
        "euler-a": "EulerAncestralDiscreteScheduler",
    }
    # Latents are not confined to [-1, 1]. The pipeline enforces both as well, but with deprecation warnings, and on the
    # scheduler it is built with only.
    _enforced: ClassVar[Mapping[str, Any]] = {"clip_sample": False, "steps_offset": 1}

    def _noise_levels(self) -> tuple[Tensor, Tensor]:
        self.prediction_type: str = self.scheduler.config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"model: {self.name} predicts {self.prediction_type!r}; expected 'epsilon' or 'v_prediction'"
            )
        alpha = self.scheduler.alphas_cumprod.to(torch.float32)
        if self.prediction_type == "epsilon" and not bool((alpha > 0).all()):
            raise ValueError(
                f"model: {self.name} predicts 'epsilon' under rescale_betas_zero_snr, where the noise of the last "
                "timestep says nothing of the image; expected 'v_prediction'"
            )
        return alpha.sqrt(), (1 - alpha).sqrt()

    def _denoiser_config(self) -> dict[str, Any]:
        plain = dict.fromkeys(("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type"))
        return {
            "out_channels": self.vae.config.latent_channels,
            "cross_attention_dim": sum(encoder.config.hidden_size for encoder in self.text_encoders.values()),
            **plain,
        }

    @property
    def denoiser_multiple(self) -> int:
        return 2 ** (len(self.unet.config.block_out_channels) - 1)

    def embed_tokens(self, tokens: Tokens) -> Text:
        """``encoder_hidden_states`` (B, L, D): the last hidden states."""
        return {"encoder_hidden_states": self.text_encoder(tokens["ids"])[0]}

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The noise, or v = a_t noise - s_t z."""
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self.signal_noise(timesteps)
        return signal * noise - sigma * latents

    def split(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        signal, sigma = self.signal_noise(timesteps)
        if self.prediction_type == "epsilon":
            return (noisy - sigma * prediction) / signal, prediction
        return signal * noisy - sigma * prediction, sigma * noisy + signal * prediction

    def _denoise(self, noisy: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        return self.unet(noisy, timesteps, **text).sample

    def _sampling_scheduler(self, sampler: str | None) -> Any:
        import diffusers

        scheduler = getattr(diffusers, self.check_sampler(sampler)).from_config(self.scheduler.config)
        enforced = {name: value for name, value in self._enforced.items() if name in scheduler.config}
        scheduler.register_to_config(**enforced)
        return scheduler

    def pipeline(self, sampler: str | None = None) -> Any:
        import diffusers

        pipeline: Any = diffusers.StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self._sampling_scheduler(sampler),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load(
    source: str, *, index: Mapping[str, Any], name: str, device: torch.device, dtype: torch.dtype
) -> StableDiffusion:
    """Load the five parts that training, attacks and sampling use; the safety checker stays on disk.

    Raises:
        ValueError: a part is missing, unreadable or incomplete; the message names it.
    """
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    classes = {
        "unet": UNet2DConditionModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "tokenizer": CLIPTokenizer,
        "scheduler": DDPMScheduler,
    }
    return StableDiffusion(name=name, device=device, dtype=dtype, **load_parts(source, name, classes))
