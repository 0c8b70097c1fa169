"""High frequencies: waves, noise and attacks land where their frequency says."""

import numpy as np
import pytest

from lordfast.data import make_faces
from lordfast.evaluation import high_frequencies, summarise_frequencies


def wave(cycles_x: float, cycles_y: float, size: tuple[int, int] = (64, 64), amplitude: float = 60) -> np.ndarray:
    """Grey uint8 image of one wave, in cycles per pixel."""
    y, x = np.indices(size)
    grey = 128 + amplitude * np.sin(2 * np.pi * (cycles_x * x + cycles_y * y) + 0.3)
    return np.rint(grey).astype(np.uint8)[..., None].repeat(3, axis=2)


@pytest.mark.parametrize("size", [(64, 64), (48, 100)])
@pytest.mark.parametrize(
    ("cycles_x", "cycles_y", "high"),
    [(0.1, 0, False), (0, 0.2, False), (0.15, 0.15, False), (0.3, 0, True), (0, 0.4, True), (0.22, 0.22, True)],
)
def test_a_wave_lies_in_its_band(cycles_x: float, cycles_y: float, high: bool, size: tuple[int, int]) -> None:
    found = high_frequencies(wave(cycles_x, cycles_y, size))
    # The window spreads a wave over two bins either side; rounding to levels is white noise of 0.3 levels.
    assert abs(found["share"] - high) < 0.01
    if high:
        # The standard deviation of a wave is its amplitude over sqrt(2).
        assert found["amplitude"] == pytest.approx(60 / np.sqrt(2), rel=0.02)
    else:
        assert found["amplitude"] < 4


def test_white_noise_has_the_share_of_the_bands_area() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(30):
        grey = np.rint(128 + rng.normal(0, 20, (64, 64))).clip(0, 255).astype(np.uint8)
        rows.append(high_frequencies(grey[..., None].repeat(3, axis=2)))
    found = summarise_frequencies(rows)
    # 4096 bins, each of them exponential and shared by a few under the window: 2 % an image, 0.4 % over 30.
    assert found["share"] == pytest.approx(1 - np.pi / 16, abs=0.012)
    assert found["amplitude"] == pytest.approx(20 * np.sqrt(1 - np.pi / 16), rel=0.02)
    assert found["share_low"] < found["share"] < found["share_high"] < found["share_low"] + 0.02
    assert found["images"] == 30


def test_luminance_weighs_the_colours() -> None:
    grey = wave(0.4, 0)
    for channel, weight in enumerate((0.299, 0.587, 0.114)):
        image = np.full_like(grey, 128)
        image[..., channel] = grey[..., channel]
        assert high_frequencies(image)["amplitude"] == pytest.approx(60 * weight / np.sqrt(2), rel=0.02)


def test_brightness_and_borders_do_not_count() -> None:
    flat = np.full((32, 32, 3), 77, np.uint8)
    assert high_frequencies(flat) == {"share": 0.0, "amplitude": 0.0}
    assert high_frequencies(wave(0.4, 0) + 40)["amplitude"] == pytest.approx(
        high_frequencies(wave(0.4, 0))["amplitude"]
    )
    # A ramp jumps where the image would be repeated: without the window that is a line through all frequencies.
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None, :, None].repeat(64, axis=0).repeat(3, axis=2)
    assert high_frequencies(ramp)["share"] < 1e-3


def test_noise_on_a_picture_raises_both() -> None:
    rng = np.random.default_rng(0)
    for item in make_faces(5, 0):
        noisy = (item.image + rng.choice([-8, 8], (64, 64, 1))).clip(0, 255).astype(np.uint8)
        before, after = high_frequencies(item.image), high_frequencies(noisy)
        assert after["share"] > before["share"]
        # Deviations of independent parts add as squares.
        expected = np.hypot(before["amplitude"], 8 * np.sqrt(1 - np.pi / 16))
        assert after["amplitude"] == pytest.approx(expected, rel=0.15)


def test_one_image_and_no_resamples_have_no_interval() -> None:
    rows = [high_frequencies(wave(0.3, 0)), high_frequencies(wave(0.2, 0))]
    assert summarise_frequencies(rows[:1])["share_low"] is None
    assert summarise_frequencies(rows, resamples=0)["amplitude_high"] is None


def test_what_has_no_frequencies() -> None:
    with pytest.raises(ValueError, match=r"image: expected at least 8 pixels a side, got \(7, 64\)"):
        high_frequencies(np.zeros((7, 64, 3), np.uint8))
    with pytest.raises(TypeError, match="image: expected dtype uint8"):
        high_frequencies(np.zeros((64, 64, 3)))
