"""Inpainting masks: bounds kept exactly, the same seed the same mask, every base shape and transformation at work."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lordfast.data import BadImageError
from lordfast.data import masks as module
from lordfast.data.masks import apply_mask, draw_mask
from lordfast.data.shapes import CANVAS, REACH, draw_shape, read_shape

BOUNDS = [(0.05, 0.4), (0.3, 0.31), (0.8, 0.9), (0.0, 0.02)]


def disc(radius: float) -> Image.Image:
    y, x = np.mgrid[:CANVAS, :CANVAS] - (CANVAS - 1) / 2
    return Image.fromarray(np.where(np.hypot(x, y) <= radius, 255, 0).astype(np.uint8))


def area(mask: Image.Image) -> int:
    pixels = np.asarray(mask)
    assert set(np.unique(pixels)) <= {0, 255}
    return int(np.count_nonzero(pixels))


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("size", [(64, 64), (50, 121)])
def test_the_covered_share_keeps_its_bounds_and_is_what_the_pixels_say(size, bounds) -> None:
    least, most = bounds
    for seed in range(8):
        mask = draw_mask(size, np.random.default_rng(seed), least=least, most=most)
        assert mask.pixels.shape == size and mask.pixels.dtype == np.uint8
        assert set(np.unique(mask.pixels)) == {0, 255}
        assert mask.share == np.mean(mask.pixels == 255)
        assert least <= mask.share <= most


def test_shares_spread_over_their_bounds() -> None:
    shares = [draw_mask((64, 64), np.random.default_rng(seed), least=0.1, most=0.5).share for seed in range(30)]
    assert min(shares) < 0.2 and max(shares) > 0.4


def test_the_same_generator_draws_the_same_mask_and_another_another() -> None:
    one, again, other = (draw_mask((64, 80), np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.pixels, again.pixels)
    assert one.steps == again.steps
    assert (one.pixels != other.pixels).any()


def test_the_steps_say_what_was_done() -> None:
    names = []
    for seed in range(40):
        first, *middle, last = draw_mask((32, 32), np.random.default_rng(seed)).steps
        assert first["name"] in ("ellipse", "polygon", "strokes") and last["name"] == "place"
        done = [step["name"] for step in middle]
        assert 2 <= len(done) <= 5 and len(set(done)) == len(done)
        assert all(len(step) > 1 for step in (first, *middle, last)), "with their numbers"
        names += [first["name"], *done]
    assert set(names) == {"ellipse", "polygon", "strokes", *module._TRANSFORMATIONS}


def test_drawn_shapes_lie_in_the_middle_of_the_canvas_with_room_to_turn() -> None:
    kinds = set()
    for seed in range(30):
        shape, step = draw_shape(np.random.default_rng(seed))
        kinds.add(step["name"])
        y, x = np.nonzero(np.asarray(shape))
        assert len(x) > 500
        assert np.hypot(x - CANVAS / 2, y - CANVAS / 2).max() <= REACH + 3
    assert len(kinds) == 3


@pytest.mark.parametrize(
    ("name", "smallest", "largest"),
    [
        ("rotate", 0.99, 1.01),
        ("flip", 1, 1),
        ("shear", 0.98, 1.02),
        ("stretch", 0.55**2, 1.4**2),
        ("crop", 0.1, 0.999),
        ("dilate", 1.05, 1.4),
        ("erode", 0.6, 0.95),
        ("blur", 0.9, 1.02),
    ],
)
def test_each_transformation_changes_the_area_as_its_name_says(name: str, smallest: float, largest: float) -> None:
    before = disc(70)
    for seed in range(6):
        after, numbers = module._TRANSFORMATIONS[name](before, np.random.default_rng(seed))
        assert smallest <= area(after) / area(before) <= largest
        if name == "stretch":
            assert area(after) / area(before) == pytest.approx(numbers["x"] * numbers["y"], rel=0.02)
        if name in ("dilate", "erode"):
            left, _, right, _ = after.getbbox() or (0, 0, 0, 0)
            start, _, end, _ = before.getbbox() or (0, 0, 0, 0)
            grown = numbers["radius"] * (1 if name == "dilate" else -1)
            assert (start - left, right - end) == (grown, grown)
        if name in ("shear", "stretch", "rotate"):
            y, x = np.nonzero(np.asarray(after))
            assert (x.mean(), y.mean()) == pytest.approx((CANVAS / 2 - 0.5,) * 2, abs=0.6)


def test_a_rotation_turns_and_a_flip_mirrors() -> None:
    bar = np.zeros((CANVAS, CANVAS), np.uint8)
    bar[CANVAS // 2 - 10 : CANVAS // 2 + 10, 100:300] = 255
    for seed in range(4):
        turned, numbers = module._TRANSFORMATIONS["rotate"](Image.fromarray(bar), np.random.default_rng(seed))
        y, x = np.nonzero(np.asarray(turned))
        long_axis = np.linalg.eigh(np.cov(x, y))[1][:, 1]
        angle = np.degrees(np.arctan2(-long_axis[1], long_axis[0])) % 180
        assert min(abs(angle - numbers["degrees"] % 180), 180 - abs(angle - numbers["degrees"] % 180)) < 1
        bar_flipped, numbers = module._TRANSFORMATIONS["flip"](Image.fromarray(bar), np.random.default_rng(seed))
        np.testing.assert_array_equal(np.asarray(bar_flipped), bar[:, ::-1] if numbers["sideways"] else bar[::-1])


def test_a_mask_lies_where_its_last_step_says() -> None:
    shapes = {"disc": disc(60)}
    for seed in range(20):
        mask = draw_mask((90, 140), np.random.default_rng(seed), least=0.005, most=0.03, shapes=shapes)
        y, x = np.nonzero(mask.pixels)
        inside = x.min() > 0 and y.min() > 0 and x.max() < 139 and y.max() < 89
        if inside and not any(step["name"] == "crop" for step in mask.steps):
            assert (x.mean(), y.mean()) == pytest.approx((mask.steps[-1]["x"], mask.steps[-1]["y"]), abs=0.7)


def test_shapes_from_files(tmp_path: Path) -> None:
    drawn = np.zeros((40, 100), np.uint8)
    drawn[10:20, 20:60] = 200
    drawn[30:, 90:] = 100  # too dark to count
    Image.fromarray(drawn).save(tmp_path / "bar.png")
    shape = read_shape(tmp_path / "bar.png")
    left, top, right, bottom = shape.getbbox() or (0, 0, 0, 0)
    assert shape.size == (CANVAS, CANVAS)
    assert (right - left) / (bottom - top) == pytest.approx(4, rel=0.02)
    assert (left + right) / 2 == pytest.approx(CANVAS / 2, abs=1) == pytest.approx((top + bottom) / 2, abs=1)
    mask = draw_mask((64, 64), np.random.default_rng(0), shapes={"bar.png": shape})
    assert mask.steps[0] == {"name": "file", "file": "bar.png"} and 0.05 <= mask.share <= 0.4
    Image.new("L", (8, 8), 127).save(tmp_path / "dark.png")
    with pytest.raises(BadImageError, match=r"dark\.png: no pixel is 128 or brighter"):
        read_shape(tmp_path / "dark.png")


def test_the_image_stays_where_the_mask_is_0() -> None:
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (30, 20, 3), dtype=np.uint8)
    before = image.copy()
    mask = np.where(rng.random((30, 20)) < 0.3, 255, 0).astype(np.uint8)
    masked = apply_mask(image, mask, 9)
    assert masked.dtype == np.uint8
    np.testing.assert_array_equal(masked[mask == 0], image[mask == 0])
    assert (masked[mask == 255] == 9).all()
    np.testing.assert_array_equal(image, before)
    with pytest.raises(ValueError, match=r"mask: expected shape \(30, 20\)"):
        apply_mask(image, mask[:-1])


@pytest.mark.parametrize(
    ("size", "least", "most", "message"),
    [
        ((64, 64), 0.5, 0.4, "least_area, most_area: expected shares"),
        ((64, 64), -0.1, 0.4, "expected shares of the image"),
        ((64, 64), 0.1, 1.5, "expected shares of the image"),
        ((64, 64), 0.0, 0.0, "expected shares of the image"),
        ((64, 64), float("nan"), 0.4, "expected shares of the image"),
        ((1, 1), 0.05, 0.4, "no number of pixels of an image of 1 x 1 is a share from 0.05 to 0.4"),
        ((10, 10), 0.101, 0.109, "no number of pixels of an image of 10 x 10"),
        ((10, 10), 0.0, 0.009, "no number of pixels of an image of 10 x 10"),
    ],
)
def test_bounds_that_no_mask_keeps(size, least: float, most: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_mask(size, np.random.default_rng(0), least=least, most=most)


def test_bounds_out_of_reach_say_how_near_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ATTEMPTS", 3)
    with pytest.raises(
        ValueError, match=r"none of 3 masks .* 1024 x 1024 .*\(the nearest covered 0\.\d{4}\)"
    ) as caught:
        draw_mask((1024, 1024), np.random.default_rng(0), least=0.3 - 1e-6, most=0.3)
    near = float(re.search(r"covered (0\.\d+)", str(caught.value))[1])  # type: ignore[index]
    assert abs(near - 0.3) < 0.05
