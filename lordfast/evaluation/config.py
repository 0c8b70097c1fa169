"""The settings of ``lordfast evaluate``, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lordfast.training.config import RunConfig


@dataclass(kw_only=True)
class EvaluateConfig(RunConfig):
    """Measure images: generated against reference, attacked against originals, or lambda as an attack detector.

    --generated with --reference gives the distances between the two sets, PSNR and SSIM of the pairs whose names
    match, and the high frequencies of both. --lord with --clean and --attacked gives the AUROC of lambda. Both may be
    asked for at once.
    """

    generated: Path | None = None
    """Folder of generated (or attacked) images."""
    reference: Path | None = None
    """Folder of images to compare them with."""
    distribution: bool = True
    """Frechet distance and kernel distance (KID) between the two folders."""
    paired: Literal["auto", "on", "off"] = "auto"
    """PSNR, SSIM and largest change of pairs with the same name, sub-folder included and extension aside, the
    reference centre-cropped to its partner's size. auto: where any names match."""
    frequency: bool = True
    """Share and amplitude of the high frequencies in both folders, each image at its own size: attacks add them."""
    features: str = "vae"
    """What the distances compare: vae (the encoder of --model, offline, a coarse stand-in for Inception), inception
    (needs torch-fidelity and downloads weights), package.module:factory (called without arguments, gives an nn.Module
    from uint8 (B, 3, H, W) to (B, F)), or a TorchScript file of such a module."""
    kid_subsets: int = 100
    """Random subsets that KID is averaged over; one where a subset is all there is."""
    kid_subset_size: int = 1000
    """Images of each set in a subset; at most as many as the smaller set has."""
    resamples: int = 1000
    """Of the bootstrap that gives 95 % confidence intervals over images (at most 200 for the Frechet distance); 0
    leaves the intervals of distances and frequencies out."""
    lord: Path | None = None
    """The run folder of lordfast stage1, or any folder with a saved LoRD, whose lambda is tested."""
    clean: Path | None = None
    """Folder of clean images."""
    attacked: Path | None = None
    """Folder of attacked images; those with a clean image's name get the same noise and caption as their twin."""
    timesteps: tuple[int, ...] = (20, 200, 600)
    """Noise levels at which lambda is read."""
    prompt: str | None = None
    """One caption for all images when reading lambda; else name.txt, metadata.jsonl, or the empty prompt."""
    model: str = "demo"
    """The model of --features vae and of --lord: a diffusers folder, a hub id, or demo."""
    resolution: int | None = None
    """Side in pixels to which images are brought for features and lambda: the model's own when left out; for other
    features than vae, the shorter side of the first generated image."""
    batch_size: int = 8
    """Images per forward."""
    skip_bad: bool = False
    """Go on without images that can't be read, naming each."""


def check_request(config: EvaluateConfig) -> None:
    """Raise a ValueError unless `config` asks for something, completely, with numbers in range."""
    sets = {"generated": config.generated, "reference": config.reference}
    gates = {"lord": config.lord, "clean": config.clean, "attacked": config.attacked}
    for group in (sets, gates):
        missing = [name for name, value in group.items() if value is None]
        if missing and len(missing) < len(group):
            given = " and ".join(f"--{name}" for name in group if name not in missing)
            raise ValueError(f"{missing[0]}: {given} needs {' and '.join(f'--{name}' for name in missing)} too")
    if config.generated is None and config.lord is None:
        raise ValueError(
            "nothing to measure: give --generated and --reference (distances, and PSNR and SSIM of pairs), or --lord, "
            "--clean and --attacked (lambda as a detector), or all five"
        )
    if config.generated is not None and not (config.distribution or config.frequency) and config.paired == "off":
        raise ValueError(
            "distribution, paired, frequency: all are off; nothing is left to measure in --generated and --reference"
        )
    for name in ("batch_size", "kid_subsets"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")
    if config.resamples != 0 and config.resamples < 100:
        raise ValueError(f"resamples: expected 0 or at least 100, got {config.resamples}")
    if config.kid_subset_size < 2:
        raise ValueError(f"kid_subset_size: expected at least 2, got {config.kid_subset_size}")
    if config.resolution is not None and config.resolution < 1:
        raise ValueError(f"resolution: expected a positive number of pixels, got {config.resolution}")
