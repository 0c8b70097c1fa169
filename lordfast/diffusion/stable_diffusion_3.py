"""Stable Diffusion 3: a transformer on two streams, flow matching, two CLIP text encoders and perhaps a T5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lordfast.diffusion.loading import load_parts
from lordfast.diffusion.model import LatentDiffusion, Text, Tokens

# diffusers' pipeline: as many tokens of T5, or as many zeros in its place.
_T5_LENGTH = 256


class StableDiffusion3(LatentDiffusion):
    """SD 3 and 3.5. z_t = (1 - s_t) z + s_t noise, and the transformer predicts the velocity noise - z.

    s_t, for t in [0, T), is the scheduler's own table of T shifted sigmas in rising order, so t = 0 is nearly clean and
    t = T - 1 is all noise (s = 1). With shift m: s_t = m u / (1 + (m - 1) u), u = (t + 1) / T. A scheduler that shifts
    by the image's size shifts in sampling alone, and its table is s_t = u. What the transformer is told is neither t
    nor u but T s_t, a real number, as in diffusers' sampling.
    """

    samplers: ClassVar[Mapping[str, str]] = {"flow-euler": "FlowMatchEulerDiscreteScheduler"}

    text_encoder_2: Any
    tokenizer_2: Any
    text_encoder_3: Any

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        if self.dtype == torch.float16 and "text_encoder_3" in self.text_encoders:
            # T5's feed-forward outputs overflow in half precision; its layers cast to and from these on their own.
            for name, module in self.text_encoders["text_encoder_3"].named_modules():
                if name.endswith(".wo"):
                    nn.Module.to(module, dtype=torch.float32)

    def _noise_levels(self) -> tuple[Tensor, Tensor]:
        if self.scheduler.config.get("invert_sigmas"):
            raise ValueError(f"model: the scheduler of {self.name} inverts its sigmas; expected them as SD 3 has them")
        sigma = self.scheduler.sigmas.flip(0).to(torch.float32)
        # diffusers' own product, rounded as there.
        self._times = (sigma * self.timesteps).to(self.device)
        return 1 - sigma, sigma

    def _denoiser_config(self) -> dict[str, Any]:
        config, clips = self.unet.config, [self.text_encoder.config, self.text_encoder_2.config]
        t5 = self.text_encoders.get("text_encoder_3")
        # The CLIPs' states are padded to the T5's width.
        width = max(sum(clip.hidden_size for clip in clips), t5.config.d_model if t5 else config.joint_attention_dim)
        return {
            "out_channels": None if config.out_channels is None else self.vae.config.latent_channels,
            "joint_attention_dim": width,
            "pooled_projection_dim": sum(clip.projection_dim for clip in clips),
        }

    @property
    def denoiser_multiple(self) -> int:
        return self.unet.config.patch_size

    @property
    def largest_side(self) -> int | None:
        return self.unet.config.pos_embed_max_size * self.side_multiple

    @property
    def text_lengths(self) -> dict[str, int]:
        # Both CLIPs by the first one's length, as in the pipeline.
        length = self.tokenizer.model_max_length
        return {part: _T5_LENGTH if part == "text_encoder_3" else length for part in self.text_encoders}

    def embed_tokens(self, tokens: Tokens) -> Text:
        """``encoder_hidden_states`` (B, L + 256, D) and ``pooled_projections`` (B, D1 + D2).

        The CLIPs' states before the last layer lie side by side, zeros up to D behind them; the T5's states, or zeros
        where the model is loaded without one, follow as tokens of their own.
        """
        outs = [
            self.text_encoder(tokens["ids"], output_hidden_states=True),
            self.text_encoder_2(tokens["ids_2"], output_hidden_states=True),
        ]
        clip = torch.cat([out.hidden_states[-2] for out in outs], dim=-1)
        width = self.unet.config.joint_attention_dim
        if "ids_3" in tokens:
            t5 = self.text_encoder_3(tokens["ids_3"])[0].to(clip.dtype)
        else:
            t5 = clip.new_zeros(len(clip), _T5_LENGTH, width)
        return {
            "encoder_hidden_states": torch.cat([F.pad(clip, (0, width - clip.shape[-1])), t5], dim=1),
            "pooled_projections": torch.cat([out.text_embeds for out in outs], dim=-1),
        }

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """The velocity noise - z, at every timestep."""
        return noise - latents

    def split(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        signal, sigma = self.signal_noise(timesteps)
        return noisy - sigma * prediction, noisy + signal * prediction

    def _denoise(self, noisy: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        return self.unet(hidden_states=noisy, timestep=self._times[timesteps], **text).sample

    def pipeline(self, sampler: str | None = None) -> Any:
        import diffusers

        parts = {f"{kind}{n}": None for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
        for part, encoder in self.text_encoders.items():
            parts |= {part: encoder, part.replace("text_encoder", "tokenizer"): self.tokenizers[part]}
        pipeline: Any = diffusers.StableDiffusion3Pipeline(
            vae=self.vae,
            transformer=self.unet,
            scheduler=getattr(diffusers, self.check_sampler(sampler)).from_config(self.scheduler.config),
            **parts,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @property
    def lora_text_encoders(self) -> dict[str, Any]:
        return {part: encoder for part, encoder in self.text_encoders.items() if part != "text_encoder_3"}


def load(
    source: str, *, index: Mapping[str, Any], name: str, device: torch.device, dtype: torch.dtype
) -> StableDiffusion3:
    """Load the parts; the T5 only where the model's index has one, which may have been left out to save memory.

    Raises:
        ValueError: a part is missing, unreadable or incomplete; the message names it.
    """
    import transformers
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    classes: dict[str, Any] = {
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": transformers.CLIPTextModelWithProjection,
        "text_encoder_2": transformers.CLIPTextModelWithProjection,
        "tokenizer": transformers.CLIPTokenizer,
        "tokenizer_2": transformers.CLIPTokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler,
    }
    if (index.get("text_encoder_3") or [None])[0] is not None:
        classes |= {"text_encoder_3": transformers.T5EncoderModel, "tokenizer_3": transformers.AutoTokenizer}
    parts = load_parts(source, name, classes)
    return StableDiffusion3(name=name, device=device, dtype=dtype, unet=parts.pop("transformer"), **parts)
