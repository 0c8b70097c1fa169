"""Low-resolution twins against Pillow, and each degradation by what it does to the numbers."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from lordfast.data import make_faces
from lordfast.data.degrade import crop_to_multiple, degrade

FACE = make_faces(1, seed=3, size=96)[0].image
GREY = np.full((400, 400, 3), 128, np.uint8)


def test_plain_is_pillows_antialiased_bicubic() -> None:
    for factor in (2, 3, 4):
        side = 96 // factor
        expected = np.array(Image.fromarray(FACE).resize((side, side), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(degrade(FACE, factor), expected)


def test_stripes_finer_than_the_small_picture_become_grey() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    assert abs(degrade(stripes, 4)[2:-2, 2:-2].astype(float) - 127.5).max() < 3


def test_blur_is_in_pixels_of_the_large_picture() -> None:
    expected = Image.fromarray(FACE).filter(ImageFilter.GaussianBlur(2)).resize((24, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(degrade(FACE, 4, blur=2), np.array(expected))


def test_noise_has_its_deviation_in_grey_levels_and_comes_from_the_generator() -> None:
    noisy = degrade(GREY, 4, noise=6, rng=np.random.default_rng(0))
    change = noisy.astype(float) - 128
    # 30 000 draws: the standard error of the deviation is 0.4 %, the rounding's share of the variance 0.2 %.
    assert change.std() == pytest.approx(6, rel=0.02) and abs(change.mean()) < 0.15
    assert (change[..., 0] != change[..., 1]).mean() > 0.8
    np.testing.assert_array_equal(noisy, degrade(GREY, 4, noise=6, rng=np.random.default_rng(0)))
    assert (noisy != degrade(GREY, 4, noise=6, rng=np.random.default_rng(1))).any()


def test_noise_is_clipped_and_does_not_wrap_around() -> None:
    white = np.full((40, 40, 3), 255, np.uint8)
    assert degrade(white, 2, noise=5, rng=np.random.default_rng(0)).min() > 200


def test_jpeg_comes_last() -> None:
    rng = np.random.default_rng
    before = degrade(FACE, 2, blur=1, noise=8, rng=rng(5))
    buffer = io.BytesIO()
    Image.fromarray(before).save(buffer, "JPEG", quality=30)
    expected = np.array(Image.open(buffer))
    np.testing.assert_array_equal(degrade(FACE, 2, blur=1, noise=8, jpeg=30, rng=rng(5)), expected)
    assert (expected != before).any()


def test_the_crop_is_central_and_as_large_as_can_be() -> None:
    image = np.arange(11 * 14 * 3, dtype=np.uint32).reshape(11, 14, 3).astype(np.uint8)
    np.testing.assert_array_equal(crop_to_multiple(image, 4), image[1:9, 1:13])
    np.testing.assert_array_equal(crop_to_multiple(FACE, 4), FACE)
    with pytest.raises(ValueError, match="factor: an image of 14 x 11 has no 12 pixels a side"):
        crop_to_multiple(image, 12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"factor": 1}, "factor: expected at least 2, got 1"),
        ({"factor": 5}, "image: expected sides that are multiples of 5, got 96 x 96"),
        ({"factor": 4, "blur": -1}, "blur: expected 0 or more"),
        ({"factor": 4, "noise": float("inf")}, "noise: expected 0 or more"),
        ({"factor": 4, "noise": 1.0}, "rng: a numpy Generator is needed"),
        ({"factor": 4, "jpeg": 100}, "jpeg: expected a quality from 1 to 95, got 100"),
    ],
)
def test_bad_numbers(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        degrade(FACE, **options)
