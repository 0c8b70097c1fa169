"""Each model family against diffusers itself: what reaches the denoiser, what it should answer, what is drawn."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.diffusion.editing import noise_and_denoise
from lordfast.diffusion.sampling import generate
from lordfast.pixels import to_uint8

FAMILIES = ("sd15", "sd21", "sdxl", "sd3")
PROMPTS = ["a photo of sks person", "a tree, brown curly hair, " * 9]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, narrow_folder: Callable[[str], Path]) -> Path:
    return narrow_folder(request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> LatentDiffusion:
    return load_model(folder, device="cpu")


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    """The family's pipeline as plain diffusers loads it, with the scheduler that lordfast samples with by default."""
    absent = {"text_encoder_3": None, "tokenizer_3": None} if folder.name == "sd3" else {}
    made = diffusers.DiffusionPipeline.from_pretrained(folder, **absent)
    if folder.name != "sd3":
        made.scheduler = diffusers.DDIMScheduler.from_config(made.scheduler.config)
    made.set_progress_bar_config(disable=True)
    # As lordfast has them: for weights that want a gradient torch takes other products, which round differently.
    for module in made.components.values():
        if isinstance(module, torch.nn.Module):
            module.requires_grad_(False)
    return made


def _denoiser(pipeline: Any) -> Any:
    return getattr(pipeline, "transformer", None) or pipeline.unet


