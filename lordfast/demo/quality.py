"""How good the embedded model is: ``python -m lordfast.demo.quality`` prints it, and fails below the gate.

Reconstruction is measured on pictures that were not trained on, and what the model draws by what the attribute
classifier sees in it, against what the captions ask for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lordfast.data import image_grid, make_faces, make_landscapes, save_png
from lordfast.data.images import Uint8Image
from lordfast.data.procedural import ProceduralImage
from lordfast.diffusion.resolve import DEMO_MODEL
from lordfast.files import folder_bytes, write_atomic
from lordfast.pixels import to_tensor, to_uint8
from lordfast.training.seeds import derive_seed

MAX_BYTES = 15_000_000
PSNR_FLOORS = {"faces": 31.0, "landscapes": 33.0}
"""dB, mean over held-out pictures."""
AGREEMENT_FLOORS = {
    "hair_color": 0.9,
    "skin": 0.7,
    "background": 0.9,
    "time": 0.9,
    "season": 0.9,
    "ground": 0.9,
}
"""Share of drawn pictures that show what the caption asks for; chance is 1/6, 1/4, 1/6, 1/4, 1/4, 1/2."""


@dataclass(kw_only=True)
class QualityConfig:
    """Measure a model of drawn pictures: reconstruction, agreement with captions, size."""

    model: Path = DEMO_MODEL
    """Folder of the model, with its classifier."""
    pictures: int = 64
    """Of each kind, to reconstruct and to draw."""
    steps: int = 25
    """Sampler steps."""
    seed: int = 0
    """Of the pictures and of the sampler's noise."""
    out: Path | None = None
    """Folder for quality.json and grids of pictures."""


@torch.no_grad()
def reconstruct(vae: Any, images: Uint8Image) -> Uint8Image:
    """Encode and decode images (N, H, W, 3) with a diffusers VAE, through the posterior's mean."""
    parts = []
    for start in range(0, len(images), 50):
        pixels = to_tensor(images[start : start + 50]).to(vae.device, vae.dtype)
        parts.append(to_uint8(vae.decode(vae.encode(pixels).latent_dist.mean).sample))
    return np.concatenate(parts)


def psnr(one: Uint8Image, other: Uint8Image) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each pair of images (N, H, W, 3): 10 log10(255^2 / mean square error)."""
    error = (one.astype(np.float64) - other.astype(np.float64)) ** 2
    return 10 * np.log10(255**2 / error.mean(axis=(1, 2, 3)))


def measure(config: QualityConfig) -> dict[str, Any]:
    """PSNR per kind, agreement per attribute, bytes; with ``config.out`` also grids of what was measured.

    Raises:
        ValueError: a folder that holds no such model.
    """
    from lordfast.demo.agreement import caption_agreement
    from lordfast.demo.classifier import load_classifier
    from lordfast.diffusion import load_model
    from lordfast.diffusion.sampling import generate

    model = load_model(config.model, device="cpu")
    classifier = load_classifier(config.model / "classifier")
    found: dict[str, Any] = {"bytes": folder_bytes(config.model), "psnr": {}, "agreement": {}}
    sets: dict[str, Sequence[ProceduralImage]] = {
        "faces": make_faces(config.pictures, derive_seed(config.seed, "quality", "faces")),
        "landscapes": make_landscapes(config.pictures, derive_seed(config.seed, "quality", "landscapes")),
    }
    for kind, pictures in sets.items():
        images, captions = np.stack([item.image for item in pictures]), [item.caption for item in pictures]
        again = reconstruct(model.vae, images)
        found["psnr"][kind] = round(float(psnr(again, images).mean()), 2)
        drawn = generate(model, captions, seed=config.seed, steps=config.steps, guidance=3.0)
        found["agreement"][kind] = caption_agreement(classifier, drawn, captions)
        if config.out is not None:
            rows = [list(some[i : i + 8]) for i in (0, 8) for some in (images, again)]
            save_png(image_grid(rows, labels=["drawn", "reconstructed"] * 2, scale=2), config.out / f"vae-{kind}.png")
            heads = [caption.removeprefix("a photo of a ") for caption in captions[:8]]
            rows = [drawn[i : i + 8] for i in range(0, min(len(drawn), 32), 8)]
            save_png(image_grid(rows, scale=2), config.out / f"generated-{kind}.png")
            named = image_grid([drawn[:8]], column_labels=heads, scale=2)
            save_png(named, config.out / f"captions-{kind}.png")
    if config.out is not None:
        write_atomic(config.out / "quality.json", (json.dumps(found, indent=2) + "\n").encode())
    return found


def failures(found: dict[str, Any], slack: float = 0.0) -> list[str]:
    """What of `measure` misses the gate, a sentence each; `slack` is taken off the shares, for few pictures."""
    said = []
    if found["bytes"] > MAX_BYTES:
        said.append(f"the model has {found['bytes']} bytes; at most {MAX_BYTES} are allowed")
    for kind, least in PSNR_FLOORS.items():
        if found["psnr"][kind] < least:
            said.append(f"PSNR of {kind} is {found['psnr'][kind]:.2f} dB; at least {least:.0f} are asked for")
    agreement = {name: row for kind in found["agreement"].values() for name, row in kind.items()}
    for name, share in AGREEMENT_FLOORS.items():
        floor = share - slack
        if agreement[name]["agreement"] < floor:
            said.append(f"{name} agrees with {agreement[name]['agreement']:.0%} of captions; {floor:.0%} are asked for")
    return said


def main() -> int:
    """Measure, print, and judge."""
    import tyro
    from rich.console import Console
    from rich.table import Table

    config = tyro.cli(QualityConfig, prog="python -m lordfast.demo.quality")
    try:
        found = measure(config)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    console = Console()
    console.print(f"size: {found['bytes'] / 1e6:.2f} MB")
    for kind, value in found["psnr"].items():
        console.print(f"reconstruction of {kind}: {value:.2f} dB")
    table = Table(title=f"Do {config.pictures} drawn pictures of each kind show what the caption asks for?")
    for title in ("attribute", "agree", "95 % interval", "chance", "captions"):
        table.add_column(title, justify="left" if title == "attribute" else "right")
    for kind in found["agreement"].values():
        for name, row in kind.items():
            interval = f"{row['low']:.1%} to {row['high']:.1%}"
            table.add_row(name, f"{row['agreement']:.1%}", interval, f"{row['chance']:.1%}", str(row["n"]))
    console.print(table)
    missed = failures(found)
    for text in missed:
        console.print(f"[red]below the gate:[/] {text}")
    if not missed:
        console.print("[green]meets the gate[/]")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
