"""A latent diffusion model as the rest of lordfast sees it: encode, noise, predict, loss."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Config entries of transformers that say nothing about what a model computes.
_NO_MATTER = frozenset({"transformers_version", "architectures", "dtype", "torch_dtype"})

Text = dict[str, Tensor]
"""What the denoiser is conditioned on: keyword tensors of its forward, each (B, ...)."""


def resolve_device(device: str) -> torch.device:
    """``auto`` is CUDA where there is one, else CPU; anything else is what `torch.device` takes.

    Raises:
        ValueError: the device is unknown, or is CUDA on a machine without it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: {device!r} is no torch device; expected auto, cpu, cuda or cuda:N") from error
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise ValueError(f"device: {device!r} was asked for, but torch {torch.__version__} sees {there} CUDA devices")
    return resolved


class LatentDiffusion:
    """The frozen parts of a pipeline and the four things one does with them.

    Shapes: pixels (B, 3, H, W) in [-1, 1]; latents (B, C, h, w), scaled as the denoiser wants them;
    timesteps (B,) int64 in [0, T). Losses are fp32 whatever the weights are.

    Attributes:
        unet: the denoiser. Adapters are injected into it; everything else stays frozen.
        vae, text_encoder, tokenizer, scheduler: as in diffusers.
        dtype: of the frozen weights. The VAE stays fp32 under fp16 when its config says ``force_upcast``.
    """

    def __init__(
        self,
        *,
        name: str,
        unet: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.name = name
        self.device = device
        self.dtype = dtype
        vae_dtype = torch.float32 if dtype == torch.float16 and vae.config.get("force_upcast", True) else dtype
        # nn.Module.to, not diffusers' override, which warns of an empty list of modules to keep in float32.
        self.unet: Any = nn.Module.to(unet, device, dtype).eval().requires_grad_(False)
        self.vae: Any = nn.Module.to(vae, device, vae_dtype).eval().requires_grad_(False)
        self.text_encoder: Any = nn.Module.to(text_encoder, device, dtype).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.scheduler = scheduler
        self.prediction_type: str = scheduler.config.prediction_type
        if self.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"model: {name} predicts {self.prediction_type!r}; expected 'epsilon' or 'v_prediction'")
        self.timesteps: int = scheduler.config.num_train_timesteps
        self._alphas_cumprod = scheduler.alphas_cumprod.to(device=device, dtype=torch.float32)
        self._scaling: float = vae.config.scaling_factor
        self._shift: float = vae.config.get("shift_factor") or 0.0
        self._fingerprints: dict[str, str] = {}

    @property
    def vae_factor(self) -> int:
        """Pixels per latent, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, height: int, width: int) -> torch.Size:
        """(C, h, w) of the latents of an image of this many pixels, both multiples of `side_multiple`."""
        return torch.Size((self.vae.config.latent_channels, height // self.vae_factor, width // self.vae_factor))

    @property
    def resolution(self) -> int:
        """The side, in pixels, of the square images that the model was made for."""
        size = self.unet.config.sample_size
        return (size if isinstance(size, int) else size[0]) * self.vae_factor

    @property
    def side_multiple(self) -> int:
        """What the sides of images must be multiples of, in pixels: the VAE and the UNet halve them so often."""
        return self.vae_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def check_resolution(self, resolution: int | None) -> int:
        """`resolution`, or the model's own for None.

        Raises:
            ValueError: it is not a positive multiple of what the VAE and the UNet halve by.
        """
        if resolution is None:
            return self.resolution
        if resolution <= 0 or resolution % self.side_multiple:
            raise ValueError(
                f"resolution: expected a positive multiple of {self.side_multiple} for {self.name}, got {resolution}"
            )
        return resolution

    def fingerprint(self, part: str) -> str:
        """A digest of what `part` (``vae`` or ``text_encoder``) computes: its weights and its config.

        Taken at the first call and kept, so that a part which is trained later still goes by what it was.
        """
        if part not in self._fingerprints:
            module = getattr(self, part)
            config = dict(module.config) if isinstance(module.config, Mapping) else module.config.to_dict()
            # Where the files lay and which version wrote them changes nothing.
            described = {k: v for k, v in config.items() if not k.startswith("_") and k not in _NO_MATTER}
            digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
            for key, value in sorted(module.state_dict().items()):
                digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
                digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
            self._fingerprints[part] = digest.hexdigest()
        return self._fingerprints[part]

    # --- encode -------------------------------------------------------------------------------------------------

    def encode_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents, fp32, each (B, C, h, w). Differentiable in `pixels`."""
        # Where a caller computes in half precision, a VAE that is kept in fp32 must not.
        with torch.autocast(self.device.type, enabled=False):
            posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        mean = (posterior.mean.float() - self._shift) * self._scaling
        return mean, posterior.std.float() * self._scaling

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents of `pixels`: the posterior mean, or a sample of it when standard-normal `noise` is given."""
        mean, std = self.encode_moments(pixels)
        return mean if noise is None else mean + std * noise.to(mean)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of scaled `latents`, fp32, not clamped."""
        with torch.autocast(self.device.type, enabled=False):
            return self.vae.decode((latents / self._scaling + self._shift).to(self.vae.dtype)).sample.float()

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Token ids (B, L), padded and cut to the tokenizer's length."""
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True).input_ids
        return torch.tensor(ids, device=self.device)

    def embed_tokens(self, ids: Tensor) -> Text:
        """The conditioning for token ids (B, L). Differentiable in the text encoder's adapters."""
        return {"encoder_hidden_states": self.text_encoder(ids)[0]}

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Text:
        """The conditioning for `prompts`, without gradient."""
        return self.embed_tokens(self.tokenize(prompts))

    # --- diffuse ------------------------------------------------------------------------------------------------

    def signal_noise(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a_t) and sqrt(1 - a_t), fp32, each (B, 1, 1, 1); a_t is the cumulative product of the alphas up to t."""
        alpha = self._alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t = sqrt(a_t) z + sqrt(1 - a_t) noise, fp32."""
        signal, sigma = self.signal_noise(timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should predict: the noise, or v = sqrt(a_t) noise - sqrt(1 - a_t) z."""
        if self.prediction_type == "epsilon":
            return noise
        signal, sigma = self.signal_noise(timesteps)
        return signal * noise - sigma * latents

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        """The denoiser's prediction for z_t, fp32, with the shape of `noisy`."""
        text = {key: value.to(self.dtype) for key, value in text.items()}
        return self.unet(noisy.to(self.dtype), timesteps, **text).sample.float()

    def split(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The clean latents and the noise that, by the denoiser's `prediction`, make up z_t; both like `noisy`."""
        signal, sigma = self.signal_noise(timesteps)
        if self.prediction_type == "epsilon":
            return (noisy - sigma * prediction) / signal, prediction
        return signal * noisy - sigma * prediction, sigma * noisy + signal * prediction

    def loss(self, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        """L_LDM of Eq. 6, the prediction's mean squared error of each sample, (B,) fp32."""
        prediction = self.predict(self.add_noise(latents, noise, timesteps), timesteps, text)
        return (prediction - self.target(latents, noise, timesteps)).square().mean(dim=(1, 2, 3))
