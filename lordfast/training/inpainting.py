"""``lordfast pairs inpainting``: images, random masks, and the images with what a mask covers blanked out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lordfast.data.masks import apply_mask, check_bounds, draw_mask
from lordfast.data.shapes import read_shape
from lordfast.pixels import Uint8Image
from lordfast.training.examples import list_folder
from lordfast.training.pairs import Kind, PairsConfig, run_pairs
from lordfast.training.run import check_apart

COMMAND = "pairs inpainting"


@dataclass(kw_only=True)
class InpaintingConfig(PairsConfig):
    """Make inpainting pairs: images/NAME.png, masks/NAME.png (255 = to be filled) and masked/NAME.png.

    A mask is a drawn shape or one of --masks, changed by two to five random transformations (rotation, stretching,
    shearing, mirroring, cropping, dilation, erosion, blurring) and put to a random place. metadata.jsonl says which,
    with their numbers, and the share of the image that is covered.
    """

    masks: Path | None = None
    """Folder of masks, bright where to fill, to take base shapes from; drawn ellipses, polygons and brush strokes when
    left out."""
    least_area: float = 0.05
    """Smallest share of the image that a mask may cover."""
    most_area: float = 0.4
    """Largest share."""
    fill: int = 127
    """Grey level of what is masked, 0 to 255."""


def run_inpainting(config: InpaintingConfig) -> dict[str, Any]:
    """`run_pairs` with masks.

    Raises:
        ValueError, OSError: bounds that no mask of an image keeps, unusable masks; or as `run_pairs`.
    """
    check_bounds(config.least_area, config.most_area)
    if not 0 <= config.fill <= 255:
        raise ValueError(f"fill: expected a grey level from 0 to 255, got {config.fill}")
    shapes = None
    if config.masks is not None:
        check_apart(config, {"masks": config.masks})
        records = list_folder(config.masks, "masks", captions="ignore")
        shapes = {record.name: read_shape(record.path) for record in records}

    def draw(image: Uint8Image, rng: np.random.Generator) -> Any:
        return draw_mask(image.shape[:2], rng, least=config.least_area, most=config.most_area, shapes=shapes)

    def make(image: Uint8Image, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
        mask = draw(image, rng)
        pictures = {
            "file_name": image,
            "mask": Image.fromarray(mask.pixels),
            "masked": apply_mask(image, mask.pixels, config.fill),
        }
        return pictures, {"share": mask.share, "transformations": mask.steps}

    folders = {"file_name": "images", "mask": "masks", "masked": "masked"}
    return run_pairs(config, Kind(COMMAND, folders, make, draw))
