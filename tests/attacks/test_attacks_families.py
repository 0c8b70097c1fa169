"""Attacks on models of every family: the budget holds, the loss moves, and what a family lacks is named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lordfast.attacks.budget import Budget
from lordfast.attacks.engine import PgdSettings, perturb, probe_loss
from lordfast.attacks.pgd import LdmLoss
from lordfast.attacks.protocol import AttackLoss, Inputs
from lordfast.attacks.registry import ATTACKS
from lordfast.data import make_faces
from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.pixels import to_tensor

FAMILIES = ("sd15", "sd21", "sdxl", "sd3")
LEVELS = 8


@pytest.fixture
def model(request: pytest.FixtureRequest, narrow_folder: Callable[[str], Path]) -> LatentDiffusion:
    return load_model(narrow_folder(request.param), device="cpu")


def _loss(name: str, model: LatentDiffusion, **fields: Any) -> AttackLoss:
    attack = ATTACKS[name]
    return attack.loss(attack.config(model="-", images=Path("."), out=Path("."), **fields), model)


def _inputs(model: LatentDiffusion, timesteps: list[int]) -> Inputs:
    generator = torch.Generator().manual_seed(2)
    original = to_tensor([face.image for face in make_faces(len(timesteps), seed=5)])
    pixels = (original + 0.1 * torch.randn(original.shape, generator=generator)).clamp(-1, 1)
    with torch.no_grad():
        latents = model.encode(pixels)
    noise = torch.randn(latents.shape, generator=generator)
    return Inputs(pixels, latents, original, noise, torch.tensor(timesteps), model.embed(["a face"] * len(pixels)))


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
def test_pgd_obeys_the_budget_and_beats_random_signs(model: LatentDiffusion) -> None:
    images = [face.image for face in make_faces(2, seed=3)]
    text = model.embed(["a photo of a face"] * 2)
    budget = Budget(LEVELS / 255, 2 / 255)
    settings = PgdSettings(budget, steps=5, draws=2, seed=1)
    levels = perturb(model, images, text, LdmLoss(), settings)
    attacked = [budget.quantise(one, image) for one, image in zip(levels, images, strict=True)]
    signs = [
        (image + np.random.default_rng(0).choice([-LEVELS, LEVELS], image.shape)).clip(0, 255).astype(np.uint8)
        for image in images
    ]
    for one, image in zip(attacked, images, strict=True):
        assert 0 < np.abs(one.astype(int) - image).max() <= LEVELS
    losses = [
        sum(probe_loss(model, which, images, text, LdmLoss(), settings, draws=4, seed=9))
        for which in (images, signs, attacked)
    ]
    assert losses[2] > losses[1] + abs(losses[1] - losses[0]), losses


@pytest.mark.parametrize("model", FAMILIES, indirect=True)
def test_the_targeted_subject_attack_takes_the_posterior_of_the_family_s_process(model: LatentDiffusion) -> None:
    times = [1, 300, 999]
    inputs = _inputs(model, times)
    loss = _loss("fsmg", model, targeted=True)
    with torch.no_grad():
        found = loss(model, inputs)
        noisy = model.add_noise(inputs.latents, inputs.noise, inputs.timesteps)
        prediction = model.predict(noisy, inputs.timesteps, inputs.text)
        clean, _ = model.split(noisy, prediction, inputs.timesteps)
        aim = loss.target.latents(model, inputs.original).expand_as(clean)  # type: ignore[attr-defined]
    for i, time in enumerate(times):
        (a, s), (a_before, s_before) = (
            tuple(float(value) for value in model.signal_noise(torch.tensor([t]))) for t in (time, time - 1)
        )
        # z_t = r z_{t-1} + fresh noise: the mean of a Gaussian given another that it is correlated with.
        covariance, variance = a / a_before * s_before**2, s**2
        z = clean[i].double()
        mean = a_before * z + covariance / variance * (noisy[i].double() - a * z)
        distance = (mean - (a_before * aim[i] + s_before * inputs.noise[i])).square().mean()
        error = (prediction[i] - model.target(inputs.latents, inputs.noise, inputs.timesteps)[i]).square().mean()
        torch.testing.assert_close(found[i].double(), error.double() - distance, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model", ["sdxl", "sd3"], indirect=True)
def test_an_attack_through_the_sampler_has_a_gradient_and_the_family_s_guidance(model: LatentDiffusion) -> None:
    loss = _loss("photoguard", model, mode="diffusion", sampler_steps=2, guidance=3.0)
    unconditional = loss.unconditional  # type: ignore[attr-defined]
    assert all(torch.equal(unconditional[name], value) for name, value in model.unconditional().items())
    inputs = _inputs(model, [0, 0])
    inputs.latents.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(model, inputs).sum(), inputs.latents)
    assert bool(torch.isfinite(gradient).all()) and gradient.abs().amax(dim=(1, 2, 3)).min() > 0


@pytest.mark.parametrize("model", ["sd3"], indirect=True)
def test_features_of_a_transformer(model: LatentDiffusion) -> None:
    there = "vae-encoder, joint-attention, feed-forward, vae-decoder"
    for missing in ("resnet", "cross-attention", "quant-conv"):
        with pytest.raises(ValueError, match=f"^module: .* has no {missing}; it has {there}$"):
            _loss("feature", model, module=missing)
    inputs = _inputs(model, [10, 700])
    inputs.latents.requires_grad_(True)
    for module in ("joint-attention", "feed-forward"):
        losses: Tensor = _loss("feature", model, module=module)(model, inputs)
        assert losses.shape == (2,) and losses.min() > 0
        assert torch.autograd.grad(losses.sum(), inputs.latents)[0].abs().max() > 0
