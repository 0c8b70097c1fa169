"""Images of any size for models with opinions on size: reflected borders, overlapping tiles, averaged back together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lordfast.diffusion import LatentDiffusion
from lordfast.pixels import Uint8Image, check_image, to_tensor

Box = tuple[int, int, int, int]
"""Top, left, bottom, right."""


def pad_images(images: Sequence[Uint8Image], multiple: int) -> Tensor:
    """uint8 images (H, W, 3) of one size as (B, 3, H', W') in [-1, 1], both sides reflected up to `multiple`s.

    Rows and columns are added at the bottom and at the right: the image is ``[..., :H, :W]``.
    """
    for index, image in enumerate(images):
        check_image(image, f"images[{index}]")
    height, width = images[0].shape[:2]
    border = ((0, -height % multiple), (0, -width % multiple), (0, 0))
    # numpy's reflection goes back and forth where the border is wider than the image; torch's refuses.
    return to_tensor([np.pad(image, border, mode="reflect") for image in images])


def _starts(length: int, tile: int, stride: int) -> list[int]:
    if length <= tile:
        return [0]
    return [*range(0, length - tile, stride), length - tile]


def tile_boxes(height: int, width: int, tile: int, stride: int) -> list[Box]:
    """Square tiles, row by row, `stride` apart; the last ones end at the border, so that they overlap more.

    A tile is cut short where the image is smaller than it.
    """
    tall, wide = min(tile, height), min(tile, width)
    tops, lefts = _starts(height, tall, stride), _starts(width, wide, stride)
    return [(top, left, top + tall, left + wide) for top in tops for left in lefts]


def corner_boxes(height: int, width: int, tile: int) -> list[Box]:
    """The four corners, half a tile each way: the places that only one tile of half-overlapping ones covers."""
    tall, wide = min(tile, height) // 2, min(tile, width) // 2
    return [
        (top, left, top + tall, left + wide)
        for top in (0, height - tall)
        for left in (0, width - wide)
        if tall and wide
    ]


def map_tiles(
    values: Tensor,
    function: Callable[[Tensor], Tensor],
    *,
    tile: int,
    stride: int,
    corners: bool = False,
) -> Tensor:
    """Apply `function` to overlapping tiles of `values` (B, C, H, W) and average what comes back.

    Args:
        function: (B, C, h, w) to the same shape.
        tile: side of the tiles; stride: from one to the next.
        corners: one more tile, put together from the four corners, so that they too are covered twice (GrIDPure).
    """
    height, width = values.shape[-2:]
    boxes = tile_boxes(height, width, tile, stride)
    if len(boxes) == 1:
        return function(values)
    total, count = torch.zeros_like(values), torch.zeros_like(values[:1, :1])

    def add(box: Box, result: Tensor) -> None:
        top, left, bottom, right = box
        total[..., top:bottom, left:right] += result
        count[..., top:bottom, left:right] += 1

    for box in boxes:
        add(box, function(_cut(values, box)))
    places = corner_boxes(height, width, tile) if corners else []
    if places:
        pieces = [_cut(values, box) for box in places]
        joined = torch.cat([torch.cat(pieces[:2], dim=-1), torch.cat(pieces[2:], dim=-1)], dim=-2)
        result = function(joined)
        quarters = [quarter for half in result.chunk(2, dim=-2) for quarter in half.chunk(2, dim=-1)]
        for box, quarter in zip(places, quarters, strict=True):
            add(box, quarter)
    return total / count


def _cut(values: Tensor, box: Box) -> Tensor:
    top, left, bottom, right = box
    return values[..., top:bottom, left:right]


def check_tile(tile: int | None, model: LatentDiffusion) -> None:
    """Raise a ValueError unless `tile` is None or a positive multiple of twice the model's resolution step.

    Half-overlapping tiles begin at multiples of half their side, which have to fit the model as well.
    """
    step = 2 * model.side_multiple
    if tile is not None and (tile <= 0 or tile % step):
        raise ValueError(f"tile: expected a positive multiple of {step} for {model.name}, got {tile}")
