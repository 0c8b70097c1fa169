"""Seeded sets of procedural faces and landscapes, and writing them as a folder of images with captions."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lordfast.data.drawing import Array
from lordfast.data.faces import FaceAttributes, FaceIdentity, draw_face, draw_identity, face_caption
from lordfast.data.images import Uint8Image, save_png
from lordfast.data.landscapes import LandscapeAttributes, Scene, draw_landscape, draw_scene, landscape_caption
from lordfast.files import write_atomic


@dataclass(frozen=True, eq=False)
class ProceduralImage:
    """One drawn picture: uint8 RGB (S, S, 3), its caption and what it shows."""

    image: Uint8Image
    caption: str
    attributes: FaceAttributes | LandscapeAttributes


def make_faces(
    n: int,
    seed: int,
    identity: FaceIdentity | None = None,
    *,
    token: str | None = None,
    vary_captions: bool = False,
    size: int = 64,
) -> list[ProceduralImage]:
    """Draw ``n`` faces, each from a generator of its own: the first k do not depend on ``n``.

    Args:
        n: how many.
        seed: of all of them.
        identity: one person for all pictures; each shows another one if ``None``.
        token: a rare word to put before "person" in the captions.
        vary_captions: make some captions vague, as `face_caption` does with a generator; else all are full.
        size: pixels a side.
    """

    def draw(rng: np.random.Generator) -> ProceduralImage:
        image, attributes = draw_face(draw_identity(rng) if identity is None else identity, rng, size=size)
        caption = face_caption(attributes, rng if vary_captions else None, token)
        return ProceduralImage(_to_levels(image), caption, attributes)

    return _draw_each(draw, n, seed)


def make_landscapes(
    n: int,
    seed: int,
    scene: Scene | None = None,
    *,
    token: str | None = None,
    vary_captions: bool = False,
    size: int = 64,
) -> list[ProceduralImage]:
    """Draw ``n`` landscapes, each from a generator of its own: the first k do not depend on ``n``.

    Args:
        n: how many.
        seed: of all of them.
        scene: one place for all pictures; each shows another one if ``None``.
        token: a rare word to put before "landscape" in the captions.
        vary_captions: make some captions vague, as `landscape_caption` does with a generator; else all are full.
        size: pixels a side.
    """

    def draw(rng: np.random.Generator) -> ProceduralImage:
        image, attributes = draw_landscape(draw_scene(rng) if scene is None else scene, rng, size)
        caption = landscape_caption(attributes, rng if vary_captions else None, token)
        return ProceduralImage(_to_levels(image), caption, attributes)

    return _draw_each(draw, n, seed)


@dataclass(frozen=True)
class DrawnSubject:
    """A person or a place that any number of pictures can be drawn of.

    Attributes:
        prompt: for a LoRA of it, with a rare token.
        draw: (n, seed) -> that many pictures.
    """

    prompt: str
    draw: Callable[[int, int], list[ProceduralImage]]

    @classmethod
    def of(cls, number: int, *, landscape: bool = False) -> DrawnSubject:
        """The person, or with `landscape` the place, of a number >= 0."""
        rng = np.random.default_rng(number)
        if landscape:
            scene = draw_scene(rng)
            return cls("a photo of a sks landscape", lambda n, seed: make_landscapes(n, seed, scene))
        person = draw_identity(rng)
        return cls("a photo of a sks person", lambda n, seed: make_faces(n, seed, person))


def write_folder(images: Sequence[ProceduralImage], folder: str | Path) -> list[Path]:
    """Write 00000.png, 00001.png, ... with the captions in 00000.txt, ...; return the PNGs' paths.

    Every file appears whole, and a caption before its image: a folder that was interrupted is still a valid one.
    """
    paths = []
    for index, item in enumerate(images):
        path = Path(folder) / f"{index:05d}.png"
        write_atomic(path.with_suffix(".txt"), f"{item.caption}\n")
        save_png(item.image, path)
        paths.append(path)
    return paths


def write_folder_once(folder: str | Path, draw: Callable[[], Sequence[ProceduralImage]]) -> None:
    """`write_folder` of what `draw` gives, unless `folder` exists; it appears whole or not at all."""
    folder = Path(folder)
    if not folder.exists():
        temporary = folder.with_name(f".{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        write_folder(draw(), temporary)
        temporary.rename(folder)


def _draw_each(draw: Callable[[np.random.Generator], ProceduralImage], n: int, seed: int) -> list[ProceduralImage]:
    if n < 0:
        raise ValueError(f"n: expected a number of images >= 0, got {n}")
    return [draw(np.random.default_rng(child)) for child in np.random.SeedSequence(seed).spawn(n)]


def _to_levels(image: Array) -> Uint8Image:
    return np.rint(image * 255).astype(np.uint8)