def _calls(denoiser: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Everything that the denoiser is called with, by argument name, nested dicts flattened."""
    found: list[dict[str, Any]] = []
    forward = denoiser.forward
    signature = inspect.signature(type(denoiser).forward)

    def recording(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(denoiser, *args, **kwargs).arguments
        flat: dict[str, Any] = {}
        for name, value in given.items():
            flat |= value if isinstance(value, dict) else {name: value}
        found.append({name: value for name, value in flat.items() if isinstance(value, Tensor)})
        return forward(*args, **kwargs)

    monkeypatch.setattr(denoiser, "forward", recording)
    return found


@pytest.mark.parametrize("size", [(64, 64), (64, 128)])
def test_the_denoiser_gets_what_the_pipeline_gives_it(
    model: LatentDiffusion, pipeline: Any, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = (_calls(denoiser, monkeypatch) for denoiser in (_denoiser(pipeline), model.unet))
    pipeline(
        PROMPTS,
        height=size[0],
        width=size[1],
        latents=randn(2, *model.latent_shape(*size)),
        num_inference_steps=3,
        guidance_scale=1.0,
        output_type="latent",
    )
    expected = theirs[0]
    told = expected.pop("timestep").expand(2)
    assert float(told[0]) > 600
    # Of the flow, diffusers has T real numbers, noisiest first; ours counts from the cleanest.
    flow = hasattr(model.scheduler, "sigmas")
    index = int((model.scheduler.timesteps == told[0]).flip(0).nonzero()) if flow else int(told[0])
    with torch.no_grad():
        model.predict(expected["hidden_states" if flow else "sample"], torch.tensor([index] * 2), model.embed(PROMPTS))
    (mine,) = ours
    assert torch.equal(mine.pop("timestep"), told)
    assert mine.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(mine[name], value), name


def test_the_unconditional_text_is_the_pipelines(
    model: LatentDiffusion, pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = _calls(_denoiser(pipeline), monkeypatch)
    pipeline(PROMPTS[:1], num_inference_steps=1, guidance_scale=3.0, output_type="latent")
    for name, value in model.unconditional().items():
        assert torch.equal(value[0], theirs[0][name][0]), name
    # SDXL's pipeline says nothing by zeros; a caption that is empty is embedded like any other.
    zeros = all(bool((value == 0).all()) for value in model.unconditional().values())
    assert zeros is ("text_embeds" in theirs[0])
    assert model.embed([""])["encoder_hidden_states"].abs().max() > 0


def test_noise_and_target_are_the_schedulers(model: LatentDiffusion, folder: Path) -> None:
    latents, noise = randn(4, 4, 8, 8), randn(4, 4, 8, 8, seed=1)
    timesteps = torch.tensor([0, 1, 500, 999])
    found, target = model.add_noise(latents, noise, timesteps), model.target(latents, noise, timesteps)
    if folder.name == "sd3":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
        expected = scheduler.scale_noise(latents, scheduler.timesteps.flip(0)[timesteps], noise)
        # The derivative of z_t by the noise level.
        velocity = (found[2] - latents[2]) / scheduler.sigmas.flip(0)[500]
        torch.testing.assert_close(target[2], velocity, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[3], noise[3])
        assert 0 < float(model.signal_noise(timesteps)[1][0]) < 0.01
    else:
        scheduler = diffusers.DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        expected = scheduler.add_noise(latents, noise, timesteps)
        assert scheduler.config.prediction_type == ("v_prediction" if folder.name == "sd21" else "epsilon")
        wanted = noise if folder.name != "sd21" else scheduler.get_velocity(latents, noise, timesteps)
        torch.testing.assert_close(target, wanted)
    torch.testing.assert_close(found, expected)


def test_split_undoes_add_noise(model: LatentDiffusion) -> None:
    latents, noise, timesteps = randn(3, 4, 8, 8), randn(3, 4, 8, 8, seed=1), torch.tensor([0, 400, 900])
    noisy, target = model.add_noise(latents, noise, timesteps), model.target(latents, noise, timesteps)
    clean, estimated = model.split(noisy, target, timesteps)
    torch.testing.assert_close(clean, latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(estimated, noise, rtol=1e-4, atol=1e-4)


def test_encode_and_decode_are_the_autoencoders(model: LatentDiffusion, folder: Path) -> None:
    vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae").eval()
    pixels, shift = randn(2, 3, 64, 64).clamp(-1, 1), vae.config.shift_factor or 0.0
    assert (shift > 0) is (folder.name == "sd3")
    with torch.no_grad():
        plain = vae.encode(pixels).latent_dist.mode()
        torch.testing.assert_close(model.encode(pixels), (plain - shift) * vae.config.scaling_factor)
        torch.testing.assert_close(model.decode(model.encode(pixels)), vae.decode(plain).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("negative", ["", "blurry"])
def test_pictures_are_the_pipelines_bit_for_bit(model: LatentDiffusion, pipeline: Any, negative: str) -> None:
    latents = pipeline(
        PROMPTS,
        negative_prompt=[negative] * 2 if negative else None,
        num_inference_steps=2,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(11 + i) for i in range(2)],
        output_type="latent",
    ).images
    with torch.no_grad():
        shift = pipeline.vae.config.shift_factor or 0.0
        pixels = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor + shift).sample
    found = generate(model, PROMPTS, seed=11, steps=2, guidance=4.0, negative_prompt=negative)
    np.testing.assert_array_equal(np.stack(found), to_uint8(pixels))
    assert np.stack(found).std() > 1, "a flat picture would agree with anything"


def test_only_the_family_s_samplers_fit(model: LatentDiffusion, folder: Path) -> None:
    wrong = "ddim" if folder.name == "sd3" else "flow-euler"
    with pytest.raises(ValueError, match=f"^sampler: expected one of .* for .*{folder.name}, .*, got '{wrong}'"):
        generate(model, PROMPTS[:1], sampler=wrong)


def test_editing_a_little_at_a_time_follows_the_family_s_process(
    model: LatentDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents, noise, text = randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1), model.embed(PROMPTS)

    def knowing(noisy: Tensor, timesteps: Tensor, text: Any) -> Tensor:
        signal, sigma = model.signal_noise(timesteps)
        return model.target(latents, (noisy - signal * latents) / sigma, timesteps)

    monkeypatch.setattr(model, "predict", knowing)
    again = noise_and_denoise(model, latents, noise, text, start=800, steps=4)
    torch.testing.assert_close(again, latents, rtol=0, atol=1e-4)


def test_editing_is_the_flow_scheduler_s_sampling(narrow_folder: Callable[[str], Path]) -> None:
    model = load_model(narrow_folder("sd3"), device="cpu")
    latents, noise, text = randn(2, 16, 8, 8), randn(2, 16, 8, 8, seed=1), model.embed(PROMPTS)
    times = [800, 600, 400, 200]
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()  # no shift: these are the table's own, shifted sigmas
    scheduler.set_timesteps(sigmas=[float(model.signal_noise(torch.tensor([t]))[1]) for t in times])
    current = model.add_noise(latents, noise, torch.tensor([800, 800]))
    with torch.no_grad():
        for time, told in zip(times, scheduler.timesteps, strict=True):
            prediction = model.predict(current, torch.tensor([time] * 2), text)
            current = scheduler.step(prediction, told, current).prev_sample
        found = noise_and_denoise(model, latents, noise, text, start=800, steps=4)
    torch.testing.assert_close(found, current, rtol=1e-4, atol=1e-5)


def test_sizes_that_fit(model: LatentDiffusion, folder: Path) -> None:
    step = {"sdxl": 32, "sd3": 16}.get(folder.name, 64)
    assert (model.side_multiple, model.resolution, model.check_resolution(2 * step)) == (step, 64, 2 * step)
    with pytest.raises(ValueError, match=f"resolution: expected a positive multiple of {step}"):
        model.check_resolution(step + 8)
    if folder.name == "sd3":
        # Positions are learnt up to 16 patches of 2 latents of 8 pixels.
        with pytest.raises(ValueError, match="resolution: expected at most 256"):
            model.check_resolution(272)
        with pytest.raises(ValueError, match="images: .* takes sides of up to 256 pixels, got 512 x 64"):
            model.latent_shape(64, 512)


def test_half_precision_stays_close(model: LatentDiffusion, folder: Path) -> None:
    half = load_model(folder, device="cpu", dtype="fp16")
    assert half.vae.dtype == torch.float32 and half.unet.dtype == torch.float16
    pixels, noise = randn(2, 3, 64, 64).clamp(-1, 1), randn(2, *model.latent_shape(64, 64), seed=1)
    losses = []
    for one in (model, half):
        with torch.no_grad():
            losses.append(one.loss(one.encode(pixels), noise, torch.tensor([100, 600]), one.embed(PROMPTS)))
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0)
