"""Do pictures show what their caption asks for, and are they still of the same person or place?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lordfast.data import FaceAttributes, LandscapeAttributes
from lordfast.data.faces import BACKGROUNDS, EXPRESSIONS, HAIR_COLORS, HAIR_STYLES, SKINS
from lordfast.data.images import Uint8Image
from lordfast.data.landscapes import GROUNDS, SEASONS, TIMES
from lordfast.demo.classifier import HEADS, KIND, AttributeClassifier, Value, labels_of
from lordfast.evaluation.intervals import mean_interval, wilson_interval

FACE_IDENTITY = ("hair_color", "hair_style", "skin", "glasses", "beard", "hat")
"""What a person keeps from photo to photo."""
LANDSCAPE_IDENTITY = ("time", "season", "ground", "mountains", "sun", "trees")
"""What a place keeps from photo to photo."""
IDENTITY = (*FACE_IDENTITY, *LANDSCAPE_IDENTITY)


def _one_of(name: str, values: Sequence[str]) -> str:
    return f"(?P<{name}>{'|'.join(map(re.escape, values))})"


_TOKEN = r"(?:\S+ )?"
_HAIR = "|".join(style for style in HAIR_STYLES if style != "bald")
_FACE = re.compile(
    rf"a photo of a (?:{_one_of('expression', EXPRESSIONS)} )?{_TOKEN}person"
    rf"(?P<details> with (?:bald head|(?P<hair_style>{_HAIR}) {_one_of('hair_color', tuple(HAIR_COLORS))} hair)"
    rf"(?: and {_one_of('skin', SKINS)} skin)?"
    r"(?P<glasses> and glasses)?(?P<beard> and beard)?(?P<hat> and hat)?"
    rf"(?: on a {_one_of('background', tuple(BACKGROUNDS))} background)?)?"
)
_LANDSCAPE = re.compile(
    rf"a photo of an? (?:{_TOKEN}landscape|{_one_of('season', tuple(SEASONS))} {_TOKEN}landscape"
    rf" at {_one_of('time', tuple(TIMES))}"
    rf"(?P<details> with (?P<mountains>mountains and )?{_one_of('ground', GROUNDS)}"
    r"(?P<sun> and (?:sun|moon))?(?P<trees> and trees)?)?)"
)


def wanted(caption: str) -> dict[str, Value]:
    """What a picture of `caption` has to show: attribute -> value, its "kind" among them.

    A caption that goes into details asks also for what it doesn't name: no glasses, no smile, no trees. What
    `face_caption` leaves out of some captions (skin, background), and everything but the kind in a vague one, is left
    to the picture.

    Args:
        caption: as `face_caption` or `landscape_caption` write them, with or without a rare token.

    Raises:
        ValueError: any other text.
    """
    face = _FACE.fullmatch(caption)
    if face is not None:
        return _wanted_face(face.groupdict())
    landscape = _LANDSCAPE.fullmatch(caption)
    if landscape is not None:
        return _wanted_landscape(landscape.groupdict())
    raise ValueError(f"caption: expected one of a drawn face or landscape, got {caption!r}")


def _wanted_face(found: dict[str, str | None]) -> dict[str, Value]:
    asked: dict[str, Value] = {KIND: "face"}
    details = found["details"] is not None
    if details or found["expression"]:
        asked["expression"] = found["expression"] or "neutral"
    if details:
        asked["hair_style"] = found["hair_style"] or "bald"
        asked |= {name: found[name] is not None for name in ("glasses", "beard", "hat")}
    asked |= {name: value for name in ("hair_color", "skin", "background") if (value := found[name])}
    return asked


def _wanted_landscape(found: dict[str, str | None]) -> dict[str, Value]:
    asked: dict[str, Value] = {KIND: "landscape"}
    asked |= {name: value for name in ("season", "time", "ground") if (value := found[name])}
    if found["details"] is not None:
        asked |= {name: found[name] is not None for name in ("mountains", "sun", "trees")}
    return asked


def shown(classifier: AttributeClassifier, images: Sequence[Uint8Image]) -> list[dict[str, Value]]:
    """`AttributeClassifier.predict` of uint8 images (64, 64, 3)."""
    found: list[dict[str, Value]] = []
    for start in range(0, len(images), 100):
        batch = torch.from_numpy(np.stack(images[start : start + 100])).permute(0, 3, 1, 2)
        found += classifier.predict(batch.to(classifier.feature_mean.device))
    return found


def caption_agreement(
    classifier: AttributeClassifier, images: Sequence[Uint8Image], captions: Sequence[str], *, level: float = 0.95
) -> dict[str, dict[str, Any]]:
    """How often pictures show what their captions ask for, attribute by attribute.

    Args:
        images: uint8 (64, 64, 3).
        captions: of each, as `wanted` reads them.
        level: of the intervals.

    Returns:
        Attribute -> ``agreement`` (share of the pictures whose caption asks for some value of it and that show this
        one; a picture of the other kind shows none), ``low`` and ``high`` (Wilson's interval), ``n`` (how many
        captions ask), and ``chance``: the share to expect if the captions were dealt to the pictures at random.
        Attributes that no caption asks for are left out.

    Raises:
        ValueError: not one caption per image, no images, or a caption that `wanted` can't read.
    """
    if len(images) != len(captions) or not len(images):
        raise ValueError(f"captions: expected one for each image, got {len(captions)} for {len(images)} images")
    asked = [wanted(caption) for caption in captions]
    seen = shown(classifier, images)
    result = {}
    for name in HEADS:
        pairs = [(row[name], picture.get(name)) for row, picture in zip(asked, seen, strict=True) if name in row]
        if not pairs:
            continue
        right, n = sum(one == other for one, other in pairs), len(pairs)
        low, high = wilson_interval(right, n, level)
        wishes, sights = Counter(one for one, _ in pairs), Counter(other for _, other in pairs)
        chance = sum(count * sights[value] for value, count in wishes.items()) / n**2
        result[name] = {"agreement": right / n, "low": low, "high": high, "n": n, "chance": chance}
    return result


def identity_of(attributes: FaceAttributes | LandscapeAttributes) -> dict[str, Value]:
    """What every picture of the same person or place shows; a bald person has no hair colour."""
    return {name: value for name, value in labels_of(attributes).items() if name in (KIND, *IDENTITY)}


def identity_agreement(
    classifier: AttributeClassifier,
    images: Sequence[Uint8Image],
    identity: FaceAttributes | LandscapeAttributes,
    *,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """How much of a person or place is left in pictures of it.

    Args:
        images: uint8 (64, 64, 3), all meant to show the same.
        identity: what any true picture of it shows.
        level: of the interval.
        seed: of the interval's resampling.

    Returns:
        ``agreement`` (the share of the fixed attributes that a picture shows, mean over pictures; a picture of the
        other kind shows none), ``low`` and ``high`` (bootstrap over pictures), ``n``, and ``attributes``: attribute ->
        share of the pictures that show it.

    Raises:
        ValueError: no images.
    """
    if not len(images):
        raise ValueError("images: expected at least one, got none")
    fixed = {name: value for name, value in identity_of(identity).items() if name != KIND}
    seen = shown(classifier, images)
    table = np.array([[picture.get(name) == value for name, value in fixed.items()] for picture in seen], float)
    low, high = mean_interval(table.mean(axis=1), level=level, seed=seed)
    return {
        "agreement": float(table.mean()),
        "low": low,
        "high": high,
        "n": len(images),
        "attributes": dict(zip(fixed, table.mean(axis=0).tolist(), strict=True)),
    }
