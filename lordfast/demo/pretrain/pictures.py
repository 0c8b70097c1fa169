"""The drawn pictures that the embedded model learns from, made once and kept on disk."""

from __future__ import annotations

import dataclasses
import io
import json
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lordfast.data import FaceAttributes, LandscapeAttributes, make_faces, make_landscapes
from lordfast.data.images import Uint8Image
from lordfast.data.procedural import ProceduralImage
from lordfast.files import write_atomic
from lordfast.pixels import to_tensor
from lordfast.training.progress import progress
from lordfast.training.seeds import derive_seed

Kind = Literal["faces", "landscapes"]
Attributes = FaceAttributes | LandscapeAttributes

CHUNK = 500
"""Pictures that share a seed; a set's first pictures do not depend on how many there are."""


@dataclass(frozen=True)
class Pictures:
    """Drawn pictures, uint8 (N, 64, 64, 3), and what each shows."""

    images: Uint8Image
    attributes: list[Attributes]

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, indices: Sequence[int]) -> torch.Tensor:
        """Float pixels (B, 3, 64, 64) in [-1, 1]."""
        return to_tensor([self.images[i] for i in indices])

    def __add__(self, other: Pictures) -> Pictures:
        return Pictures(np.concatenate([self.images, other.images]), self.attributes + other.attributes)


def draw(kind: Kind, n: int, seed: int) -> Pictures:
    """Draw `n` pictures of `kind`, each of another subject, in as many processes as there are cores."""
    jobs = [
        (kind, min(CHUNK, n - start), derive_seed(seed, "pictures", kind, start // CHUNK))
        for start in range(0, n, CHUNK)
    ]
    found: list[ProceduralImage] = []
    # Spawned, not forked: threads of torch's that hold locks would not exist in a fork.
    context = multiprocessing.get_context("spawn")
    workers = min(os.cpu_count() or 1, len(jobs))
    with ProcessPoolExecutor(workers, mp_context=context) as pool, progress(f"draw {kind}", n) as advance:
        for chunk in pool.map(_draw_chunk, jobs):
            found += chunk
            advance(len(chunk))
    return Pictures(np.stack([item.image for item in found]), [item.attributes for item in found])


def _draw_chunk(job: tuple[Kind, int, int]) -> list[ProceduralImage]:
    kind, n, seed = job
    return (make_faces if kind == "faces" else make_landscapes)(n, seed)


def drawn(path: Path, kind: Kind, n: int, seed: int) -> Pictures:
    """`draw` with the result kept in `path` (.npz): drawn only once."""
    if not path.exists():
        made = draw(kind, n, seed)
        buffer = io.BytesIO()
        np.savez(
            buffer, images=made.images, attributes=json.dumps([dataclasses.asdict(item) for item in made.attributes])
        )
        write_atomic(path, buffer.getvalue())
        return made
    cls = FaceAttributes if kind == "faces" else LandscapeAttributes
    with np.load(path) as stored:
        rows = json.loads(str(stored["attributes"]))
        return Pictures(stored["images"], [cls(**row) for row in rows])
