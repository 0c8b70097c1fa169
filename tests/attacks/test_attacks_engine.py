"""The perturbation loop: its gradient, its random start, its budget, and that images do not depend on one another."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lordfast.attacks import engine
from lordfast.attacks.budget import Budget
from lordfast.attacks.engine import PgdSettings
from lordfast.attacks.pgd import LdmLoss, PgdConfig, TargetedLoss, pgd_loss
from lordfast.attacks.protocol import AttackLoss, Inputs
from lordfast.data import list_images, load_images
from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.diffusion.model import Text
from lordfast.pixels import to_tensor


@pytest.fixture
def images(photos: Path) -> list[np.ndarray]:
    return [image for _, image in load_images(list_images(photos)[:4], 64)]


def embed(model: LatentDiffusion, count: int) -> Text:
    return model.embed([f"a photo of a person number {i}" for i in range(count)])


def perturb(
    model: LatentDiffusion,
    images: Sequence[np.ndarray],
    text: Text,
    loss: AttackLoss,
    config: PgdSettings,
    on_step: Callable[[int], None] | None = None,
) -> list[np.ndarray]:
    """The 8-bit images that the attack makes."""
    levels = engine.perturb(model, images, text, loss, config, on_step)
    return [config.budget.quantise(level, image) for level, image in zip(levels, images, strict=True)]


def probe_loss(
    model: LatentDiffusion, images: Sequence[np.ndarray], text: Text, loss: AttackLoss, **options: int
) -> list[float]:
    return engine.probe_loss(model, images, images, text, loss, settings(), **options)


def rows(text: Text, chosen: Sequence[int]) -> Text:
    return {name: value[list(chosen)] for name, value in text.items()}


def settings(**overrides: object) -> PgdSettings:
    options = {"budget": Budget(8 / 255, 2 / 255), "steps": 3} | overrides
    return PgdSettings(**options)  # type: ignore[arg-type]


def options(**fields: object) -> PgdConfig:
    return PgdConfig(model="demo", images=Path("."), out=Path("."), **fields)  # type: ignore[arg-type]


def draws(model: LatentDiffusion, count: int, config: PgdSettings) -> engine._Draw:
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    return engine._draw(generators, torch.Size((4, 16, 16)), model, config)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("latent_sample", [False, True])
@pytest.mark.parametrize("low_memory", [False, True])
def test_the_gradient_is_autograds(
    demo_model: LatentDiffusion, images: list[np.ndarray], targeted: bool, latent_sample: bool, low_memory: bool
) -> None:
    config = settings(draws=3, latent_sample=latent_sample)
    loss = pgd_loss(options(targeted=targeted))
    x, text, draw = to_tensor(images[:2]), embed(demo_model, 2), draws(demo_model, 2, config)
    assert draw.noise.shape == (3, 2, 4, 16, 16)

    pixels, total = x.clone().requires_grad_(True), 0
    for image in range(2):
        one = slice(image, image + 1)
        for i in range(3):
            noise = draw.latent_noise[one] if draw.latent_noise is not None else None
            latents = demo_model.encode(pixels[one], noise)
            eps, t = draw.noise[i, one], draw.timesteps[i, one]
            prediction = demo_model.predict(demo_model.add_noise(latents, eps, t), t, rows(text, [image]))
            wanted = loss.target.latents(demo_model, x) if isinstance(loss, TargetedLoss) else eps
            total = total + (prediction - wanted).square().mean() / 3
    (expected,) = torch.autograd.grad(total, pixels)

    fixed = engine._Fixed.of(x, text, draws=3)
    found = engine._gradient(demo_model, x, fixed, loss, draw, low_memory)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    assert all(parameter.grad is None for parameter in demo_model.unet.parameters())


def test_low_memory_never_predicts_for_more_than_one_draw(
    demo_model: LatentDiffusion, images: list[np.ndarray]
) -> None:
    seen: list[int] = []

    class Spy(LdmLoss):
        def __call__(self, model: LatentDiffusion, inputs: Inputs) -> Tensor:
            seen.append(len(inputs.latents))
            return super().__call__(model, inputs)

    found = {}
    for low_memory in (False, True):
        seen.clear()
        config = settings(steps=1, draws=3, low_memory=low_memory, random_start=False)
        found[low_memory] = perturb(demo_model, images[:2], embed(demo_model, 2), Spy(), config)
        assert seen == ([2, 2, 2] if low_memory else [6])
    same = [(a == b).mean() for a, b in zip(found[False], found[True], strict=True)]
    assert min(same) > 0.999


def test_images_do_not_depend_on_their_batch(demo_model: LatentDiffusion, images: list[np.ndarray]) -> None:
    text, config = embed(demo_model, 4), settings(steps=5)
    whole = perturb(demo_model, images, text, LdmLoss(), config)
    backwards = perturb(demo_model, images[::-1], rows(text, [3, 2, 1, 0]), LdmLoss(), config)[::-1]
    company = perturb(demo_model, [images[i] for i in (2, 0, 0, 1)], rows(text, [2, 0, 0, 1]), LdmLoss(), config)
    assert all((a == b).all() for a, b in zip(whole, backwards, strict=True))
    assert (company[0] == whole[2]).all() and (company[1] == whole[0]).all() and (company[2] == whole[0]).all()
    for i in range(4):
        (alone,) = perturb(demo_model, [images[i]], rows(text, [i]), LdmLoss(), config)
        # Kernels round differently with the batch size, and a gradient next to zero can change its sign; measured over
        # 40 steps: three images of four bit-equal, 0.4 % of the fourth one's values differ.
        assert (alone != whole[i]).mean() < 0.02


def test_the_seed_and_the_pixels_decide(demo_model: LatentDiffusion, images: list[np.ndarray]) -> None:
    text = embed(demo_model, 1)

    def attack(image: np.ndarray, **options: object) -> np.ndarray:
        return perturb(demo_model, [image], text, LdmLoss(), settings(**options))[0]

    first = attack(images[0])
    assert (first == attack(images[0].copy())).all()
    assert (first != attack(images[0], seed=1)).mean() > 0.2
    edited = images[0].copy()
    edited[0, 0, 0] ^= 1
    assert (first != attack(edited)).mean() > 0.2


@pytest.mark.parametrize(("norm", "eps", "step"), [("linf", 8 / 255, 3 / 255), ("linf", 0.03, 0.01), ("l2", 3.0, 1.0)])
def test_the_result_obeys_the_budget_and_spends_it(
    demo_model: LatentDiffusion, images: list[np.ndarray], norm: str, eps: float, step: float
) -> None:
    config = settings(budget=Budget(eps, step, norm), steps=6)  # type: ignore[arg-type]
    for attacked, image in zip(
        perturb(demo_model, images, embed(demo_model, 4), LdmLoss(), config), images, strict=True
    ):
        change = attacked.astype(np.float64) - image
        size = np.abs(change).max() if norm == "linf" else np.linalg.norm(change)
        assert 0.8 * eps * 255 - 1 < size <= eps * 255 * (1 + 1e-9)


def test_one_step_follows_the_sign_of_the_gradient(demo_model: LatentDiffusion, images: list[np.ndarray]) -> None:
    text = embed(demo_model, 2)
    moved = {}
    for direction in (1, -1):
        config = settings(budget=Budget(8 / 255, 4 / 255), steps=1, random_start=False, seed=3)
        attacked = perturb(demo_model, images[:2], text, LdmLoss(direction), config)
        moved[direction] = np.stack(attacked).astype(int) - np.stack(images[:2])
    # One step of 4 grey levels from the image itself, within the range.
    inside = (np.stack(images[:2]) >= 4) & (np.stack(images[:2]) <= 251)
    assert (np.abs(moved[1][inside]) == 4).mean() > 0.999
    assert (moved[1][inside] == -moved[-1][inside]).all()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_random_start_is_uniform_in_the_ball(norm: str) -> None:
    x = torch.zeros(40, 3, 16, 16)
    generators = [torch.Generator().manual_seed(i) for i in range(len(x))]
    eps = 0.3
    offset = engine._random_start(x, eps, norm, 0.0, generators) - x
    assert not torch.equal(offset[0], offset[1])
    if norm == "linf":
        assert offset.abs().max() <= eps
        quantiles = torch.quantile(offset.flatten()[:30000] / eps, torch.tensor([0.1, 0.25, 0.5, 0.9]))
        torch.testing.assert_close(quantiles, torch.tensor([-0.8, -0.5, 0.0, 0.8]), rtol=0, atol=0.03)
    else:
        radius = offset.flatten(1).norm(dim=1) / eps
        # In 768 dimensions nearly all of a ball lies next to its surface: E r^d = 1/2.
        assert radius.max() <= 1 + 1e-6 and radius.min() > 0.98
        assert 0.3 < (radius.double() ** 768).mean() < 0.7


def test_the_random_start_stays_within_the_range_and_without_steps_is_all(
    demo_model: LatentDiffusion, images: list[np.ndarray]
) -> None:
    x = torch.ones(1, 3, 8, 8)
    assert engine._random_start(x, 0.5, "linf", 0.0, [torch.Generator()]).max() <= 1
    text = embed(demo_model, 1)
    (noise,) = perturb(demo_model, images[:1], text, LdmLoss(), settings(steps=0))
    assert 6 <= np.abs(noise.astype(int) - images[0]).max() <= 8
    (same,) = perturb(demo_model, images[:1], text, LdmLoss(), settings(steps=0, random_start=False))
    assert (same == images[0]).all()


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_attacks(demo_model: LatentDiffusion, images: list[np.ndarray], dtype: str) -> None:
    half, text = load_model("demo", device="cpu", dtype=dtype), embed(demo_model, 2)
    config = settings(budget=Budget(8 / 255, 4 / 255), steps=3)
    attacked = perturb(half, images[:2], embed(half, 2), LdmLoss(), config)
    assert all(np.abs(a.astype(int) - b).max() == 8 for a, b in zip(attacked, images[:2], strict=True))
    # What was found in half precision harms the fp32 model too.
    before, after = (probe_loss(demo_model, group, text, LdmLoss(), draws=12) for group in (images[:2], attacked))
    assert np.mean(after) > 1.1 * np.mean(before)


def test_probing_is_the_mean_over_its_draws(demo_model: LatentDiffusion, images: list[np.ndarray]) -> None:
    text = embed(demo_model, 2)
    few = probe_loss(demo_model, images[:2], text, LdmLoss(), draws=3)
    assert few == probe_loss(demo_model, images[:2], text, LdmLoss(), draws=3)
    (alone,) = probe_loss(demo_model, images[1:2], rows(text, [1]), LdmLoss(), draws=3)
    assert alone == pytest.approx(few[1], rel=1e-4)
    assert few != probe_loss(demo_model, images[:2], text, LdmLoss(), draws=3, seed=1)


def test_on_step_counts(demo_model: LatentDiffusion, images: list[np.ndarray]) -> None:
    seen: list[int] = []
    perturb(demo_model, images[:1], embed(demo_model, 1), LdmLoss(), settings(), seen.append)
    assert seen == [1, 2, 3]


def test_bad_settings() -> None:
    with pytest.raises(ValueError, match="steps: expected at least 0, got -1"):
        settings(steps=-1)
    with pytest.raises(ValueError, match="draws: expected at least 1, got 0"):
        settings(draws=0)


def test_images_of_two_sizes_are_refused(demo_model: LatentDiffusion, images: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"images\[1\]: expected the first image's shape"):
        perturb(demo_model, [images[0], images[1][:32]], embed(demo_model, 2), LdmLoss(), settings())


def test_the_host_reads_no_value_of_a_step_before_the_next(
    demo_model: LatentDiffusion, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    step, read = engine.pgd_step, engine.Later.read
    monkeypatch.setattr(engine, "pgd_step", lambda *a, **k: events.append("step") or step(*a, **k))
    monkeypatch.setattr(engine.Later, "read", lambda self: events.append("read") or read(self))
    perturb(demo_model, images[:1], embed(demo_model, 1), LdmLoss(), settings(steps=3))
    assert events == ["step", "read", "step", "read", "step", "read"]


def test_a_gradient_that_breaks_in_the_last_step_is_an_error_too(
    demo_model: LatentDiffusion, images: list[np.ndarray]
) -> None:
    class Breaks(LdmLoss):
        calls = 0

        def __call__(self, model: LatentDiffusion, inputs: Inputs) -> Tensor:
            Breaks.calls += 1
            return super().__call__(model, inputs) * (float("nan") if Breaks.calls == 3 else 1)

    with pytest.raises(ValueError, match="gradient: became NaN or infinite in torch.float32"):
        perturb(demo_model, images[:1], embed(demo_model, 1), Breaks(), settings(steps=3))
