"""The purifiers that use a model, on the embedded one."""

import numpy as np
import pytest
import torch

from lordfast.diffusion import LatentDiffusion
from lordfast.pixels import to_tensor, to_uint8
from lordfast.purify.closeness import distance_to
from lordfast.purify.diffpure import diffpure
from lordfast.purify.gridpure import gridpure
from lordfast.purify.impress import impress, impress_loss
from lordfast.purify.roundtrip import vae_roundtrip

Images = list[np.ndarray]


def error(images: Images, reference: Images) -> float:
    """Mean squared error in grey levels."""
    return float(np.mean([(a.astype(float) - b) ** 2 for a, b in zip(images, reference, strict=True)]))


@torch.no_grad()
def latent_error(model: LatentDiffusion, images: Images, reference: Images) -> float:
    return float((model.encode(to_tensor(images)) - model.encode(to_tensor(reference))).square().mean())


@torch.no_grad()
def test_the_roundtrip_is_decode_of_encode(demo_model: LatentDiffusion, rough: Images) -> None:
    expected = to_uint8(demo_model.decode(demo_model.encode(to_tensor(rough))))
    assert np.array_equal(vae_roundtrip(demo_model, rough), expected)


def test_tiles_of_the_roundtrip_agree_with_the_whole(demo_model: LatentDiffusion, clean: Images) -> None:
    wide = [np.concatenate(clean[:3], axis=1)]
    whole, tiled = (vae_roundtrip(demo_model, wide, tile)[0] for tile in (None, 64))
    assert whole.shape == tiled.shape == (64, 192, 3)
    # Not the same, for the VAE's attention sees the tile only.
    assert 0 < abs(whole.astype(int) - tiled).mean() < 4


def test_diffpure_lowers_the_noise_of_an_attacked_face(
    demo_model: LatentDiffusion, clean: Images, attacked: Images
) -> None:
    purified = diffpure(demo_model, attacked, start=50, steps=4)
    assert error(purified, clean) < 0.85 * error(attacked, clean)
    assert latent_error(demo_model, purified, clean) < 0.4 * latent_error(demo_model, attacked, clean)
    # It is the denoiser that does it: the VAE alone does not.
    through = vae_roundtrip(demo_model, attacked)
    assert error(purified, clean) < 0.85 * error(through, clean)
    assert latent_error(demo_model, purified, clean) < 0.6 * latent_error(demo_model, through, clean)


def test_diffpure_s_strength_seed_and_prompt_matter(demo_model: LatentDiffusion, rough: Images) -> None:
    one = rough[:1]
    found = diffpure(demo_model, one, start=300, steps=2)
    assert np.array_equal(found, diffpure(demo_model, one, start=300, steps=2))
    for other in ({"seed": 1}, {"prompt": "a photo of a snowy landscape"}, {"start": 500}, {"steps": 3}):
        options = {"start": 300, "steps": 2} | other
        assert error(found, diffpure(demo_model, one, **options)) > 0.5, other
    assert error(one, diffpure(demo_model, one, start=20)) < error(one, diffpure(demo_model, one, start=600))


def test_gridpure_removes_an_attack(demo_model: LatentDiffusion, clean: Images, attacked: Images) -> None:
    ticks: list[int] = []
    purified = gridpure(demo_model, attacked, rounds=4, tick=lambda: ticks.append(1))
    assert len(ticks) == 4
    assert error(purified, clean) < 0.8 * error(attacked, clean)
    assert latent_error(demo_model, purified, clean) < 0.4 * latent_error(demo_model, attacked, clean)
    assert error(purified, gridpure(demo_model, attacked, rounds=4, seed=1)) > 0
    # All of the input kept in every round: only the autoencoder is left.
    assert np.array_equal(gridpure(demo_model, attacked, rounds=2, gamma=1.0), vae_roundtrip(demo_model, attacked))


def test_gridpure_s_tiles_are_of_pixels(demo_model: LatentDiffusion, clean: Images) -> None:
    wide = [np.concatenate(clean[:2], axis=1)]
    sizes: list[tuple[int, ...]] = []
    predict = demo_model.predict
    demo_model.predict = lambda noisy, *rest: sizes.append(tuple(noisy.shape[-2:])) or predict(noisy, *rest)  # type: ignore[method-assign]
    gridpure(demo_model, wide, rounds=1)
    assert sizes == [(16, 16)] * 4  # three squares of 64 pixels, half overlapping, and the corners
    sizes.clear()
    gridpure(demo_model, wide, rounds=1, tile=32)
    assert sizes == [(8, 8)] * (3 * 7 + 1)


def test_impress_lowers_its_loss_within_its_budget(
    demo_model: LatentDiffusion, clean: Images, attacked: Images
) -> None:
    given = to_tensor(attacked)
    for distance, budget in (("vae", 0.01), ("l2", 0.02)):
        away = distance_to(distance, demo_model)(given)
        purified = impress(demo_model, attacked, iterations=25, alpha=2.0, budget=budget, distance=distance)
        moved = to_tensor(purified)
        with torch.no_grad():
            before = impress_loss(demo_model, given, away, 2.0, budget)
            after = impress_loss(demo_model, moved, away, 2.0, budget)
            assert (after < 0.5 * before).all(), distance
            assert (away(moved) < 1.15 * budget).all() and (away(moved) > 0.5 * budget).all(), distance
        assert error(purified, clean) < 0.8 * error(attacked, clean)
        assert latent_error(demo_model, purified, clean) < 0.8 * latent_error(demo_model, attacked, clean)


