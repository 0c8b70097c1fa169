"""The stages that make the embedded model, each a run folder of its own inside the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lordfast.demo.pretrain.pictures import Pictures, drawn
from lordfast.demo.pretrain.vae import VaeConfig, train_vae
from lordfast.diffusion import resolve_device
from lordfast.training.config import RunConfig
from lordfast.training.processes import make_accelerator, on_main, open_run
from lordfast.training.seeds import derive_seed


@dataclass(kw_only=True)
class PretrainConfig(RunConfig):
    """Make the embedded model: draw pictures, train VAE, text encoder, UNet and attribute classifier, pack them.

    Ctrl-C and --resume at any time. Sample grids appear in OUT/vae/samples and OUT/unet/samples. On 2 CPU cores two
    processes of one thread each are fastest: OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m lordfast.demo.pretrain
    """

    out: Path = Path("lordfast-pretrain")
    """Run folder; the model comes to lie in its folder model."""
    dtype: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Of the arithmetic while training (autocast)."""
    faces: int = 16_000
    """Drawn faces to learn from."""
    landscapes: int = 10_000
    """Drawn landscapes to learn from."""
    held_out: int = 128
    """Of each kind, to measure on; drawn from another seed."""
    vae_steps: int = 8_000
    """Optimiser steps of the VAE."""
    vae_batch_size: int = 6
    """Images per step and process."""


def run_pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Run every stage into ``config.out``; finished ones are kept when resumed."""
    accelerator = make_accelerator(config.dtype, resolve_device(config.device))
    run = open_run(config, "pretrain", accelerator)

    def pictures(name: str, faces: int, landscapes: int) -> dict[str, Pictures]:
        seed = derive_seed(config.seed, name)
        counts = {"faces": faces, "landscapes": landscapes}
        work = {kind: (run.path / "data" / f"{name}-{kind}.npz", kind, n, seed) for kind, n in counts.items()}
        on_main(accelerator, lambda: [drawn(*job) for job in work.values()] and None)
        return {kind: drawn(*job) for kind, job in work.items()}

    training = pictures("training", config.faces, config.landscapes)
    held_out = pictures("held-out", config.held_out, config.held_out)
    together = training["faces"] + training["landscapes"]
    common: dict[str, Any] = {
        "seed": config.seed,
        "device": config.device,
        "dtype": config.dtype,
        "resume": True,
        "tensorboard": False,
    }
    vae = train_vae(
        VaeConfig(
            out=run.path / "vae",
            steps=config.vae_steps,
            batch_size=config.vae_batch_size,
            lr=2e-3,
            lr_schedule="cosine",
            warmup_steps=min(100, config.vae_steps // 10),
            weight_decay=1e-4,
            adam_beta2=0.99,
            **common,
        ),
        together,
        held_out,
    )
    return {"vae": vae}
