"""The text encoder and the UNet, trained together on the latents of the drawn pictures."""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from lordfast.data import FaceAttributes, face_caption, image_grid, landscape_caption, save_png
from lordfast.demo.pretrain.average import Average
from lordfast.demo.pretrain.pictures import Attributes, Pictures
from lordfast.demo.pretrain.vocabulary import RARE_TOKEN, make_tokenizer
from lordfast.diffusion import resolve_device
from lordfast.diffusion.sampling import generate
from lordfast.diffusion.stable_diffusion import StableDiffusion
from lordfast.files import write_atomic
from lordfast.training.loop import Objective, TrainingConfig, train
from lordfast.training.processes import make_accelerator, open_run

SAMPLE_PROMPTS = (
    "a photo of a person with long red hair and light skin and glasses on a teal background",
    "a photo of a smiling person with curly blond hair and dark skin on a pink background",
    "a photo of a person with bald head and tan skin and beard on a white background",
    "a photo of a surprised person with short black hair and medium skin and hat on a green background",
    "a photo of a winter landscape at day with mountains and lake and trees",
    "a photo of an autumn landscape at sunset with mountains and meadow and sun and trees",
    "a photo of a summer landscape at night with lake and moon",
    "a photo of a spring landscape at dawn with meadow and trees",
)


HIGH_NOISE = 0.7
"""Where the noisiest timesteps begin, as a share of all."""


@dataclass(kw_only=True)
class DenoiserConfig(TrainingConfig):
    """Train the UNet and the text encoder of the embedded model."""

    channels: tuple[int, ...] = (64, 96, 128)
    """Of the UNet's levels, at 16x16, 8x8 and 4x4 latents."""
    text_width: int = 96
    """Width of the text encoder and of the cross-attention."""
    no_caption: float = 0.1
    """Share of empty captions, for classifier-free guidance."""
    rare_token: float = 0.1
    """Share of captions with the rare token, so that it is known and means nothing."""
    min_snr: float = 5.0
    """Weight of the loss at a signal-to-noise ratio s: min(s, this) / s (min-SNR weighting)."""
    max_weight: float = 1.0
    """Where there is more noise than signal, the weight grows as 1 / s up to this: 1 leaves min-SNR weighting alone."""
    high_noise: float = 0.0
    """Share of timesteps that are drawn from the noisiest 30 %, instead of from all."""
    start: Path | None = None
    """Folder of a trained text encoder and UNet to go on from."""
    ema_decay: float = 0.999
    """Decay of the averaged weights, which are the product."""
    sample_every: int = 1000
    """Steps between grids of generated pictures."""


def new_parts(config: DenoiserConfig) -> tuple[Any, Any, Any]:
    """Tokenizer, untrained text encoder and untrained UNet."""
    tokenizer = make_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=2 * config.text_width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            projection_dim=config.text_width,
        )
    )
    levels = len(config.channels)
    unet: Any = UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=1,
        cross_attention_dim=config.text_width,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    # On a CPU the backward pass of the fused attention is the slower one.
    unet.set_attn_processor(AttnProcessor())
    return tokenizer, text_encoder, unet


class DenoiserObjective(Objective):
    """The weighted error of the predicted noise; ids and latents in, both networks trained.

    The weight at a signal-to-noise ratio s is min(s, min_snr) / s, times 1 / s within [1, max_weight]. A wrong
    background of a picture is nearly no error in the noise where nearly all is noise, yet there it is decided.
    """

    signal: Tensor
    sigma: Tensor
    weight: Tensor

    def __init__(
        self,
        unet: Any,
        text_encoder: Any,
        scheduler: Any,
        min_snr: float,
        max_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder
        alphas = scheduler.alphas_cumprod
        ratio = alphas / (1 - alphas)
        self.register_buffer("signal", alphas.sqrt())
        self.register_buffer("sigma", (1 - alphas).sqrt())
        self.register_buffer("weight", ratio.clamp(max=min_snr) / ratio * (1 / ratio).clamp(1, max_weight))

    def forward(  # type: ignore[override]
        self, *, latents: Tensor, noise: Tensor, timesteps: Tensor, ids: Tensor
    ) -> dict[str, Tensor]:
        at = (timesteps, None, None, None)
        noisy = self.signal[at] * latents + self.sigma[at] * noise
        text = self.text_encoder(ids)[0]
        predicted = self.unet(noisy, timesteps, text).sample.float()
        error = (predicted - noise).square().mean(dim=(1, 2, 3))
        return {"loss": (self.weight[timesteps] * error).mean(), "noise_error": error.mean()}


class CaptionedLatents:
    """Latents of the pictures and their mirror images, with captions drawn anew each time."""

    def __init__(
        self, latents: Tensor, attributes: list[Attributes], tokenizer: Any, config: DenoiserConfig, timesteps: int
    ) -> None:
        self._latents = latents  # (2, N, C, h, w): as drawn, mirrored
        self._attributes, self._tokenizer, self._config, self._timesteps = attributes, tokenizer, config, timesteps
        self._ids: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._attributes)

    def __call__(self, indices: Sequence[int], generators: Sequence[torch.Generator]) -> dict[str, Any]:
        latents, ids, timesteps, noise = [], [], [], []
        for index, generator in zip(indices, generators, strict=True):
            mirrored = int(torch.randint(2, (), generator=generator))
            latents.append(self._latents[mirrored, index])
            ids.append(self._tokens(self._caption(self._attributes[index], generator)))
            noisiest = torch.rand((), generator=generator) < self._config.high_noise
            first = int(HIGH_NOISE * self._timesteps) if noisiest else 0
            timesteps.append(torch.randint(first, self._timesteps, (), generator=generator))
            noise.append(torch.randn(self._latents.shape[2:], generator=generator))
        stacked = {"latents": latents, "noise": noise, "timesteps": timesteps, "ids": ids}
        return {name: torch.stack(values) for name, values in stacked.items()}

    def _caption(self, attributes: Attributes, generator: torch.Generator) -> str:
        drawn = float(torch.rand((), generator=generator))
        if drawn < self._config.no_caption:
            return ""
        token = RARE_TOKEN if drawn > 1 - self._config.rare_token else None
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        if isinstance(attributes, FaceAttributes):
            return face_caption(attributes, rng, token)
        return landscape_caption(attributes, rng, token)

    def _tokens(self, caption: str) -> Tensor:
        if caption not in self._ids:
            length = self._tokenizer.model_max_length
            found = self._tokenizer(caption, padding="max_length", max_length=length, truncation=True).input_ids
            self._ids[caption] = torch.tensor(found)
        return self._ids[caption]


