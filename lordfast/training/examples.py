"""Training examples as the loop draws them: cached latents, their text, fresh noise and timesteps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import torch
from rich.markup import escape
from torch import Tensor

from lordfast.data import BadImageError, ImageRecord, list_images, load_images
from lordfast.data.notices import notice_of_all
from lordfast.diffusion import LatentDiffusion, TensorCache
from lordfast.diffusion.cache import cached_moments, cached_text
from lordfast.training.loop import Batches
from lordfast.training.progress import console, progress
from lordfast.training.team import Team

T = TypeVar("T")
CaptionMode = Literal["optional", "required", "ignore"]


@dataclass(kw_only=True)
class ImageOptions:
    """How a folder of images becomes square training images. Mixed into the configs that read one."""

    resolution: int | None = None
    """Side in pixels; the model's own when left out."""
    crop: Literal["center", "random"] = "center"
    """Which square of an image that is not square; the aspect ratio is never changed."""
    variants: int = 1
    """With --crop random: how many different crops of each image are drawn."""
    flip: bool = False
    """Also train on mirrored images."""
    skip_bad: bool = False
    """Go on without images that can't be read, naming each."""


def list_folder(
    folder: Path,
    argument: str,
    *,
    prompt: str | None = None,
    captions: CaptionMode = "optional",
    skip_bad: bool = False,
) -> list[ImageRecord]:
    """`list_images`, with errors that name the config's `argument`."""
    try:
        return list_images(folder, prompt=prompt, captions=captions, skip_bad=skip_bad)
    except (ValueError, OSError) as error:
        raise type(error)(f"{argument}: {error}") from error


def read_images(
    records: Sequence[ImageRecord], options: ImageOptions, resolution: int, *, seed: int
) -> list[tuple[ImageRecord, np.ndarray]]:
    """Every example of `records`: (record, uint8 image (resolution, resolution, 3)), crops and mirrors included.

    Raises:
        ValueError: options that contradict each other; an image that can't be read, without ``skip_bad``, or none
            that can.
    """
    if options.variants > 1 and options.crop != "random":
        raise ValueError(
            f"variants: {options.variants} crops of an image differ only with crop random, got crop {options.crop}"
        )
    found = list(
        load_images(
            records,
            resolution,
            crop=options.crop,
            seed=seed,
            variants=options.variants,
            skip_bad=options.skip_bad,
            on_bad=report_bad,
        )
    )
    if options.flip:
        found += [(record, np.ascontiguousarray(image[:, ::-1])) for record, image in found]
    return found


def report_bad(record: ImageRecord, error: Exception) -> None:
    """Name an image that ``skip_bad`` passes over."""
    # Paths may hold brackets, and a broken line can't be searched for.
    console.print(f"[yellow]skipped[/] {escape(str(error))}", highlight=False, soft_wrap=True)


def check_readable(
    records: Sequence[ImageRecord],
    read: Callable[[ImageRecord], T],
    *,
    skip_bad: bool,
    argument: str = "images",
    team: Team | None = None,
    part: bool = False,
) -> list[tuple[ImageRecord, T]]:
    """The records whose images can be read, each with what `read` says of it.

    Each image is decoded once and let go, to be read again when its turn comes: a large folder does not have to fit
    into memory, and a bad image shows before any work is done. The processes of a team share the images out.

    Args:
        part: the records are not all there are: that none can be read is no error.

    Raises:
        BadImageError: an image that can't be read, without `skip_bad`.
        ValueError: none can; it names the config's `argument`.
    """
    team = team or Team()
    mine = team.share(range(len(records)))

    def check() -> tuple[dict[int, T], BadImageError | None]:
        found, first_error = {}, None
        with progress("checking images", len(mine), show=team.is_main) as advance:
            for place in mine:
                try:
                    found[place] = read(records[place])
                except BadImageError as error:
                    if not skip_bad:
                        raise
                    first_error = first_error or error
                    report_bad(records[place], error)
                advance()
        return found, first_error

    parts = team.on_all(check)
    found = {place: what for part, _ in parts for place, what in part.items()}
    if records and not found and not part:
        first_error = next(error for _, error in parts if error is not None)
        raise ValueError(f"{argument}: none of the {len(records)} images could be read; the first: {first_error}")
    return [(records[place], found[place]) for place in sorted(found)]


