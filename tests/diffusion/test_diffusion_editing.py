"""Noising latents part of the way and denoising them again."""

import pytest
import torch
from torch import Tensor

from lordfast.diffusion import LatentDiffusion
from lordfast.diffusion.editing import noise_and_denoise
from lordfast.diffusion.model import Text


@pytest.fixture
def drawn(demo_model: LatentDiffusion) -> tuple[Tensor, Tensor, Text]:
    generator = torch.Generator().manual_seed(3)
    shape = (2, 4, 16, 16)
    latents, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    return latents, noise, demo_model.embed(["a photo of a person", "a photo of a landscape"])


def _knowing(model: LatentDiffusion, latents: Tensor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Make the denoiser predict what `latents` are hidden behind; returns the list of timesteps it is asked at."""
    asked: list[int] = []

    def predict(noisy: Tensor, timesteps: Tensor, text: Text) -> Tensor:
        asked.append(int(timesteps[0]))
        signal, sigma = model.signal_noise(timesteps)
        clean = latents.repeat(len(noisy) // len(latents), 1, 1, 1)
        noise = (noisy - signal * clean) / sigma
        return noise if model.prediction_type == "epsilon" else signal * noise - sigma * clean

    monkeypatch.setattr(model, "predict", predict)
    return asked


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("start", "steps"), [(400, 4), (5, 5), (999, 1)])
def test_a_perfect_denoiser_gives_the_latents_back(
    demo_model: LatentDiffusion,
    drawn: tuple[Tensor, Tensor, Text],
    prediction_type: str,
    start: int,
    steps: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    latents, noise, text = drawn
    demo_model.prediction_type = prediction_type
    asked = _knowing(demo_model, latents, monkeypatch)
    again = noise_and_denoise(demo_model, latents, noise, text, start=start, steps=steps)
    # sqrt(a_999) is 0.07: what a rounding error of the prediction is divided by.
    torch.testing.assert_close(again, latents, rtol=0, atol=1e-4)
    assert asked[0] == start and len(asked) == steps and asked == sorted(asked, reverse=True) and asked[-1] >= 1


def test_it_agrees_with_the_ddim_scheduler_of_diffusers(
    demo_model: LatentDiffusion, drawn: tuple[Tensor, Tensor, Text]
) -> None:
    from diffusers import DDIMScheduler

    latents, noise, text = drawn
    start, steps = 500, 5
    options = {"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 0}
    scheduler = DDIMScheduler.from_config(demo_model.scheduler.config, **options)
    scheduler.set_timesteps(10)  # every hundredth timestep
    current = demo_model.add_noise(latents, noise, torch.full((2,), start))
    with torch.no_grad():
        for time in range(start, 0, -start // steps):
            prediction = demo_model.predict(current, torch.full((2,), time), text)
            if time == 100:
                break
            current = scheduler.step(prediction, time, current).prev_sample
        expected = scheduler.step(prediction, time, current).pred_original_sample
        found = noise_and_denoise(demo_model, latents, noise, text, start=start, steps=steps)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_guidance_moves_away_from_the_empty_prompt(
    demo_model: LatentDiffusion, drawn: tuple[Tensor, Tensor, Text]
) -> None:
    latents, noise, text = drawn
    empty = demo_model.embed([""])
    options = {"start": 600, "steps": 1}
    with torch.no_grad():
        plain = noise_and_denoise(demo_model, latents, noise, text, **options)
        general = noise_and_denoise(
            demo_model, latents, noise, {k: v.repeat(2, 1, 1) for k, v in empty.items()}, **options
        )
        guided = noise_and_denoise(demo_model, latents, noise, text, guidance=3.0, unconditional=empty, **options)
    # One step is linear in the prediction, so guidance is the same extrapolation of its results.
    torch.testing.assert_close(guided, general + 3.0 * (plain - general), rtol=1e-4, atol=1e-3)
    assert (plain - general).abs().max() > 1e-2


def test_recomputing_changes_no_gradient(demo_model: LatentDiffusion, drawn: tuple[Tensor, Tensor, Text]) -> None:
    latents, noise, text = drawn
    gradients = []
    for checkpoint in (False, True):
        leaf = latents.clone().requires_grad_(True)
        out = noise_and_denoise(demo_model, leaf, noise, text, start=300, steps=3, checkpoint=checkpoint)
        gradients.append(torch.autograd.grad(out.square().sum(), leaf)[0])
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"start": 0, "steps": 1}, "start"),
        ({"start": 1000, "steps": 1}, "start"),
        ({"start": 10, "steps": 11}, "steps"),
        ({"start": 10, "steps": 0}, "steps"),
        ({"start": 10, "steps": 2, "guidance": 2.0}, "unconditional"),
    ],
)
def test_bad_input_is_named(
    demo_model: LatentDiffusion, drawn: tuple[Tensor, Tensor, Text], options: dict, argument: str
) -> None:
    with pytest.raises(ValueError, match=f"^{argument}: "):
        noise_and_denoise(demo_model, *drawn, **options)
