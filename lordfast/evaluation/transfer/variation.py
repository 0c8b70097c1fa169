"""Image variation by a target model: originals and their versions, all with the same noise, into PNGs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lordfast.data import fit_image, save_png
from lordfast.diffusion import LatentDiffusion, TensorCache
from lordfast.diffusion.cache import cached_text
from lordfast.diffusion.editing import noise_and_denoise
from lordfast.evaluation.transfer.config import ORIGINAL, Column
from lordfast.evaluation.transfer.twins import Row, Twins
from lordfast.pixels import Uint8Image, to_tensor, to_uint8
from lordfast.training.results import memory_advice
from lordfast.training.seeds import derived_generator


@dataclass(frozen=True)
class Variation:
    """How images are varied.

    Attributes:
        strength: noise level to start from, as a share of the model's timesteps.
        steps: denoising steps from there.
        guidance: classifier-free guidance scale.
        seed: with an image's name, determines its noise.
    """

    strength: float
    steps: int
    guidance: float
    seed: int

    def start(self, model: LatentDiffusion) -> int:
        """The timestep that images are noised to.

        Raises:
            ValueError: there are fewer timesteps below it than steps.
        """
        start = max(1, round(self.strength * (model.timesteps - 1)))
        if self.steps > start:
            raise ValueError(
                f"steps: expected at most {start}, the timestep that strength {self.strength} starts from in "
                f"{model.name}, got {self.steps}"
            )
        return start


@torch.no_grad()
def vary(
    model: LatentDiffusion,
    images: Sequence[Uint8Image],
    names: Sequence[str],
    prompts: Sequence[str],
    settings: Variation,
    cache: TensorCache,
) -> list[Uint8Image]:
    """Encode, noise, denoise and decode a batch of uint8 images (H, W, 3) of the model's size.

    An image's noise comes from (seed, its name): it is the same for all versions of an image and under all prompts.

    Raises:
        ValueError: the batch does not fit into the device's memory; a result that is no number.
    """

    def embed(texts: Sequence[str]) -> dict[str, torch.Tensor]:
        return {name: value.to(model.device) for name, value in cached_text(model, texts, cache).items()}

    with memory_advice(f"{len(images)} images of side {len(images[0])}", model.device, "or dtype bf16"):
        latents = model.encode(to_tensor(list(images)).to(model.device))
        shape = latents.shape[1:]
        noise = torch.stack(
            [torch.randn(shape, generator=derived_generator(settings.seed, "transfer", name)) for name in names]
        )
        edited = noise_and_denoise(
            model,
            latents,
            noise.to(latents),
            embed(prompts),
            start=settings.start(model),
            steps=settings.steps,
            guidance=settings.guidance,
            unconditional=embed([""]) if settings.guidance != 1 else None,
        )
        return list(to_uint8(model.decode(edited)))


def draw_outputs(
    model: Callable[[], LatentDiffusion],
    column: Column,
    twins: Twins,
    row: Row | None,
    side: int,
    settings: Variation,
    folder: Path,
    *,
    batch_size: int,
    cache: TensorCache,
    on_batch: Callable[[int], None],
) -> None:
    """Vary the images of `row`, or the originals for None, into ``folder/NAME.png``.

    Outputs that exist are kept: a batch runs again only if one of its files is missing, in the same composition, so
    a resumed folder equals an uninterrupted one bit for bit.

    Args:
        model: called only where something is missing.
        on_batch: called with the size of each finished batch; what it raises ends the work between two batches.
    """
    for start in range(0, len(twins), batch_size):
        batch = range(start, min(start + batch_size, len(twins)))
        paths = [folder / twins.names[i] for i in batch]
        if not all(path.exists() for path in paths):
            images = [twins.original(i) if row is None else twins.version(row, i) for i in batch]
            prompts = [prompt_of(column, twins, i) or "" for i in batch]
            names = [twins.names[i] for i in batch]
            made = vary(model(), [fit_image(image, side) for image in images], names, prompts, settings, cache)
            for path, image in zip(paths, made, strict=True):
                save_png(image, path)
        on_batch(len(batch))


def prompt_of(column: Column, twins: Twins, index: int) -> str | None:
    """What image `index` is varied under in `column`; None where it has no caption."""
    return column.prompt if column.prompt is not None else twins.captions[index]


def outputs_folder(run: Path, column: Column, row: Row | None) -> Path:
    """Where `draw_outputs` writes in the run folder `run`."""
    return run / "outputs" / column.key / (ORIGINAL if row is None else row.name)
