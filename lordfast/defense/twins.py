"""The perturbed twins of Stage 1's images: made by adversaries or found in folders, once or again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lordfast.attacks.folder import Job, attack_images
from lordfast.data import ImageRecord, load_image, output_names
from lordfast.defense.adversaries import Adversary, assignment, at_refresh
from lordfast.defense.objective import PairedBatches
from lordfast.diffusion import LatentDiffusion, TensorCache
from lordfast.training.examples import LatentStore, read_images
from lordfast.training.loop import total_steps
from lordfast.training.seeds import derive_seed
from lordfast.training.step import effective_batch
from lordfast.training.team import Team

if TYPE_CHECKING:
    from lordfast.defense.stage1 import Stage1Config

Example = tuple[ImageRecord, np.ndarray]


def find_twins(
    folders: Sequence[Path], records: Sequence[ImageRecord], found: Sequence[Example], config: Stage1Config, side: int
) -> list[list[np.ndarray]]:
    """The ready-made twin of every example in each folder, by the names that ``lordfast attack`` gives its results.

    Args:
        records: all images of ``config.data``, which those names depend on.
        found: the examples made of them, as `read_images` puts them in order.

    Raises:
        ValueError: a folder lacks twins, or holds nothing but the clean images; random crops, which would show other
            parts of the twins than of the images.
        BadImageError: a twin can't be read.
    """
    if folders and config.crop == "random":
        raise ValueError("perturbed, crop: twins are found by the images' names; expected crop center")
    outputs = dict(zip((record.name for record in records), output_names(records), strict=True))
    used = list({record.name: record for record, _ in found}.values())
    each = []
    for folder in folders:
        paths = [folder / outputs[record.name] for record in used]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise ValueError(
                f"perturbed: {folder} lacks the twins of {len(missing)} of {len(paths)} images, the first of them "
                f"{missing[0].name}"
            )
        twins = [replace(record, path=path) for record, path in zip(used, paths, strict=True)]
        options = replace(config, skip_bad=False)
        each.append([image for _, image in read_images(twins, options, side, seed=config.seed)])
        if all(map(np.array_equal, each[-1], (image for _, image in found))):
            raise ValueError(f"perturbed: {folder} holds the clean images; expected perturbed ones of the same names")
    return each


class Twins:
    """The perturbed twin of every example (Eq. 6), at first and at every refresh.

    Args:
        ready: twins that are there already, a list for each adversary that left some: these come after `adversaries`.
        folder: where what is made is kept, itself or, where there are refreshes, in ``epoch-000`` and so on.
    """

    def __init__(
        self,
        model: LatentDiffusion,
        found: Sequence[Example],
        adversaries: Sequence[Adversary],
        ready: Sequence[Sequence[np.ndarray]],
        config: Stage1Config,
        folder: Path,
        accelerator: Any,
        cache: TensorCache,
    ) -> None:
        self._model, self._found, self._config = model, found, config
        self._adversaries, self._ready = adversaries, ready
        self._folder, self._team, self._cache = folder, Team(accelerator), cache

    def folder(self, refresh: int) -> Path:
        """Where the twins of a refresh are."""
        every = self._config.refresh_every
        return self._folder / f"epoch-{refresh * every:03d}" if every else self._folder

    def made_by(self, refresh: int) -> list[int]:
        """Which adversary each example's twin is of."""
        count = len(self._adversaries) + len(self._ready)
        return assignment(len(self._found), count, self._config.seed, refresh)

    def are_kept(self, refresh: int) -> bool:
        """Whether all twins of a refresh that are made here are there."""
        mine = [i for i, which in enumerate(self.made_by(refresh)) if which < len(self._adversaries)]
        return all((self.folder(refresh) / _name(i)).exists() for i in mine)

    def make(self, refresh: int = 0) -> list[np.ndarray]:
        """The twins, perturbed on the model as it is, by all processes together, and kept; those there are stay.

        Raises:
            ValueError: the folder holds twins of other images; a budget changes none of them.
            Interrupted: on Ctrl-C, with finished ones saved.
        """
        config, folder, found = self._config, self.folder(refresh), self._found
        seed = derive_seed(config.seed, "refresh", refresh)
        adversaries = at_refresh(self._adversaries, seed) if refresh else self._adversaries
        whose = self.made_by(refresh)
        twins: list[np.ndarray] = [
            found[i][1] if which < len(adversaries) else self._ready[which - len(adversaries)][i]
            for i, which in enumerate(whose)
        ]
        for number, one in enumerate(adversaries):
            mine = [i for i, which in enumerate(whose) if which == number]
            jobs = [Job.of(found[i][0], _name(i), found[i][1]) for i in mine]
            attack_images(
                self._model,
                jobs,
                one.loss,
                one.settings,
                folder,
                batch_size=config.attack_batch_size,
                cache=self._cache,
                # Within the training there is a progress bar already.
                show=refresh == 0,
                team=self._team,
            )
            for i in mine:
                twins[i] = load_image(folder / _name(i))
            budget = one.settings.budget
            if mine and budget.eps > 0 and all(np.array_equal(twins[i], found[i][1]) for i in mine):
                given = config.eps if not config.adversaries else f"{budget.eps:g} of adversary {one.word!r}"
                raise ValueError(
                    f"eps: within {given} ({budget.norm}) no image changed by a single grey level; expected a larger "
                    "one"
                )
        return twins


class Refreshing:
    """Perturbs the images anew every so many epochs, before a step's batches are drawn.

    Args:
        settle: called afterwards: sends off what only the perturbation needs.
    """

    def __init__(
        self,
        twins: Twins,
        batches: PairedBatches,
        model: LatentDiffusion,
        config: Stage1Config,
        settle: Callable[[], Any],
    ) -> None:
        self._twins, self._batches, self._model, self._config, self._settle = twins, batches, model, config, settle

    def refresh(self, step: int) -> int:
        """How many refreshes there have been before a step, by the epoch of its first example."""
        return _epoch(self._config, len(self._batches), step) // self._config.refresh_every

    def due(self, step: int) -> bool:
        """Whether there is one right before this step."""
        return step > 0 and self.refresh(step) != self.refresh(step - 1)

    def __call__(self, step: int) -> None:
        """Have the twins that belong to a step in the batches.

        Raises:
            ValueError: twins were made before a step that is past, and are gone: the model is another one by now.
        """
        refresh = self.refresh(step)
        if refresh == 0:
            return
        if not self.due(step) and not self._twins.are_kept(refresh):
            raise ValueError(
                f"resume: {self._twins.folder(refresh)} lacks twins, and the model that they were made on has been "
                "trained since; expected all of them, or --overwrite"
            )
        twins = self._twins.make(refresh)
        self._batches.perturbed = LatentStore.of(self._model, twins, TensorCache(self._config.cache_dir))
        self._settle()


def check_refresh(config: Stage1Config, examples: int) -> None:
    """Raise a ValueError for refreshes none of which comes before the last step."""
    steps = total_steps(config, examples, 1)
    last = _epoch(config, examples, steps - 1)
    if config.refresh_every > last:
        most = f"at most {last}, a longer run, or 0" if last else "a longer run, or 0"
        raise ValueError(
            f"refresh_every: expected {most}; got {config.refresh_every} epochs, and the last of {steps} steps on "
            f"{examples} examples begins after {last}"
        )


def _epoch(config: Stage1Config, examples: int, step: int) -> int:
    """Whole epochs before a step's first example, in the one process that refreshes need."""
    return step * effective_batch(config, 1) // examples


def _name(i: int) -> str:
    return f"{i:06d}.png"