def report_cut(model: LatentDiffusion, prompts: Sequence[str | None], what: str = "captions") -> None:
    """Say how many of `prompts` are longer than what the text encoders of `model` read, and name a part that is cut."""
    given = [prompt for prompt in prompts if prompt]
    cuts = [cut for prompt in given if (cut := model.cut_text(prompt))]
    if not cuts:
        return
    limits = ", ".join(f"{part}: {n}" for part, n in model.text_lengths.items() if any(part in cut for cut in cuts))
    lost = next(iter(cuts[0].values()))
    notice_of_all(
        f"{len(cuts)} of {len(given)} {what} have more tokens than {model.name} reads ({limits}); "
        f"the rest is not used, such as {lost if len(lost) < 80 else lost[:77] + '...'!r}"
    )


class LatentStore:
    """Latent moments of the examples, `mean` and `std`, each (N, C, h, w) on the CPU."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self.mean, self.std = mean, std

    @classmethod
    def of(cls, model: LatentDiffusion, images: Sequence[np.ndarray], cache: TensorCache) -> LatentStore:
        """The moments of uint8 images (H, W, 3), encoded once."""
        return cls(*cached_moments(model, images, cache))

    def __len__(self) -> int:
        return len(self.mean)

    def draw(self, index: int, generator: torch.Generator, sample: bool) -> Tensor:
        """Latents (C, h, w) of one example: the posterior mean, or a sample of it."""
        mean = self.mean[index]
        return mean + self.std[index] * torch.randn(mean.shape, generator=generator) if sample else mean


class TextStore:
    """Per example either cached conditioning rows, or token ids when the text encoders are trained.

    A prompt that many examples share is held once: a row is megabytes for some models.
    """

    def __init__(
        self, model: LatentDiffusion, prompts: Sequence[str], cache: TensorCache, trained: bool = False
    ) -> None:
        places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        self._places = [places[prompt] for prompt in prompts]
        if trained:
            self._rows = {name: value.cpu() for name, value in model.tokenize(list(places)).items()}
        else:
            self._rows = cached_text(model, list(places), cache)

    def __call__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        wanted = [self._places[index] for index in indices]
        return {name: value[wanted] for name, value in self._rows.items()}


def draw_noise(shape: torch.Size, timesteps: int, generator: torch.Generator) -> tuple[Tensor, int]:
    """Standard-normal noise of `shape` and a timestep t ~ U[0, timesteps)."""
    noise = torch.randn(shape, generator=generator)
    return noise, int(torch.randint(timesteps, (1,), generator=generator))


class Latents(Protocol):
    """The latents of examples."""

    def __len__(self) -> int: ...

    def draw(self, index: int, generator: torch.Generator, sample: bool) -> Tensor:
        """Latents (C, h, w) of one example: the posterior mean, or a sample of it."""
        ...


class LatentBatches:
    """Batches of ``latents, noise, timesteps, text`` over one folder of images."""

    def __init__(self, store: Latents, text: TextStore, timesteps: int, sample: bool = False) -> None:
        self.store, self.text, self.timesteps, self.sample = store, text, timesteps, sample

    def __len__(self) -> int:
        return len(self.store)

    def __call__(self, indices: Sequence[int], generators: Sequence[torch.Generator]) -> dict[str, Any]:
        latents, noises, times = [], [], []
        for index, generator in zip(indices, generators, strict=True):
            latents.append(self.store.draw(index, generator, self.sample))
            noise, time = draw_noise(latents[-1].shape, self.timesteps, generator)
            noises.append(noise)
            times.append(time)
        return {
            "latents": torch.stack(latents),
            "noise": torch.stack(noises),
            "timesteps": torch.tensor(times),
            "text": self.text(indices),
        }


class WithPrior:
    """Each batch of instance images followed by as many class images (DreamBooth's prior preservation)."""

    def __init__(self, instance: Batches, prior: Batches) -> None:
        self.instance, self.prior = instance, prior

    def __len__(self) -> int:
        return len(self.instance)

    def __call__(self, indices: Sequence[int], generators: Sequence[torch.Generator]) -> dict[str, Any]:
        first = self.instance(indices, generators)
        drawn = [int(torch.randint(len(self.prior), (1,), generator=g)) for g in generators]
        second = self.prior(drawn, generators)
        return _merge(first, second, lambda a, b: torch.cat([a, b]))


def _merge(first: dict[str, Any], second: dict[str, Any], join: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Any]:
    return {
        key: _merge(value, second[key], join) if isinstance(value, dict) else join(value, second[key])
        for key, value in first.items()
    }
