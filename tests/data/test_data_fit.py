"""fit_image never squashes; to_tensor and to_uint8 are exact inverses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

from lordfast.data import fit_image
from lordfast.data.images import Crop
from lordfast.pixels import to_tensor, to_uint8


def ramps(height: int, width: int) -> np.ndarray:
    """Red counts the columns, green the rows: the result's colours say where each of its pixels came from."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.arange(width)[None, :]
    image[..., 1] = np.arange(height)[:, None]
    return image


sizes = st.integers(1, 250)
targets = st.integers(1, 48)


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, targets, targets)
def test_centre_fit_keeps_aspect_and_centre(height: int, width: int, out_height: int, out_width: int) -> None:
    fitted = fit_image(ramps(height, width), (out_height, out_width))
    assert fitted.shape == (out_height, out_width, 3)
    assert fitted.dtype == np.uint8
    # One step for both axes is what "not squashed" means: source pixels per output pixel.
    step = min(height / out_height, width / out_width)
    # Lanczos has three lobes; closer to the border than that its mean shifts.
    margin = math.ceil(3 * max(1.0, 1 / step))
    for axis, (source, target) in enumerate([(width, out_width), (height, out_height)]):
        expected = (source - target * step) / 2 + (np.arange(target) + 0.5) * step - 0.5
        came_from = fitted[..., axis].astype(float)
        if axis == 1:
            came_from = came_from.T
        # Half a level of rounding and up to half a source pixel, since an odd excess is cut on whole pixels at scale 1.
        interior = slice(margin, target - margin)
        assert (np.abs(came_from - expected)[:, interior] <= 1.01).all()


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, targets, targets, st.integers(0, 2**32 - 1))
def test_random_fit_keeps_aspect_and_repeats(height: int, width: int, h: int, w: int, seed: int) -> None:
    image = ramps(height, width)
    fitted = fit_image(image, (h, w), crop="random", rng=np.random.default_rng(seed))
    again = fit_image(image, (h, w), crop="random", rng=np.random.default_rng(seed))
    np.testing.assert_array_equal(fitted, again)
    step = min(height / h, width / w)
    margin = math.ceil(3 * max(1.0, 1 / step))
    for axis, target in ((0, w), (1, h)):
        line = fitted[..., axis].astype(float)
        line = (line if axis == 0 else line.T)[0, margin : target - margin]
        if len(line) > 1:
            assert abs((line[-1] - line[0]) - step * (len(line) - 1)) <= 1.01


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1), st.sampled_from(["center", "random"]))
def test_right_size_passes_bit_identical(height: int, width: int, seed: int, crop: Crop) -> None:
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    fitted = fit_image(image, (height, width), crop=crop, rng=rng)
    np.testing.assert_array_equal(fitted, image)
    assert not np.shares_memory(fitted, image)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 40), st.booleans(), st.integers(0, 2**32 - 1))
