"""Steps of PGD through VAE and denoiser: as one would write them around diffusers, and as lordfast takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from whole_steps import Variant, WholeConfig, measure_steps, run_models, sharing_copy

from lordfast.attacks.budget import Budget
from lordfast.attacks.engine import PgdSettings, perturb
from lordfast.attacks.pgd import LdmLoss
from lordfast.data import make_faces
from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.compiled import compile_blocks
from lordfast.pixels import to_tensor
from lordfast.profiling.ceilings import Ceilings

STEPS = 2
"""Of each timed run: drawing and reading images back is shared among them, as in an attack it is among many."""


class PlainPgd:
    """PGD on diffusers' modules in PyTorch's own operations, with what draws and keeps the gradient written out."""

    def __init__(self, model: LatentDiffusion, pixels: Tensor, text: dict[str, Tensor], seed: int) -> None:
        self._model, self._pixels, self._text = model, pixels, text
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self) -> Tensor:
        model, original = self._model, self._pixels
        scheduler, scaling = model.scheduler, model.vae.config.scaling_factor
        x = original.clone()
        for _ in range(STEPS):
            x = x.detach().requires_grad_(True)
            latents = model.vae.encode(x.to(model.vae.dtype)).latent_dist.mean.float() * scaling
            noise = torch.randn(latents.shape, generator=self._generator).to(latents)
            times = torch.randint(model.timesteps, (len(x),), generator=self._generator).to(x.device)
            noisy = scheduler.add_noise(latents, noise, times)
            F.mse_loss(model.predict(noisy, times, self._text), noise).backward()
            assert x.grad is not None
            with torch.no_grad():
                moved = (x + 2 / 255 * x.grad.sign()).clamp(original - 16 / 255, original + 16 / 255)
                x = moved.clamp(-1, 1)
        return x


def variants(model: LatentDiffusion, batch: int, seed: int, compiled: bool) -> list[Variant]:
    """All ways to take `STEPS` steps on a batch of drawn faces."""
    images = [face.image for face in make_faces(batch, seed=seed, size=model.resolution)]
    text = model.embed(["a photo of a person"] * batch)

    def attack(name: str, own: LatentDiffusion, low_memory: bool = False) -> Variant:
        settings = PgdSettings(Budget(8 / 255, 1 / 255), steps=STEPS, low_memory=low_memory, seed=seed)
        return Variant(name, lambda: perturb(own, images, text, LdmLoss(), settings))

    pixels = to_tensor(images).to(model.device)
    found = [
        Variant("plain diffusers", PlainPgd(model, pixels, text, seed)),
        attack("lordfast", model),
        attack("lordfast --low-memory", model, low_memory=True),
    ]
    if compiled:
        own = sharing_copy(model)
        compile_blocks(own.unet, own.vae)
        found.append(attack("lordfast --compile", own))
    return found


def bench_steps(config: WholeConfig, device: torch.device, out: Path, compiled: bool) -> int:
    """Measure the steps of PGD on each model into `out`; the exit status."""

    def measure(model: LatentDiffusion, dtype: str, batch: int, ceilings: Ceilings) -> list[dict[str, Any]]:
        rows = measure_steps(
            variants(model, batch, config.seed, compiled),
            model=model,
            images=batch,
            against="plain diffusers",
            ceilings=ceilings,
            dtype=dtype,
            effort=config.effort(),
            seed=config.seed,
        )
        for row in rows:
            # Of one step, not of the run.
            for name in ("median_s", "p20_s", "p80_s", "gflop"):
                if row.get(name) is not None:
                    row[name] /= STEPS
            if row.get("images_per_s") is not None:
                row["images_per_s"] *= STEPS
        return rows

    return run_models(config, "pgd", device, out, measure)