def test_impress_stays_within_the_pixels_that_there_are(demo_model: LatentDiffusion, rough: Images) -> None:
    extreme = [np.where(rough[0] > 128, 255, 0).astype(np.uint8)]
    largest: list[float] = []
    encode = demo_model.encode
    demo_model.encode = lambda x, *rest: largest.append(float(x.detach().abs().max())) or encode(x, *rest)  # type: ignore[method-assign]
    impress(demo_model, extreme, iterations=4, lr=0.1)
    assert len(largest) == 4 and max(largest) == 1


def test_impress_loss_is_written_out(demo_model: LatentDiffusion, rough: Images) -> None:
    x = to_tensor(rough[:2])
    y = (x + 0.1).clamp(-1, 1)
    with torch.no_grad():
        found = impress_loss(demo_model, y, distance_to("l2", demo_model)(x), 3.0, 0.01)
        decoded = demo_model.decode(demo_model.encode(y))
    for i in range(2):
        rms = np.sqrt((((y[i] - x[i]) / 2) ** 2).mean().item())
        assert float(found[i]) == pytest.approx(((decoded[i] - y[i]) ** 2).mean().item() + 3 * (rms - 0.01), rel=1e-4)


def test_distances_are_zero_at_the_image_and_grow(demo_model: LatentDiffusion, clean: Images) -> None:
    x = to_tensor(clean)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    for name in ("vae", "l2"):
        away = distance_to(name, demo_model)(x)
        values = [away(x + size * noise) for size in (0.0, 0.02, 0.1)]
        assert values[0].shape == (4,) and float(values[0].max()) < 1e-5
        assert (values[0] < values[1]).all() and (values[1] < values[2]).all()
        # No NaN where the optimisation begins.
        at = x.clone().requires_grad_(True)
        assert bool(torch.isfinite(torch.autograd.grad(away(at).sum(), at)[0]).all())
    # Squared differences of unit vectors lie in [0, 4].
    assert float(distance_to("vae", demo_model)(x)(-x).max()) <= 4


def test_lpips_is_torchmetrics_network_or_says_what_is_missing(
    demo_model: LatentDiffusion, clean: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchmetrics.image.lpip as lpip

    def missing(**options: object) -> None:
        raise ModuleNotFoundError("no torchvision here")

    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", missing)
    with pytest.raises(ValueError, match="distance: lpips needs torchvision .*no torchvision here; vae and l2 work"):
        distance_to("lpips", demo_model)

    class Net(torch.nn.Module):
        def forward(self, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            return (one - other).square().mean(dim=(1, 2, 3), keepdim=True)

    class Metric:
        net = Net()

        def __init__(self, net_type: str) -> None:
            assert net_type == "vgg"

    monkeypatch.setattr(lpip, "LearnedPerceptualImagePatchSimilarity", Metric)
    x = to_tensor(clean)
    values = distance_to("lpips", demo_model)(x)(x + torch.tensor([0.0, 0.1, 0.2, 0.3]).reshape(4, 1, 1, 1))
    assert values.tolist() == pytest.approx([0, 0.01, 0.04, 0.09], abs=1e-6)


def test_results_do_not_depend_on_the_batch(demo_model: LatentDiffusion, rough: Images) -> None:
    purifiers = {
        "vae-roundtrip": lambda images: vae_roundtrip(demo_model, images),
        "diffpure": lambda images: diffpure(demo_model, images, start=100, steps=2),
        "gridpure": lambda images: gridpure(demo_model, images, rounds=2),
        "impress": lambda images: impress(demo_model, images, iterations=5),
    }
    for name, purify in purifiers.items():
        together = purify(rough)
        # In batches of one size, to the bit; among sizes, up to the rounding of kernels.
        reverse = purify(rough[::-1])[::-1]
        assert np.array_equal(together, reverse), name
        change = abs(np.array(together).astype(int)[2] - purify(rough[2:3])[0])
        assert change.max() <= 1, name


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 7, 3), (50, 71, 3), (64, 96, 3)])
def test_images_of_any_size(demo_model: LatentDiffusion, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for result in (
        vae_roundtrip(demo_model, [image]),
        diffpure(demo_model, [image], start=20, steps=1),
        diffpure(demo_model, [image], start=20, steps=1, tile=32),
        gridpure(demo_model, [image], rounds=1),
        impress(demo_model, [image], iterations=1),
    ):
        assert result[0].shape == shape and result[0].dtype == np.uint8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: diffpure(m, x, start=0), "start: expected a timestep from 1 to 999 of 1000, got 0"),
        (lambda m, x: diffpure(m, x, start=1000), "start: expected a timestep from 1 to 999"),
        (lambda m, x: diffpure(m, x, start=5, steps=6), "steps: expected 1 to 5"),
        (lambda m, x: diffpure(m, x, start=5, steps=1, tile=16), "tile: expected a positive multiple of 32"),
        (lambda m, x: vae_roundtrip(m, x, 0), "tile: expected a positive multiple of 32"),
        (lambda m, x: gridpure(m, x, rounds=0), "rounds: expected a number at least 1"),
        (lambda m, x: gridpure(m, x, gamma=1.5), "gamma: expected a number at least 0 and at most 1"),
        (lambda m, x: impress(m, x, distance="l1"), "distance: expected one of vae, lpips, l2, got 'l1'"),
        (lambda m, x: vae_roundtrip(m, [x[0], x[1][:32]]), r"images\[1\]: expected the first image's shape"),
    ],
)
def test_bad_options(demo_model: LatentDiffusion, clean: Images, call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(demo_model, clean)