def test_scale_one_only_cuts(height: int, width: int, excess: int, tall: bool, seed: int) -> None:
    shape = (height + excess, width, 3) if tall else (height, width + excess, 3)
    image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    windows = [image[k : k + height, :width] if tall else image[:height, k : k + width] for k in range(excess + 1)]
    np.testing.assert_array_equal(fit_image(image, (height, width)), windows[excess // 2])
    cut = fit_image(image, (height, width), crop="random", rng=np.random.default_rng(seed))
    assert any(np.array_equal(cut, window) for window in windows)


def test_random_crops_reach_every_position() -> None:
    image = ramps(8, 14)
    rng = np.random.default_rng(0)
    starts = [int(fit_image(image, 8, crop="random", rng=rng)[0, 0, 0]) for _ in range(700)]
    counts = np.bincount(starts, minlength=7)
    assert len(counts) == 7
    # Expected 100 each with a standard deviation below 10.
    assert (np.abs(counts - 100) < 45).all()


def test_matches_resizing_the_whole_photograph() -> None:
    photo = load_sample_images().images[0][:256, :384]
    whole = np.asarray(Image.fromarray(photo).resize((96, 64), Image.Resampling.LANCZOS))
    difference = np.abs(fit_image(photo, 64).astype(int) - whole[:, 16:80].astype(int))
    assert difference.max() <= 1


def test_downscaling_is_antialiased() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    interior = fit_image(stripes, 32)[:, 2:-2].astype(int)
    assert (np.abs(interior - 127.5) <= 3).all()


def test_a_long_thin_strip() -> None:
    strip = np.full((1, 50_000, 3), 40, np.uint8)
    assert (fit_image(strip, 64) == 40).all()


def test_fit_image_refuses_wrong_arguments() -> None:
    image = ramps(8, 8)
    with pytest.raises(ValueError, match=r"crop: .*'left'"):
        fit_image(image, 8, crop="left")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rng: "):
        fit_image(image, 4, crop="random")
    with pytest.raises(ValueError, match="rng: "):
        fit_image(image, 4, crop="random")
    for resolution in (0, -4, (8,), (8, 0), (8, 8, 3), (8.5, 8), True):
        with pytest.raises(ValueError, match="resolution: "):
            fit_image(image, resolution)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="dtype uint8, got float64"):
        fit_image(image / 255.0, 8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        fit_image(image[..., 0], 8)
    with pytest.raises(ValueError, match=r"\(0, 8, 3\)"):
        fit_image(image[:0], 8)


# --- tensors ---------------------------------------------------------------------------------------------------------


def all_levels() -> np.ndarray:
    levels = np.arange(256, dtype=np.uint8)
    return np.stack([levels, levels[::-1], np.roll(levels, 7)], axis=1).reshape(1, 16, 16, 3)


def test_every_level_survives_the_round_trip() -> None:
    images = np.concatenate([all_levels(), all_levels()[:, ::-1]])
    tensor = to_tensor(images)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (2, 3, 16, 16)
    np.testing.assert_array_equal(to_uint8(tensor), images)
    np.testing.assert_array_equal(to_uint8(tensor.to(torch.float64)), images)
    np.testing.assert_array_equal(to_uint8(tensor.to(torch.float16)), images)


def test_to_tensor_values_and_layout() -> None:
    image = np.zeros((2, 3, 3), np.uint8)
    image[1, 2] = (255, 51, 204)
    tensor = to_tensor([image])
    torch.testing.assert_close(tensor[0, :, 1, 2], torch.tensor([1.0, -0.6, 0.6]))
    assert float(tensor[0, 0, 0, 0]) == -1.0
    assert float(tensor[0, 0, 1, 2]) == 1.0
    torch.testing.assert_close(to_tensor([image[:, ::-1]]), tensor.flip(3))


def test_to_uint8_rounds_to_nearest_and_clamps() -> None:
    levels = torch.tensor([10.49, 10.51, -3.0, 254.6, 300.0, float("inf")])
    tensor = (levels / 127.5 - 1).reshape(1, 1, 1, 6).repeat(1, 3, 1, 1)
    assert to_uint8(tensor)[0, 0, :, 0].tolist() == [10, 11, 0, 255, 255, 255]
    assert to_uint8(tensor.requires_grad_()).shape == (1, 1, 6, 3)


def test_tensor_conversions_refuse_wrong_input() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="empty list"):
        to_tensor([])
    with pytest.raises(ValueError, match=r"images\[1\]: .*\(4, 4, 3\), got \(2, 4, 3\)"):
        to_tensor([image, image[:2]])
    with pytest.raises(TypeError, match=r"images\[0\].*float32"):
        to_tensor([image.astype(np.float32)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"\(4, 4, 3\)"):
        to_tensor(image)
    with pytest.raises(ValueError, match="float32"):
        to_tensor(image[None].astype(np.float32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"tensor: .*\(3, 4, 4\)"):
        to_uint8(torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.full((1, 3, 2, 2), float("nan")))
