"""Who or where a drawn picture is, as ``lordfast evaluate --identity lordfast.demo.identity:faces`` asks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from lordfast.data import fit_image
from lordfast.demo.agreement import FACE_IDENTITY, LANDSCAPE_IDENTITY, shown
from lordfast.demo.classifier import HEADS, KIND, SIZE, load_classifier
from lordfast.pixels import Uint8Image

Embed = Callable[[Uint8Image], npt.NDArray[np.float64] | None]


def faces() -> Embed:
    """What the attribute classifier sees of what a person keeps from picture to picture; None in a landscape."""
    return _attributes("face", FACE_IDENTITY)


def landscapes() -> Embed:
    """What it sees of what a place keeps; None in a portrait."""
    return _attributes("landscape", LANDSCAPE_IDENTITY)


def _attributes(kind: str, names: tuple[str, ...]) -> Embed:
    """A picture's attributes as one indicator per value, so that the cosine of two is the share that agrees.

    Bald people have no hair colour: among one bald and one other person, it is the geometric mean of the two shares.
    """
    classifier = load_classifier()

    def embed(image: Uint8Image) -> npt.NDArray[np.float64] | None:
        seen = shown(classifier, [fit_image(image, SIZE)])[0]
        if seen[KIND] != kind:
            return None
        return np.array([float(seen.get(name) == value) for name in names for value in HEADS[name]])

    return embed