def train_denoiser(config: DenoiserConfig, pictures: Pictures, vae_folder: Path, latents_file: Path) -> dict[str, Any]:
    """Train on the latents of `pictures` and save tokenizer, text encoder, UNet and scheduler in ``out / "model"``.

    Args:
        vae_folder: the trained VAE.
        latents_file: where its latents are kept, for another training to take them from there.

    Returns:
        The summary: steps, loss, and the parameters of both networks.
    """
    accelerator = make_accelerator(config.dtype, resolve_device(config.device))
    run = open_run(config, "pretrain", accelerator)
    finished = run.summary()
    if finished is not None:
        return finished
    vae: Any = AutoencoderKL.from_pretrained(vae_folder)
    vae = vae.to(accelerator.device).eval().requires_grad_(False)
    latents = _encode_all(vae, pictures, accelerator, latents_file)
    torch.manual_seed(config.seed)
    tokenizer, text_encoder, unet = new_parts(config)
    if config.start is not None:
        for name, part in (("text_encoder", text_encoder), ("unet", unet)):
            part.load_state_dict(type(part).from_pretrained(config.start / name).state_dict())
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    scheduler: Any = DDPMScheduler(**schedule, clip_sample=False)
    objective = DenoiserObjective(unet, text_encoder, scheduler, config.min_snr, config.max_weight).to(
        accelerator.device
    )
    average = Average(objective, config.ema_decay)

    def look(step: int, last: bool) -> None:
        if run.write and (last or step % config.sample_every == 0):
            with average.applied():
                # Copies, as the model freezes what it is given.
                model = StableDiffusion(
                    name="pretrain",
                    unet=copy.deepcopy(unet),
                    vae=vae,
                    text_encoder=copy.deepcopy(text_encoder),
                    tokenizer=tokenizer,
                    scheduler=scheduler,
                    device=accelerator.device,
                    dtype=torch.float32,
                )
            made = [
                generate(model, [prompt] * 8, seed=config.seed, steps=15, guidance=3.0) for prompt in SAMPLE_PROMPTS
            ]
            save_png(image_grid(made, scale=2), run.path / "samples" / f"step-{step:06d}.png")

    result = train(
        objective,
        CaptionedLatents(latents, pictures.attributes, tokenizer, config, scheduler.config.num_train_timesteps),
        config,
        accelerator,
        run=run,
        description="UNet and text encoder",
        on_step=look,
        after_update=average.update,
        extras={"average": average},
    )
    parts: dict[str, Any] = {"text_encoder": text_encoder, "unet": unet}
    if run.write:
        with average.applied():
            for name, part in parts.items():
                part.save_pretrained(run.path / "model" / name)
        tokenizer.save_pretrained(run.path / "model" / "tokenizer")
        sampler: Any = DDIMScheduler(**schedule, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
        sampler.save_pretrained(run.path / "model" / "scheduler")
    accelerator.wait_for_everyone()
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return run.finish({**result, "parameters": sizes})


@torch.no_grad()
def _encode_all(vae: Any, pictures: Pictures, accelerator: Any, path: Path) -> Tensor:
    """Scaled latent means, fp32 (2, N, C, h, w), of the pictures and of their mirror images; kept in `path`."""
    if not path.exists():
        rank, world = accelerator.process_index, accelerator.num_processes
        share = -(-len(pictures) // world)
        # Every process encodes as many, the last ones some of the first pictures again, for a gather of equal parts.
        mine = [i % len(pictures) for i in range(rank * share, (rank + 1) * share)]
        found = []
        for start in range(0, share, 50):
            pixels = pictures.pixels(mine[start : start + 50]).to(vae.device)
            both = vae.encode(torch.cat([pixels, pixels.flip(-1)])).latent_dist.mean * vae.config.scaling_factor
            found.append(torch.stack(both.chunk(2), dim=1))
        latents = accelerator.gather(torch.cat(found))[: len(pictures)].transpose(0, 1).cpu()
        if accelerator.is_main_process:
            buffer = io.BytesIO()
            torch.save(latents.contiguous(), buffer)
            write_atomic(path, buffer.getvalue())
        accelerator.wait_for_everyone()
    return torch.load(path, weights_only=True)
