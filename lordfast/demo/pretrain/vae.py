"""The VAE: 64x64 pixels to 16x16 latents of four channels and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from lordfast.data import image_grid, save_png
from lordfast.demo.pretrain.average import Average
from lordfast.demo.pretrain.pictures import Pictures
from lordfast.demo.quality import psnr, reconstruct
from lordfast.diffusion import resolve_device
from lordfast.training.loop import Objective, TrainingConfig, train
from lordfast.training.processes import make_accelerator, open_run
from lordfast.training.progress import console


@dataclass(kw_only=True)
class VaeConfig(TrainingConfig):
    """Train the VAE of the embedded model."""

    channels: tuple[int, ...] = (32, 32, 64)
    """Of the encoder's and decoder's levels, from full to a quarter of the resolution."""
    latent_channels: int = 4
    """Channels of a latent."""
    square_weight: float = 4.0
    """Weight of the squared error beside the absolute error."""
    gradient_weight: float = 0.5
    """Weight of the absolute error of the differences between neighbouring pixels: edges stay sharp."""
    kl_weight: float = 2e-4
    """Weight of the mean KL divergence of the posterior from a standard normal."""
    ema_decay: float = 0.998
    """Decay of the averaged weights, which are the product."""
    sample_every: int = 500
    """Steps between grids of reconstructions."""


def new_vae(config: VaeConfig) -> Any:
    """An untrained `AutoencoderKL`; no attention, as 16x16 latents of so regular pictures don't need any."""
    levels = len(config.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


class VaeObjective(Objective):
    """|e| + w_s e^2 + w_g |grad e| + w_kl KL, means over everything; e is the reconstruction's error on [-1, 1]."""

    def __init__(self, vae: Any, config: VaeConfig) -> None:
        super().__init__()
        self.vae = vae
        self._weights = config.square_weight, config.gradient_weight, config.kl_weight

    def forward(self, *, pixels: Tensor, noise: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        posterior = self.vae.encode(pixels).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        decoded = self.vae.decode(mean + torch.exp(0.5 * logvar) * noise).sample.float()
        error = decoded - pixels
        absolute, square = error.abs().mean(), error.square().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        weight_square, weight_edges, weight_kl = self._weights
        loss = absolute + weight_square * square + weight_edges * edges + weight_kl * kl
        return {"loss": loss, "square_error": square, "kl": kl}


class PixelBatches:
    """Pictures, half of them mirrored, and the noise of the posterior's sample."""

    def __init__(self, pictures: Pictures, config: VaeConfig) -> None:
        self._pictures = pictures
        side = 64 // 2 ** (len(config.channels) - 1)
        self._latent = (config.latent_channels, side, side)

    def __len__(self) -> int:
        return len(self._pictures)

    def __call__(self, indices: Sequence[int], generators: Sequence[torch.Generator]) -> dict[str, Any]:
        pixels = self._pictures.pixels(indices)
        mirrored = torch.stack([torch.rand((), generator=generator) < 0.5 for generator in generators])
        pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
        noise = torch.stack([torch.randn(self._latent, generator=generator) for generator in generators])
        return {"pixels": pixels, "noise": noise}


def train_vae(config: VaeConfig, pictures: Pictures, held_out: dict[str, Pictures]) -> dict[str, Any]:
    """Train on `pictures` and save the averaged weights in ``config.out / "model"``, in diffusers' format.

    Returns:
        The summary: steps, loss, and the PSNR in dB of each held-out set, in fp32.
    """
    accelerator = make_accelerator(config.dtype, resolve_device(config.device))
    run = open_run(config, "pretrain", accelerator)
    finished = run.summary()
    if finished is not None:
        return finished
    torch.manual_seed(config.seed)
    vae = new_vae(config)
    objective = VaeObjective(vae, config).to(accelerator.device)
    average = Average(objective, config.ema_decay)

    def look(step: int, last: bool) -> None:
        if run.write and (last or step % config.sample_every == 0):
            with average.applied():
                console.print(f"VAE, step {step}: {_draw_grid(vae, held_out, run.path, step)}")

    result = train(
        objective,
        PixelBatches(pictures, config),
        config,
        accelerator,
        run=run,
        description="VAE",
        on_step=look,
        after_update=average.update,
        extras={"average": average},
    )
    average.model.copy_to(vae.parameters())
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=_scaling(vae, pictures))
    measured = {name: psnr(reconstruct(vae, some.images), some.images).mean() for name, some in held_out.items()}
    if run.write:
        vae.save_pretrained(run.path / "model")
    accelerator.wait_for_everyone()
    return run.finish({**result, "psnr": {name: round(float(value), 3) for name, value in measured.items()}})


@torch.no_grad()
def _scaling(vae: Any, pictures: Pictures) -> float:
    """One over the standard deviation of the latents, as latent diffusion wants them."""
    every = max(1, len(pictures) // 1000)
    indices = range(0, len(pictures), every)
    parts = [indices[start : start + 50] for start in range(0, len(indices), 50)]
    means = [vae.encode(pictures.pixels(part).to(vae.device)).latent_dist.mean for part in parts]
    return round(float(1 / torch.cat(means).std()), 5)


def _draw_grid(vae: Any, held_out: dict[str, Pictures], folder: Path, step: int) -> str:
    rows, figures = [], []
    for name, pictures in held_out.items():
        again = reconstruct(vae, pictures.images)
        figures.append(f"{name} {psnr(again, pictures.images).mean():.2f} dB")
        rows += [list(pictures.images[:12]), list(again[:12])]
    save_png(image_grid(rows, scale=2), folder / "samples" / f"step-{step:06d}.png")
    return ", ".join(figures)
