"""All purifiers by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lordfast.purify import diffpure, gridpure, impress, jpeg, noise, roundtrip, smooth, tv, upscale
from lordfast.purify.config import BatchPurifier, PurifyConfig


@dataclass(frozen=True)
class Purifier:
    """A purifier that `run_purify` and the command know.

    Attributes:
        config: its options, a dataclass; those that need a model have a field ``model``.
        summary: what it does, in one line.
        build: checks a config, loads what it needs, and gives what purifies a batch.
    """

    config: type[PurifyConfig]
    summary: str
    build: Callable[[Any], BatchPurifier]


PURIFIERS: dict[str, Purifier] = {
    "jpeg": Purifier(jpeg.JpegConfig, "compress as JPEG", jpeg.build),
    "gaussian-noise": Purifier(noise.NoiseConfig, "add Gaussian noise", noise.build),
    "blur": Purifier(smooth.BlurConfig, "blur with a Gaussian", smooth.build_blur),
    "resize": Purifier(smooth.ResizeConfig, "scale down and up again", smooth.build_resize),
    "tv": Purifier(tv.TvConfig, "total-variation denoising: flat regions, sharp edges", tv.build),
    "vae-roundtrip": Purifier(roundtrip.RoundtripConfig, "through a model's autoencoder and back", roundtrip.build),
    "diffpure": Purifier(diffpure.DiffpureConfig, "noise part of the way, denoise with a model", diffpure.build),
    "gridpure": Purifier(
        gridpure.GridpureConfig, "many rounds of little noise and denoising on overlapping squares", gridpure.build
    ),
    "impress": Purifier(impress.ImpressConfig, "the nearest image that a model's autoencoder keeps", impress.build),
    "noisy-upscale": Purifier(upscale.UpscaleConfig, "add noise, then upscale and scale back", upscale.build),
}
