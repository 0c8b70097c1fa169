"""JPEG compression and back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from lordfast.data.degrade import jpeg_roundtrip
from lordfast.pixels import Uint8Image, check_image
from lordfast.purify.config import BatchPurifier, PurifyConfig, check_range, each

_SUBSAMPLING = {"4:4:4": 0, "4:2:2": 1, "4:2:0": 2}


@dataclass(kw_only=True)
class JpegConfig(PurifyConfig):
    """Compress the images as JPEG and read them back; the results are PNGs.

    The 8 x 8 blocks weigh more in a small picture: for images of 64 pixels choose a higher --quality, such as 85.
    """

    quality: int = 75
    """Pillow's JPEG quality, 1 (coarsest) to 100."""
    subsampling: Literal["4:2:0", "4:2:2", "4:4:4"] = "4:2:0"
    """How coarsely colour is stored: 4:2:0 halves both its sides, 4:4:4 none."""


def jpeg(image: Uint8Image, quality: int = 75, subsampling: str = "4:2:0") -> Uint8Image:
    """What Pillow reads back from `image` (H, W, 3) saved as JPEG of `quality`.

    Raises:
        ValueError: a quality outside 1 to 100, or an unknown subsampling.
    """
    check_image(image)
    check_range("quality", quality, 1, 100)
    if subsampling not in _SUBSAMPLING:
        raise ValueError(f"subsampling: expected one of {', '.join(_SUBSAMPLING)}, got {subsampling!r}")
    return jpeg_roundtrip(image, quality, _SUBSAMPLING[subsampling])


def build(config: JpegConfig) -> BatchPurifier:
    """The purifier of `config`, checked."""
    check_range("quality", config.quality, 1, 100)
    return each(partial(jpeg, quality=config.quality, subsampling=config.subsampling))
