"""The stages that make the embedded model, each a run folder of its own inside the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from lordfast.demo.pretrain.card import write_card
from lordfast.demo.pretrain.classifier import ClassifierConfig, train_classifier
from lordfast.demo.pretrain.denoiser import DenoiserConfig, train_denoiser
from lordfast.demo.pretrain.lord import train_lord
from lordfast.demo.pretrain.pack import pack
from lordfast.demo.pretrain.pictures import Kind, Pictures, drawn
from lordfast.demo.pretrain.vae import VaeConfig, train_vae
from lordfast.demo.quality import QualityConfig, measure
from lordfast.diffusion import resolve_device
from lordfast.profiling.machine import cpu_name
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
    unet_steps: int = 4_000
    """Optimiser steps of the UNet and the text encoder."""
    unet_batch_size: int = 16
    """Latents per step and process."""
    high_noise_steps: int = 500
    """Optimiser steps after that with half of the timesteps and most of the weight on high noise, where the large
    patches of colour are decided."""
    classifier_steps: int = 2_400
    """Optimiser steps of the attribute classifier."""
    classifier_batch_size: int = 32
    """Images per step and process."""
    lord_pictures: int = 192
    """Pictures that the demo's LoRD is trained on."""
    lord_steps: int = 400
    """Optimiser steps of the LoRD."""
    quality_pictures: int = 96
    """Pictures of each kind that the model card's figures are measured on."""


def run_pretrain(config: PretrainConfig) -> dict[str, Any]:
    """Run every stage into ``config.out``; finished ones are kept when resumed."""
    accelerator = make_accelerator(config.dtype, resolve_device(config.device))
    run = open_run(config, "pretrain", accelerator)
    finished = run.summary()
    if finished is not None:
        return finished

    def pictures(name: str, faces: int, landscapes: int) -> dict[str, Pictures]:
        seed = derive_seed(config.seed, name)
        counts: dict[Kind, int] = {"faces": faces, "landscapes": landscapes}

        def all_kinds() -> dict[str, Pictures]:
            return {kind: drawn(run.path / "data" / f"{name}-{kind}.npz", kind, n, seed) for kind, n in counts.items()}

        on_main(accelerator, lambda: all_kinds() and None)
        return all_kinds()

    training = pictures("training", config.faces, config.landscapes)
    held_out = pictures("held-out", config.held_out, config.held_out)
    together = training["faces"] + training["landscapes"]

    def recipe(
        name: str, steps: int, batch_size: int, lr: float, weight_decay: float, warmup: int = 100
    ) -> dict[str, Any]:
        """What every training has in common: a warm-up, then a cosine down to nothing."""
        return {
            "out": run.path / name,
            "seed": config.seed,
            "device": config.device,
            "dtype": config.dtype,
            "resume": True,
            "tensorboard": False,
            "steps": steps,
            "batch_size": batch_size,
            "lr": lr,
            "lr_schedule": "cosine",
            "warmup_steps": min(warmup, steps // 10),
            "weight_decay": weight_decay,
            "adam_beta2": 0.99,
        }

    vae = train_vae(VaeConfig(**recipe("vae", config.vae_steps, config.vae_batch_size, 2e-3, 1e-4)), together, held_out)
    latents = {"vae_folder": run.path / "vae" / "model", "latents_file": run.path / "latents.pt"}
    unet = train_denoiser(
        DenoiserConfig(**recipe("unet", config.unet_steps, config.unet_batch_size, 1e-3, 1e-3)), together, **latents
    )
    tuned = train_denoiser(
        DenoiserConfig(
            **recipe("unet-high-noise", config.high_noise_steps, config.unet_batch_size, 4e-4, 1e-3, warmup=30),
            start=run.path / "unet" / "model",
            max_weight=30.0,
            high_noise=0.5,
            ema_decay=0.99,
        ),
        together,
        **latents,
    )
    classifier = train_classifier(
        ClassifierConfig(**recipe("classifier", config.classifier_steps, config.classifier_batch_size, 2e-3, 1e-2)),
        training,
        held_out,
    )
    model = run.path / "model"

    def packed() -> None:
        if not model.exists():
            pack(
                run.path / "vae" / "model",
                run.path / "unet-high-noise" / "model",
                run.path / "classifier" / "model",
                model,
            )

    on_main(accelerator, packed)
    lord = train_lord(
        model,
        run.path / "lord",
        config.lord_steps,
        config.lord_pictures,
        {"seed": config.seed, "device": config.device, "resume": True},
        accelerator,
    )
    measured = on_main(
        accelerator,
        lambda: measure(QualityConfig(model=model, pictures=config.quality_pictures, out=run.path / "quality")),
    )
    summary = {
        "vae": vae,
        "unet": unet,
        "unet-high-noise": tuned,
        "classifier": classifier,
        "lord": lord,
        "quality": measured,
        "processes": accelerator.num_processes,
        "machine": cpu_name() if accelerator.device.type == "cpu" else torch.cuda.get_device_name(accelerator.device),
    }
    on_main(accelerator, lambda: write_card(model / "README.md", config, summary))
    return run.finish(summary)
