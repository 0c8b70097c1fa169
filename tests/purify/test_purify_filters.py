"""The purifiers without a model, against their definitions."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from skimage.restoration import denoise_tv_chambolle

from lordfast.purify.jpeg import jpeg
from lordfast.purify.noise import gaussian_noise
from lordfast.purify.smooth import blur, resize
from lordfast.purify.tv import tv, tv_denoise

PHOTO = "astronaut"


@pytest.fixture
def photo(_photographs: dict[str, np.ndarray]) -> np.ndarray:
    return np.ascontiguousarray(_photographs[PHOTO][20:151, 30:127])


@pytest.mark.parametrize(("quality", "subsampling"), [(30, "4:2:0"), (75, "4:2:0"), (75, "4:4:4"), (95, "4:2:2")])
def test_jpeg_is_what_pillow_reads_of_what_it_wrote(photo: np.ndarray, quality: int, subsampling: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(photo).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    expected = np.asarray(Image.open(io.BytesIO(buffer.getvalue())))
    found = jpeg(photo, quality, subsampling)
    assert np.array_equal(found, expected) and not np.array_equal(found, photo)
    assert found.flags.writeable


def test_noise_has_its_standard_deviation_and_depends_on_seed_and_pixels() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    for std in (0.02, 0.1):
        change = gaussian_noise(grey, std).astype(float) - 128
        # 120 000 draws: the estimate's own deviation is 0.2 % of it; rounding adds 1/12 to the variance.
        assert change.std() == pytest.approx(np.hypot(255 * std, 12**-0.5), rel=0.01)
        assert abs(change.mean()) < 5 * 255 * std / np.sqrt(change.size)
        assert abs(np.corrcoef(change[..., 0].ravel(), change[..., 1].ravel())[0, 1]) < 0.03
        assert (abs(change) > 2 * 255 * std).mean() == pytest.approx(0.0455, abs=0.01)
    assert np.array_equal(gaussian_noise(grey, 0.1, seed=3), gaussian_noise(grey, 0.1, seed=3))
    other = grey.copy()
    other[0, 0, 0] = 0
    assert (gaussian_noise(grey, 0.1, seed=3) != gaussian_noise(grey, 0.1, seed=4)).mean() > 0.9
    assert (gaussian_noise(grey, 0.1)[1:] != gaussian_noise(other, 0.1)[1:]).mean() > 0.9
    assert np.array_equal(gaussian_noise(grey, 0), grey)


def test_noise_is_clipped_and_does_not_wrap_around() -> None:
    dark, light = np.zeros((60, 60, 3), np.uint8), np.full((60, 60, 3), 255, np.uint8)
    assert gaussian_noise(dark, 0.1).max() < 150 and (gaussian_noise(dark, 0.1) == 0).mean() == pytest.approx(
        0.5, abs=0.05
    )
    assert gaussian_noise(light, 0.1).min() > 105


def test_blur_is_pillow_s_and_spreads_a_point_by_its_radius(photo: np.ndarray) -> None:
    assert np.array_equal(blur(photo, 1.5), np.asarray(Image.fromarray(photo).filter(ImageFilter.GaussianBlur(1.5))))
    edge = np.zeros((41, 41, 3), np.uint8)
    edge[:, 20:] = 255
    profile = np.diff(blur(edge, 3.0)[20, :, 0].astype(float))
    at = np.arange(len(profile))
    centre = (profile * at).sum() / profile.sum()
    assert np.sqrt((profile * (at - centre) ** 2).sum() / profile.sum()) == pytest.approx(3.0, rel=0.1)
    assert np.array_equal(blur(photo, 0), photo)


def test_resize_goes_down_by_the_factor_and_up_again(photo: np.ndarray) -> None:
    small = Image.fromarray(photo).resize((32, 44), Image.Resampling.LANCZOS)  # 97 x 131 by 3
    expected = np.asarray(small.resize((97, 131), Image.Resampling.LANCZOS))
    assert np.array_equal(resize(photo, 3), expected)
    assert np.array_equal(resize(photo, 1), photo)
    # Wider than the image: one pixel is left.
    assert (resize(photo, 1000) == resize(photo, 1000)[0, 0]).all()


@pytest.mark.parametrize(("weight", "iterations"), [(0.03, 20), (0.1, 100), (0.3, 100)])
def test_tv_agrees_with_scikit_image(photo: np.ndarray, weight: float, iterations: int) -> None:
    unit = photo.astype(np.float64) / 255
    # The same iteration; scikit-image counts its start, the image itself, as the first.
    expected = denoise_tv_chambolle(unit, weight=weight, eps=0, max_num_iter=iterations + 1, channel_axis=-1)
    found = tv_denoise(torch.from_numpy(unit).permute(2, 0, 1), weight, iterations).permute(1, 2, 0).numpy()
    assert abs(found - expected).max() < 1e-10
    assert abs(unit - expected).max() > 0.05
    assert abs(tv([photo], weight, iterations)[0] - expected * 255).max() < 0.51


def test_tv_minimises_its_functional(photo: np.ndarray) -> None:
    f, weight = torch.from_numpy(photo[:40, :30, 0].astype(np.float64) / 255), 0.1

    def functional(u: torch.Tensor) -> float:
        down = torch.zeros_like(u)
        right = torch.zeros_like(u)
        down[:-1], right[:, :-1] = u.diff(dim=0), u.diff(dim=1)
        return float((down**2 + right**2).sqrt().sum() + ((u - f) ** 2).sum() / (2 * weight))

    u = tv_denoise(f, weight, 1000)
    best = functional(u)
    assert best < functional(f) and best < functional(torch.full_like(f, float(f.mean())))
    generator = torch.Generator().manual_seed(0)
    for size in (1e-3, 1e-2):
        for _ in range(10):
            assert best < functional(u + size * torch.randn(f.shape, generator=generator, dtype=f.dtype))
    assert float(u.mean()) == pytest.approx(float(f.mean()), abs=1e-9), "the mean is kept"
    assert torch.equal(tv_denoise(f, 0.0), f)


def test_tv_calms_noise(clean: list[np.ndarray], rough: list[np.ndarray]) -> None:
    def error(images: list[np.ndarray]) -> float:
        return float(np.mean([(a.astype(float) - b) ** 2 for a, b in zip(images, clean, strict=True)]))

    assert error(tv(rough, 0.05)) < 0.5 * error(rough)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 7, 3), (5, 3, 3)])
def test_tiny_images(shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for result in (jpeg(image), gaussian_noise(image, 0.1), blur(image, 2), resize(image, 4), tv([image], 0.1)[0]):
        assert result.shape == shape and result.dtype == np.uint8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: jpeg(x, 0), "quality: expected a number at least 1 and at most 100, got 0"),
        (lambda x: jpeg(x, 75, "4:1:1"), "subsampling: expected one of"),
        (lambda x: gaussian_noise(x, -0.1), "std: expected a number at least 0"),
        (lambda x: gaussian_noise(x, 13), "std: expected a number at least 0 and at most 1, got 13"),
        (lambda x: blur(x, -1), "radius: expected a number at least 0"),
        (lambda x: blur(x, float("nan")), "radius: expected"),
        (lambda x: resize(x, 0.5), "factor: expected a number at least 1"),
        (lambda x: tv([x], -1), "weight: expected a number at least 0"),
        (lambda x: tv([x], 0.1, 0), "iterations: expected a number at least 1"),
        (lambda x: jpeg(x[..., 0]), "image: expected shape"),
    ],
)
def test_bad_options(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.zeros((8, 8, 3), np.uint8))
