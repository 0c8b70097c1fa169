"""Tiles: they cover, they average, and what does nothing changes nothing."""

import itertools

import numpy as np
import pytest
import torch

from lordfast.purify.gridpure import grid_rounds
from lordfast.purify.tiles import corner_boxes, map_tiles, pad_images, tile_boxes


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 16), (17, 31), (8, 30), (5, 40), (3, 4)])
def test_tiles_are_in_the_image_and_cover_it(height: int, width: int) -> None:
    covered = np.zeros((height, width), int)
    boxes = tile_boxes(height, width, 8, 4)
    for top, left, bottom, right in boxes:
        assert (bottom - top, right - left) == (min(8, height), min(8, width))
        covered[top:bottom, left:right] += 1
    assert len(set(boxes)) == len(boxes) and covered.min() == 1
    if min(height, width) >= 16:
        for box in corner_boxes(height, width, 8):
            covered[box[0] : box[2], box[1] : box[3]] += 1
        # Whatever lies at the border but in no corner has one row of tiles only.
        assert covered[0, 0] == covered[-1, -1] == covered[0, -1] == covered[-1, 0] == 2


def test_a_grid_of_512_pixels_is_the_paper_s() -> None:
    assert tile_boxes(512, 512, 256, 128) == [(y, x, y + 256, x + 256) for y in (0, 128, 256) for x in (0, 128, 256)]
    assert corner_boxes(512, 512, 256) == [
        (0, 0, 128, 128),
        (0, 384, 128, 512),
        (384, 0, 512, 128),
        (384, 384, 512, 512),
    ]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (20, 20), (17, 31), (8, 30), (5, 9)])
@pytest.mark.parametrize("corners", [False, True])
def test_what_changes_nothing_changes_nothing(height: int, width: int, corners: bool) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(map_tiles(x, lambda t: t, tile=8, stride=4, corners=corners), x, rtol=0, atol=1e-14)
    rounds = grid_rounds(x, lambda t: t, rounds=5, gamma=0.1, tile=8)
    assert torch.allclose(rounds, x, rtol=0, atol=1e-13)
    doubled = map_tiles(x, lambda t: 2 * t, tile=8, stride=4, corners=corners)
    assert torch.allclose(doubled, 2 * x, rtol=0, atol=1e-14)


def test_overlaps_are_averaged() -> None:
    numbers = itertools.count(1)
    result = map_tiles(torch.zeros(1, 1, 4, 12), lambda t: torch.full_like(t, float(next(numbers))), tile=8, stride=4)
    assert result[0, 0, 0].tolist() == [1.0] * 4 + [1.5] * 4 + [2.0] * 4


def test_the_corners_make_one_more_tile() -> None:
    seen = []

    def keep(tile: torch.Tensor) -> torch.Tensor:
        seen.append(tile.clone())
        return tile + (len(seen) == 10) * 10.0  # 9 tiles of a 16 x 16 image, then the corners

    x = torch.arange(256.0).reshape(1, 1, 16, 16)
    result = map_tiles(x, keep, tile=8, stride=4, corners=True)
    assert len(seen) == 10
    corners = seen[-1][0, 0]
    expected = torch.cat(
        [torch.cat([x[0, 0, r, c] for c in (slice(4), slice(12, 16))], 1) for r in (slice(4), slice(12, 16))]
    )
    assert torch.equal(corners, expected)
    change = (result - x)[0, 0]
    assert torch.allclose(change[:4, :4], torch.tensor(5.0)) and torch.allclose(change[12:, 12:], torch.tensor(5.0))
    assert torch.allclose(change[:4, 12:], torch.tensor(5.0)) and torch.allclose(change[12:, :4], torch.tensor(5.0))
    assert float(change[4:12].abs().max()) == 0 and float(change[:, 4:12].abs().max()) == 0


def test_gamma_is_the_share_of_the_input_that_stays() -> None:
    x = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    # Purified is 0: what is left is gamma per round.
    result = grid_rounds(x, torch.zeros_like, rounds=3, gamma=0.1, tile=8)
    assert torch.allclose(result, torch.full_like(x, 1e-3), rtol=1e-12)
    assert torch.equal(grid_rounds(x, torch.zeros_like, rounds=3, gamma=1.0, tile=8), x)
    ticks = []
    grid_rounds(x, torch.zeros_like, rounds=4, gamma=0.1, tile=8, tick=lambda: ticks.append(1))
    assert len(ticks) == 4


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 5, 3), (16, 16, 3), (17, 30, 3)])
def test_padding_reflects_and_leaves_the_image(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    padded = pad_images([image], 16)
    assert padded.shape[-2] % 16 == padded.shape[-1] % 16 == 0
    assert padded.shape[-2] - shape[0] < 16 and padded.shape[-1] - shape[1] < 16
    levels = ((padded[0].permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(np.uint8)
    height, width = shape[:2]
    assert np.array_equal(levels[:height, :width], image)
    if width == 30:
        assert np.array_equal(levels[:height, 30:32], image[:, [28, 27]])
