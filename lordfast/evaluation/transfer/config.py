"""The settings of ``lordfast transfer``, which of them go together, and the rows and columns that they name."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lordfast.training.config import RunConfig, check_choices

ORIGINAL = "original"
SIGNS = "random-signs"

# A folder's name on every file system, and short enough to label a table's row.
_NAME = re.compile(r"[\w+-][\w.+-]{0,59}")


@dataclass(kw_only=True)
class TransferConfig(RunConfig):
    """How far attacked images disturb image variation in other models and under other prompts.

    Every target model varies each original and its attacked twin: noises it part of the way and denoises it again
    (SDEdit), with the same noise for both. The more the two results differ, the better the attack transfers. Beside
    the attacks stands what random signs of the same size do.
    """

    originals: Path
    """Folder of the original images."""
    attacked: tuple[str, ...]
    """Folders of attacked twins, each as NAME=DIR or as DIR, which is called by its last part. An image's twin has its
    name, extension aside; images without a twin in every folder are left out."""
    to: tuple[str, ...]
    """Target models, each as NAME=MODEL or MODEL: a diffusers folder, a hub id, or demo."""
    prompts: tuple[str, ...] = ()
    """Prompts to vary the images under, a column each per target model; else each image's caption."""
    prompt: str | None = None
    """One caption for all images; else name.txt, metadata.jsonl or the like, or the empty prompt."""
    strength: float = 0.5
    """How far the images are noised, as a share of all timesteps: above 0, below 1."""
    steps: int = 25
    """Denoising steps."""
    guidance: float = 7.5
    """Classifier-free guidance scale; 1 turns it off."""
    resolution: int | None = None
    """Side in pixels at which the target models see the images; each model's own when left out."""
    batch_size: int = 8
    """Images per forward."""
    baseline: bool = True
    """Also vary images with random signs, as large in each image as its attack's largest change."""
    features: str = "vae"
    """What the Frechet distance compares: as for lordfast evaluate, vae, inception, package.module:factory, or a
    TorchScript file."""
    features_model: str = "demo"
    """The model of --features vae."""
    clip: str | None = None
    """A CLIP model, folder or hub id, for CLIP scores; without one, or where it can't be loaded, the report says so."""
    resamples: int = 1000
    """Of the bootstrap that gives 95 % confidence intervals over images (at most 200 for the Frechet distance); 0
    leaves the intervals out."""
    pictures: int = 4
    """How many images pictures.png shows."""
    skip_bad: bool = False
    """Go on without images that can't be read, naming each."""
    cache_dir: Path | None = None
    """Where text embeddings are kept; default: $LORDFAST_CACHE or ~/.cache/lordfast."""


@dataclass(frozen=True)
class Column:
    """A column of the matrix: a target model, under one of the prompts or (None) under each image's caption.

    Attributes:
        key: names its folder of outputs, as a POSIX path.
    """

    key: str
    model: str
    prompt: str | None = None

    @property
    def label(self) -> str:
        return self.model if self.prompt is None else f"{self.model}: {self.prompt}"


def columns_of(config: TransferConfig) -> list[Column]:
    """The columns that `config` asks for: models from left to right, and within each its prompts."""
    models = parse_named(config.to, "to")
    if not config.prompts:
        return [Column(name, name) for name in models]
    prompts = enumerate(config.prompts, start=1)
    numbered = [(f"prompt-{number}", prompt) for number, prompt in prompts]
    return [Column(f"{name}/{key}", name, prompt) for name in models for key, prompt in numbered]


def parse_named(specs: Sequence[str], argument: str) -> dict[str, str]:
    """``NAME=VALUE`` texts as name -> value; a text without ``NAME=`` goes by its last path component.

    Raises:
        ValueError: there is none; a name that is unfit for a folder, reserved, or comes twice (case aside); no value.
    """
    if not specs:
        raise ValueError(f"{argument}: expected at least one NAME=VALUE, got none")
    found: dict[str, str] = {}
    for spec in specs:
        name, equals, value = spec.partition("=")
        # A path may have an equals sign too, though hardly in its first part.
        if not equals or "/" in name:
            value = spec
            name = re.sub(r"[^\w.+-]", "-", Path(spec).resolve().name if spec.startswith(".") else Path(spec).name)
        if not value:
            raise ValueError(f"{argument}: {spec!r} gives nothing after its name; expected NAME=VALUE")
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{argument}: {name!r} in {spec!r} is no name; expected 1 to 60 letters, digits and ._+-, with no "
                "dot in front"
            )
        if argument == "attacked" and (name.casefold() == ORIGINAL or name.casefold().startswith(SIGNS)):
            raise ValueError(
                f"{argument}: the name {name!r} is taken by a row of the matrix; give it another, as NAME=DIR"
            )
        if name.casefold() in map(str.casefold, found):
            raise ValueError(f"{argument}: two are called {name!r}; give them different names, as NAME=VALUE")
        found[name] = value
    return found


def check_request(config: TransferConfig) -> None:
    """Raise ValueError unless the settings are in range and consistent."""
    check_choices(config)
    parse_named(config.attacked, "attacked")
    parse_named(config.to, "to")
    if config.prompts and config.prompt is not None:
        raise ValueError("prompts, prompt: both were given; expected prompts (a column each) or one prompt for all")
    if len(set(config.prompts)) != len(config.prompts):
        raise ValueError(f"prompts: expected different ones, got {list(config.prompts)}")
    if not 0 < config.strength < 1:
        raise ValueError(f"strength: expected a number above 0 and below 1, got {config.strength}")
    if not math.isfinite(config.guidance):
        raise ValueError(f"guidance: expected a finite number, got {config.guidance}")
    for name in ("steps", "batch_size"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(config, name)}")
    if config.pictures < 0:
        raise ValueError(f"pictures: expected 0 or more, got {config.pictures}")
    if config.resamples != 0 and config.resamples < 100:
        raise ValueError(f"resamples: expected 0 or at least 100, got {config.resamples}")
