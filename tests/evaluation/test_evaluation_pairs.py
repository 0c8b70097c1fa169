"""PSNR, SSIM and changes of pairs against formulas written out here, and which image meets which."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from lordfast.data import ImageRecord, list_images, make_faces, save_png
from lordfast.evaluation.pairs import compare_pair, match_names, ms_ssim_scales, summarise_pairs

DECIBELS = 1e-4  # torchmetrics takes the logarithm's base in float32
RNG = np.random.default_rng(5)
FACE = make_faces(1, seed=3)[0].image
NOISY = np.clip(FACE.astype(int) + RNG.integers(-8, 9, FACE.shape), 0, 255).astype(np.uint8)


def records(*names: str) -> list[ImageRecord]:
    return [ImageRecord(Path(name), name) for name in names]


def test_psnr_is_the_formula_with_a_peak_of_255() -> None:
    error = np.mean((FACE.astype(np.float64) - NOISY.astype(np.float64)) ** 2)
    assert compare_pair(NOISY, FACE)["psnr"] == pytest.approx(10 * math.log10(255**2 / error), abs=DECIBELS)


def test_one_grey_level_everywhere() -> None:
    grey = np.full((16, 20, 3), 100, np.uint8)
    row = compare_pair(grey + 1, grey)
    assert row["psnr"] == pytest.approx(20 * math.log10(255), abs=DECIBELS)
    assert (row["largest_change"], row["mean_change"]) == (1, 1.0)


def test_ssim_agrees_with_scikit_image() -> None:
    _, full = structural_similarity(
        NOISY,
        FACE,
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    # scikit-image repeats the edge pixel where it reflects the border, torchmetrics does not.
    got = compare_pair(NOISY, FACE)["ssim"]
    assert got == pytest.approx(full.mean(), abs=1e-3)
    assert got < 0.9


def test_largest_change_looks_both_ways() -> None:
    dark, changed = np.full((12, 12, 3), 9, np.uint8), np.full((12, 12, 3), 9, np.uint8)
    changed[3, 4, 1], changed[5, 5, 0] = 0, 14
    row = compare_pair(changed, dark)
    assert row["largest_change"] == 9
    assert row["mean_change"] == pytest.approx(14 / dark.size)


def test_identical_and_tiny_images_have_no_number_and_say_so() -> None:
    tiny = FACE[:10, :30]
    rows = [compare_pair(FACE, FACE), compare_pair(NOISY, FACE), compare_pair(NOISY[:10, :30], tiny)]
    assert rows[0]["psnr"] is None and rows[0]["ssim"] == pytest.approx(1.0)
    assert rows[2]["ssim"] is None
    summary, caveats = summarise_pairs(rows)
    assert summary["psnr"] == pytest.approx((rows[1]["psnr"] + rows[2]["psnr"]) / 2)
    assert summary["ssim"] == pytest.approx((1 + rows[1]["ssim"]) / 2)
    assert (summary["pairs"], summary["identical"]) == (3, 1)
    assert "1 of 3 pairs are identical" in caveats[0] and "smaller than SSIM's window" in caveats[1]


def test_other_sizes_and_types_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reference: expected shape \(64, 64, 3\).*\(64, 32, 3\)"):
        compare_pair(FACE, FACE[:, :32])
    with pytest.raises(TypeError, match="reference: expected dtype uint8, got float32"):
        compare_pair(FACE, FACE.astype(np.float32))


def test_names_match_without_extension_and_with_their_sub_folder() -> None:
    found = match_names(records("a.png", "b.png", "sub/c.png"), records("a.jpg", "c.png", "sub/c.webp"))
    assert [(ours.name, theirs.name) for ours, theirs in found.pairs] == [
        ("a.png", "a.jpg"),
        ("sub/c.png", "sub/c.webp"),
    ]
    assert [record.name for record in found.only_ours] == ["b.png"]
    assert [record.name for record in found.only_theirs] == ["c.png"]


def test_an_attacked_folder_matches_originals_that_share_a_stem() -> None:
    # The names that lordfast attack gives to these two originals.
    found = match_names(records("china.jpg.png", "china.png"), records("china.jpg", "china.png"))
    assert {(ours.name, theirs.name) for ours, theirs in found.pairs} == {
        ("china.jpg.png", "china.jpg"),
        ("china.png", "china.png"),
    }


def test_a_folder_matches_itself(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "deep/er/a.png"):
        save_png(FACE, tmp_path / name)
    listed = list_images(tmp_path)
    found = match_names(listed, listed)
    assert found.pairs == [(record, record) for record in listed] and not found.only_ours and not found.only_theirs


def ms_ssim_by_hand(one: np.ndarray, other: np.ndarray, scales: int) -> float:
    """Wang, Simoncelli and Bovik 2003, Eq. 7: contrast and structure at every scale, the luminance at the coarsest."""
    x, y = one.astype(np.float64) / 255, other.astype(np.float64) / 255
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    weights /= weights.sum()

    def blurred(image: np.ndarray) -> np.ndarray:
        return gaussian_filter(image, 1.5, truncate=5 / 1.5, mode="mirror", axes=(0, 1))

    product = 1.0
    for scale, weight in enumerate(weights):
        mean_x, mean_y = blurred(x), blurred(y)
        var_x, var_y = blurred(x * x) - mean_x**2, blurred(y * y) - mean_y**2
        structure = (2 * (blurred(x * y) - mean_x * mean_y) + 0.03**2) / (var_x + var_y + 0.03**2)
        luminance = (2 * mean_x * mean_y + 0.01**2) / (mean_x**2 + mean_y**2 + 0.01**2)
        if scale == scales - 1:
            value = (luminance * structure).mean()
        else:
            # Away from the borders, where the window holds mirrored pixels.
            value = structure[5:-5, 5:-5].mean()
        product *= value**weight
        height, width = (side // 2 * 2 for side in x.shape[:2])
        x, y = (image[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean((1, 3)) for image in (x, y))
    return float(product)


@pytest.mark.parametrize(("height", "width", "scales"), [(64, 64, 3), (180, 200, 5), (101, 160, 4), (25, 90, 2)])
def test_ms_ssim_agrees_with_its_definition(height: int, width: int, scales: int) -> None:
    face = make_faces(1, seed=3, size=200)[0].image[-height:, -width:]
    noisy = np.clip(face + np.random.default_rng(0).normal(0, 12, face.shape), 0, 255).astype(np.uint8)
    row = compare_pair(noisy, face)
    assert row["ms_ssim_scales"] == scales
    assert row["ms_ssim"] == pytest.approx(ms_ssim_by_hand(noisy, face, scales), abs=1e-5)
    assert row["ms_ssim"] - row["ssim"] > 0.02
    assert compare_pair(face, face)["ms_ssim"] == pytest.approx(1)


def test_ms_ssim_takes_as_many_scales_as_fit() -> None:
    sides = (21, 22, 43, 44, 98, 99, 175, 176, 512)
    assert [ms_ssim_scales(side) for side in sides] == [0, 2, 2, 3, 3, 4, 4, 5, 5]
    for side in (22, 44, 99, 176):
        image = np.random.default_rng(0).integers(0, 256, (side, side + 30, 3), dtype=np.uint8)
        assert 0 <= compare_pair(255 - image, image)["ms_ssim"] < 0.2, "torchmetrics takes this size, negatives too"


def test_ms_ssim_says_where_it_is_missing_or_mixed() -> None:
    rows = [compare_pair(NOISY, FACE), compare_pair(NOISY[:30], FACE[:30]), compare_pair(NOISY[:15], FACE[:15])]
    assert rows[2]["ms_ssim"] is None and rows[2]["ssim"] is not None
    summary, caveats = summarise_pairs(rows)
    assert summary["ms_ssim"] == pytest.approx((rows[0]["ms_ssim"] + rows[1]["ms_ssim"]) / 2)
    assert summary["ms_ssim_scales"] == [2, 3]
    assert "1 of 3 images are smaller than two of SSIM's windows" in caveats[0]
    assert "MS-SSIM is over 2 or 3 scales" in caveats[1] and len(caveats) == 2
