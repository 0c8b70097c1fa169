"""What ``lordfast transfer`` reads and checks before it writes anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lordfast.data import load_image
from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.evaluation.clip import ClipScore
from lordfast.evaluation.features import load_features
from lordfast.evaluation.transfer.cells import Measures
from lordfast.evaluation.transfer.config import Column, TransferConfig, columns_of, parse_named
from lordfast.evaluation.transfer.twins import Twins, open_twins
from lordfast.evaluation.transfer.variation import Variation
from lordfast.training.run import check_apart


class Models:
    """Target models by name, of which one is in memory at a time."""

    def __init__(self, sources: dict[str, str], config: TransferConfig) -> None:
        self.sources, self._config = sources, config
        self._held: tuple[str, LatentDiffusion] | None = None

    def __call__(self, name: str) -> LatentDiffusion:
        if self._held is None or self._held[0] != name:
            # Let go before loading: two large models at once may not fit.
            self._held = None
            self._held = name, load_model(self.sources[name], device=self._config.device, dtype=self._config.dtype)
        return self._held[1]


@dataclass
class Plan:
    """Checked input.

    Attributes:
        sides: in pixels, at which each target model sees the images.
        without_clip: why there are no CLIP scores, or None.
    """

    twins: Twins
    columns: list[Column]
    models: Models
    sides: dict[str, int]
    variation: Variation
    measures: Measures
    without_clip: str | None


def make_plan(config: TransferConfig) -> Plan:
    """Open every folder, model and module once.

    Raises:
        ValueError, OSError: one of them can't be used; a folder to write that is, holds or lies in one to read.
    """
    attacked = {name: Path(folder) for name, folder in parse_named(config.attacked, "attacked").items()}
    sources = parse_named(config.to, "to")
    read = {"originals": config.originals}
    read |= {f"attacked {name}": folder for name, folder in attacked.items()}
    read |= {f"to {name}": Path(source) for name, source in sources.items()}
    check_apart(config, read)
    twins = open_twins(
        config.originals,
        attacked,
        prompt=config.prompt,
        baseline=config.baseline,
        skip_bad=config.skip_bad,
        seed=config.seed,
    )
    variation = Variation(config.strength, config.steps, config.guidance, config.seed)
    models = Models(sources, config)
    sides, device = {}, torch.device("cpu")
    # In reverse: the one that is needed first stays loaded.
    for name in reversed(sources):
        device, sides[name] = _check_model(models(name), config.resolution, variation)
    twins.warnings += _resampled(twins, {name: sides[name] for name in sources})
    measures = _measures(config, device, min(sides.values()))
    without_clip = None
    try:
        measures.clip = None if config.clip is None else ClipScore(config.clip, device)
    except ValueError as error:
        without_clip = str(error)
    if config.clip is None:
        without_clip = "no CLIP model was given (--clip)"
    return Plan(twins, columns_of(config), models, sides, variation, measures, without_clip)


def _check_model(model: LatentDiffusion, resolution: int | None, variation: Variation) -> tuple[torch.device, int]:
    """Where `model` is and which side it sees; a function, after which nobody but `Models` holds on to the model."""
    variation.start(model)
    return model.device, model.check_resolution(resolution)


def _resampled(twins: Twins, sides: dict[str, int]) -> list[str]:
    sizes = {load_image(path).shape[:2] for path in next(iter(twins.attacked.values()))}
    found = []
    for name, side in sides.items():
        other = sorted(sizes - {(side, side)})
        if other:
            found.append(
                f"{name} sees images of {_list(other)} pixels at {side} x {side}: resampling or cutting takes from an "
                "attack's effect"
            )
    return found


def _list(sizes: Sequence[tuple[int, ...]]) -> str:
    shown = [" x ".join(map(str, size)) for size in sizes[:3]]
    return ", ".join(shown) + (", ..." if len(sizes) > 3 else "")


def _measures(config: TransferConfig, device: torch.device, side: int) -> Measures:
    model = None
    if config.features == "vae":
        model = load_model(config.features_model, device=config.device, dtype=config.dtype)
    measures = Measures(
        features=load_features(config.features, model=model, device=device),
        device=device,
        side=None if model is None else model.resolution,
        clip=None,
        batch_size=config.batch_size,
        resamples=config.resamples,
        seed=config.seed,
    )
    # A module that doesn't fit is bad input: found here, before anything is written.
    measures.check(side)
    return measures
