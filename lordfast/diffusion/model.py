"""A latent diffusion model as the rest of lordfast sees it: encode, noise, predict, loss."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lordfast.ranges import phase

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Config entries of transformers that say nothing about what a model computes.
_NO_MATTER = frozenset({"transformers_version", "architectures", "dtype", "torch_dtype"})

# The linear layers of attention in CLIP's text model.
_TEXT_ATTENTION = (".q_proj", ".k_proj", ".v_proj", ".out_proj")

Text = dict[str, Tensor]
"""What the denoiser is conditioned on besides the timestep, each tensor (B, ...); the names are the family's."""

Tokens = dict[str, Tensor]
"""Token ids of each text encoder, each (B, L)."""


class LatentDiffusion:
    """The frozen parts of a pipeline and what one does with them; each model family is a subclass in a file of its own.

    Shapes: pixels (B, 3, H, W) in [-1, 1]; latents (B, C, h, w), scaled as the denoiser wants them;
    timesteps (B,) int64 in [0, T), the noisier the larger. Losses are fp32 whatever the weights are.

    What a family says of itself: `samplers`, `denoiser_multiple`, `_denoiser_config`, `_noise_levels`, `target`,
    `split`, `embed_tokens`, `_denoise`, `pipeline`, and, where it differs from the common case, what is documented
    there.

    Attributes:
        unet: the denoiser, whether it is a UNet or a transformer. Adapters are injected into it; the rest stays frozen.
        vae, scheduler: as in diffusers.
        text_encoder, tokenizer, text_encoder_2, tokenizer_2, ...: as in diffusers, as many as the family has.
        dtype: of the frozen weights. The VAE stays fp32 under fp16 when its config says ``force_upcast``.
        timesteps: T.
        samplers: name -> class of the schedulers in diffusers that sample from such a model, the default first.
    """

    samplers: ClassVar[Mapping[str, str]]
    text_encoder: Any
    tokenizer: Any

    def __init__(
        self,
        *,
        name: str,
        unet: Any,
        vae: Any,
        scheduler: Any,
        device: torch.device,
        dtype: torch.dtype,
        **text: Any,
    ) -> None:
        self.name = name
        self.device = device
        self.dtype = dtype
        vae_dtype = torch.float32 if dtype == torch.float16 and vae.config.get("force_upcast", True) else dtype
        # nn.Module.to, not diffusers' override, which warns of an empty list of modules to keep in float32.
        self.unet: Any = nn.Module.to(unet, device, dtype).eval().requires_grad_(False)
        self.vae: Any = nn.Module.to(vae, device, vae_dtype).eval().requires_grad_(False)
        for part, value in text.items():
            if isinstance(value, nn.Module):
                value = nn.Module.to(value, device, dtype).eval().requires_grad_(False)
            setattr(self, part, value)
        self._text_parts = tuple(part for part in text if isinstance(text[part], nn.Module))
        self._check_parts()
        self.scheduler = scheduler
        self.timesteps: int = scheduler.config.num_train_timesteps
        self._scaling: float = vae.config.scaling_factor
        self._shift: float = vae.config.get("shift_factor") or 0.0
        self._fingerprints: dict[str, str] = {}
        if vae.config.get("latents_mean") is not None or vae.config.get("latents_std") is not None:
            raise ValueError(f"model: the vae of {name} normalises latents by channel; expected one scaling_factor")
        signal, sigma = self._noise_levels()
        self._signal = signal.to(device=device, dtype=torch.float32)
        self._sigma = sigma.to(device=device, dtype=torch.float32)

    def _check_parts(self) -> None:
        """Raise a ValueError unless denoiser, VAE and text encoders go together."""
        expected = {"in_channels": self.vae.config.latent_channels, **self._denoiser_config()}
        for entry, value in expected.items():
            got = self.unet.config.get(entry)
            if got == value or (isinstance(got, list | tuple) and set(got) == {value}):
                continue
            raise ValueError(
                f"model: the parts of {self.name} do not go together: {entry} of the {type(self.unet).__name__} is "
                f"{got}, expected {value} for these {'latents' if 'channels' in entry else 'text encoders'}"
                + (", and a denoiser for inpainting or of other inputs can't be used" if entry == "in_channels" else "")
            )
        for entry in ("in_channels", "out_channels"):
            if self.vae.config[entry] != 3:
                raise ValueError(
                    f"model: {entry} of the vae of {self.name} is {self.vae.config[entry]}, expected 3 for RGB"
                )

    def _denoiser_config(self) -> dict[str, Any]:
        """Entries of the denoiser's config that the other parts decide, besides ``in_channels``."""
        raise NotImplementedError

    @property
    def text_encoders(self) -> dict[str, Any]:
        """The text encoders that are there, by their name in diffusers' pipeline, in its order."""
        return {part: getattr(self, part) for part in self._text_parts}

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, no parameter requires a gradient; afterwards those that did do again."""
        parts = (self.unet, self.vae, *self.text_encoders.values())
        trained = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    @property
    def tokenizers(self) -> dict[str, Any]:
        """The tokenizer of each of `text_encoders`, under the encoder's name."""
        return {part: getattr(self, part.replace("text_encoder", "tokenizer")) for part in self._text_parts}

    @property
    def vae_factor(self) -> int:
        """Pixels per latent, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def latent_shape(self, height: int, width: int) -> torch.Size:
        """(C, h, w) of the latents of an image of this many pixels, both multiples of `side_multiple`.

        Raises:
            ValueError: the image is larger than the denoiser takes.
        """
        if self.largest_side is not None and max(height, width) > self.largest_side:
            raise ValueError(
                f"images: {self.name} takes sides of up to {self.largest_side} pixels, got {width} x {height}"
            )
        return torch.Size((self.vae.config.latent_channels, height // self.vae_factor, width // self.vae_factor))

    @property
    def resolution(self) -> int:
        """The side, in pixels, of the square images that the model was made for."""
        size = self.unet.config.sample_size
        return (size if isinstance(size, int) else size[0]) * self.vae_factor

    @property
    def denoiser_multiple(self) -> int:
        """What the sides of latents must be multiples of."""
        raise NotImplementedError

    @property
    def side_multiple(self) -> int:
        """What the sides of images must be multiples of, in pixels: the VAE and the denoiser halve them so often."""
        return self.vae_factor * self.denoiser_multiple

    @property
    def largest_side(self) -> int | None:
        """The longest side of images that the denoiser takes, in pixels; None where it takes any."""
        return None

    def check_resolution(self, resolution: int | None) -> int:
        """`resolution`, or the model's own for None.

        Raises:
            ValueError: it is not a positive multiple of what the VAE and the denoiser halve by, or too large.
        """
        if resolution is None:
            return self.resolution
        if resolution <= 0 or resolution % self.side_multiple:
            raise ValueError(
                f"resolution: expected a positive multiple of {self.side_multiple} for {self.name}, got {resolution}"
            )
        if self.largest_side is not None and resolution > self.largest_side:
            raise ValueError(f"resolution: expected at most {self.largest_side} for {self.name}, got {resolution}")
        return resolution

    def fingerprint(self, part: str) -> str:
        """A digest of what `part` (``vae``, ``text_encoder``, ...) computes: its weights and its config.

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

    def text_fingerprint(self) -> str:
        """A digest of what makes conditioning out of token ids: the family and all its text encoders."""
        return ":".join([type(self).__name__, *map(self.fingerprint, self._text_parts)])

    # --- encode -------------------------------------------------------------------------------------------------

    def encode_moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents, fp32, each (B, C, h, w). Differentiable in `pixels`."""
        # Where a caller computes in half precision, a VAE that is kept in fp32 must not.
        with phase("encode"), torch.autocast(self.device.type, enabled=False):
            posterior = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist
        mean = (posterior.mean.float() - self._shift) * self._scaling
        return mean, posterior.std.float() * self._scaling

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Scaled latents of `pixels`: the posterior mean, or a sample of it when standard-normal `noise` is given."""
        mean, std = self.encode_moments(pixels)
        return mean if noise is None else mean + std * noise.to(mean)

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels of scaled `latents`, fp32, not clamped."""
        with phase("decode"), torch.autocast(self.device.type, enabled=False):
            return self.vae.decode((latents / self._scaling + self._shift).to(self.vae.dtype)).sample.float()

    @property
    def text_lengths(self) -> dict[str, int]:
        """How many tokens each of `text_encoders` reads, the marks of beginning and end among them."""
        return {part: tokenizer.model_max_length for part, tokenizer in self.tokenizers.items()}

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """Token ids of each text encoder, (B, L), padded and cut to `text_lengths`.

        ``ids`` are those of ``text_encoder``, ``ids_2`` those of ``text_encoder_2``, and so on.
        """
        found = {}
        for part, length in self.text_lengths.items():
            tokenize = self.tokenizers[part]
            ids = tokenize(list(prompts), padding="max_length", max_length=length, truncation=True).input_ids
            found[part.replace("text_encoder", "ids")] = torch.tensor(ids, device=self.device)
        return found

    def cut_text(self, prompt: str) -> dict[str, str]:
        """The end of `prompt` that `tokenize` cuts off, by text encoder; those that read all of it are not in it."""
        found = {}
        for part, length in self.text_lengths.items():
            tokenizer = self.tokenizers[part]
            ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
            if len(ids) > length:
                # The last place is the end mark's, in what is kept as in the whole.
                found[part] = tokenizer.decode(ids[length - 1 : -1]).strip()
        return found

    def embed_tokens(self, tokens: Tokens) -> Text:
        """The conditioning for what `tokenize` gives. Differentiable in the text encoders' adapters."""
        raise NotImplementedError

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> Text:
        """The conditioning for `prompts`, without gradient."""
        with phase("text"):
            return self.embed_tokens(self.tokenize(prompts))

    def unconditional(self) -> Text:
        """What guidance moves away from where nothing is said: one row, the conditioning of the empty prompt."""
        return self.embed([""])

    # --- diffuse ------------------------------------------------------------------------------------------------

    def _noise_levels(self) -> tuple[Tensor, Tensor]:
        """Of each timestep how much of the latents (T,) and how much noise (T,) z_t is made of."""
        raise NotImplementedError

    def signal_noise(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """a_t and s_t of z_t = a_t z + s_t noise, fp32, each (B, 1, 1, 1)."""
        return self._signal[timesteps].reshape(-1, 1, 1, 1), self._sigma[timesteps].reshape(-1, 1, 1, 1)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """z_t = a_t z + s_t noise, fp32."""
        signal, sigma = self.signal_noise(timesteps)
        return signal * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the denoiser should predict."""
        raise NotImplementedError

    def split(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The clean latents and the noise that, by the denoiser's `prediction`, make up z_t; both like `noisy`."""
        raise NotImplementedError

    def predict(self, noisy: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        """The denoiser's prediction for z_t, fp32, with the shape of `noisy`."""
        text = {key: value.to(self.dtype) for key, value in text.items()}
        with phase("predict"):
            return self._denoise(noisy.to(self.dtype), timesteps, text).float()

    def _denoise(self, noisy: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        """One call of the denoiser with the arguments that it takes; everything is in its dtype."""
        raise NotImplementedError

    def loss(self, latents: Tensor, noise: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        """L_LDM of Eq. 6, the prediction's mean squared error of each sample, (B,) fp32."""
        prediction = self.predict(self.add_noise(latents, noise, timesteps), timesteps, text)
        return (prediction - self.target(latents, noise, timesteps)).square().mean(dim=(1, 2, 3))

    # --- pipelines and LoRAs ------------------------------------------------------------------------------------

    def check_sampler(self, sampler: str | None) -> str:
        """The scheduler class of `sampler` in diffusers; of the family's default for None.

        Raises:
            ValueError: such a model can't be sampled that way.
        """
        if sampler is None:
            return next(iter(self.samplers.values()))
        if sampler not in self.samplers:
            raise ValueError(
                f"sampler: expected one of {', '.join(self.samplers)} for {self.name}, a {type(self).__name__} model, "
                f"got {sampler!r}"
            )
        return self.samplers[sampler]

    def pipeline(self, sampler: str | None = None) -> Any:
        """diffusers' pipeline over the model's own modules (shared, not copied), progress bar off.

        Args:
            sampler: a key of `samplers`; None for the first.
        """
        raise NotImplementedError

    def negative(self, prompt: str, count: int) -> list[str] | None:
        """The pipeline's ``negative_prompt`` for `count` pictures that shall stay away from `prompt`."""
        return [prompt] * count

    @property
    def lora_text_encoders(self) -> dict[str, Any]:
        """Those of `text_encoders` that a LoRA can be trained in, saved for, and loaded into by diffusers."""
        return self.text_encoders

    def text_lora_targets(self, part: str) -> list[str]:
        """The linear layers of text encoder `part` that get a LoRA: its attention, as far as anything depends on it."""
        found = getattr(self, part).named_modules()
        return [path for path, module in found if isinstance(module, nn.Linear) and path.endswith(_TEXT_ATTENTION)]

    def check_lora_format(self, format: str, layers: Sequence[str]) -> None:
        """Raise a ValueError where no LoRA of these `layers` of the denoiser can be saved in `format`."""
        from lordfast.adapter.lora_export import check_lora_format

        check_lora_format(self.unet, format, layers)

    def save_lora(self, path: Path, adapter_name: str, *, text: bool = False, format: str = "diffusers") -> Path:
        """Save a LoRA of the denoiser, and of the text encoders with `text`: see `lordfast.adapter.save_lora`."""
        from lordfast.adapter import save_lora

        encoders = self.lora_text_encoders if text else {}
        return save_lora(self.unet, path, adapter_name, format=format, **encoders)
