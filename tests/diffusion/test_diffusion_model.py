"""Encode, noise, predict, loss: against diffusers' own schedulers, autoencoder and pipeline."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline
from torch import Tensor

from lordfast.data import list_images, load_images
from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.pixels import to_tensor

PROMPTS = ["a photo of a person", "", "brown curly hair, " * 40]


@pytest.fixture(scope="module")
def folders(save_sd15: Callable[..., Path], sd15_folder: Path) -> dict[str, Path]:
    return {
        "epsilon": sd15_folder,
        "v_prediction": save_sd15("v", scheduler={"prediction_type": "v_prediction"}),
        "shifted": save_sd15("shifted", vae={"scaling_factor": 0.36, "shift_factor": 0.12}),
    }


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["epsilon", "shifted"])
def test_encode_is_the_autoencoders(folders: dict[str, Path], kind: str) -> None:
    model = load_model(folders[kind], device="cpu")
    vae = AutoencoderKL.from_pretrained(folders[kind], subfolder="vae").eval()
    pixels, noise = randn(2, 3, 64, 64).clamp(-1, 1), randn(2, 4, 8, 8, seed=1)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
        shift = vae.config.shift_factor or 0.0
        mean = (posterior.mode() - shift) * vae.config.scaling_factor
        sample = (posterior.mean + posterior.std * noise - shift) * vae.config.scaling_factor
        torch.testing.assert_close(model.encode(pixels), mean)
        torch.testing.assert_close(model.encode(pixels, noise), sample)
        # Decoding undoes the same scale and shift.
        torch.testing.assert_close(model.decode(mean), vae.decode(posterior.mode()).sample, rtol=1e-4, atol=1e-5)
    assert (sample - mean).abs().max() > 1e-3


def test_encode_carries_the_gradient_to_the_pixels(demo_model: LatentDiffusion) -> None:
    pixels = randn(1, 3, 64, 64).clamp(-1, 1).requires_grad_(True)
    demo_model.encode(pixels).square().sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().mean() > 0
    assert all(parameter.grad is None for parameter in demo_model.vae.parameters())


def test_decode_comes_close_to_a_photograph(demo_model: LatentDiffusion, photos: Path) -> None:
    records = [record for record in list_images(photos) if record.name in ("china.jpg", "flower.png", "astronaut.jpg")]
    pixels = to_tensor([image for _, image in load_images(records, 64)])
    with torch.no_grad():
        back = demo_model.decode(demo_model.encode(pixels))
    error = (back.clamp(-1, 1) - pixels).square().mean()
    plain = (pixels - pixels.mean(dim=(2, 3), keepdim=True)).square().mean()
    assert error < 0.2 * plain


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_and_target_are_the_schedulers(folders: dict[str, Path], kind: str) -> None:
    model = load_model(folders[kind], device="cpu")
    scheduler = DDPMScheduler.from_pretrained(folders[kind], subfolder="scheduler")
    latents, noise = randn(4, 4, 8, 8), randn(4, 4, 8, 8, seed=1)
    timesteps = torch.tensor([0, 1, 500, 999])
    torch.testing.assert_close(
        model.add_noise(latents, noise, timesteps), scheduler.add_noise(latents, noise, timesteps)
    )
    expected = noise if kind == "epsilon" else scheduler.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(model.target(latents, noise, timesteps), expected)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_loss_by_hand(folders: dict[str, Path], kind: str) -> None:
    model = load_model(folders[kind], device="cpu")
    scheduler = DDPMScheduler.from_pretrained(folders[kind], subfolder="scheduler")
    latents, noise = randn(2, 4, 8, 8), randn(2, 4, 8, 8, seed=1)
    timesteps, text = torch.tensor([10, 700]), model.embed(["a photo", "a face"])
    with torch.no_grad():
        losses = model.loss(latents, noise, timesteps, text)
        for i in range(2):
            noisy = scheduler.add_noise(latents[i : i + 1], noise[i : i + 1], timesteps[i : i + 1])
            states = text["encoder_hidden_states"][i : i + 1]
            prediction = model.unet(noisy, timesteps[i : i + 1], encoder_hidden_states=states).sample
            alpha = scheduler.alphas_cumprod[timesteps[i]].double()
            velocity = alpha.sqrt() * noise[i] - (1 - alpha).sqrt() * latents[i]
            wanted = noise[i] if kind == "epsilon" else velocity
            expected = ((prediction[0].double() - wanted) ** 2).mean().float()
            torch.testing.assert_close(losses[i], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_stays_close(demo_model: LatentDiffusion, dtype: str) -> None:
    half = load_model("demo", device="cpu", dtype=dtype)
    pixels, noise = randn(2, 3, 64, 64).clamp(-1, 1), randn(2, 4, 16, 16, seed=1)
    timesteps = torch.tensor([100, 600])
    losses = []
    for model in (demo_model, half):
        with torch.no_grad():
            text = model.embed(["a photo of a person"] * 2)
            losses.append(model.loss(model.encode(pixels), noise, timesteps, text))
    assert losses[1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0)


def test_text_is_the_pipelines(folders: dict[str, Path]) -> None:
    model = load_model(folders["epsilon"], device="cpu")
    pipeline = StableDiffusionPipeline.from_pretrained(folders["epsilon"], safety_checker=None)
    expected, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, do_classifier_free_guidance=False)
    found = model.embed(PROMPTS)["encoder_hidden_states"]
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


def test_what_is_cut_of_a_text_and_what_is_kept_are_the_whole(folders: dict[str, Path]) -> None:
    model = load_model(folders["epsilon"], device="cpu")
    length = model.text_lengths["text_encoder"]
    text = ("red hat " * length).strip()
    (cut,) = model.cut_text(text).values()
    kept = text.removesuffix(cut)
    assert cut and kept != text
    assert model.cut_text(kept) == {}
    for name, rows in model.embed([text]).items():
        assert torch.equal(rows, model.embed([kept])[name])
    # Words of one token each, and two places for the marks of beginning and end.
    model = load_model("demo", device="cpu")
    words = ["person"] * (model.text_lengths["text_encoder"] - 2)
    assert model.cut_text(" ".join(words)) == {}
    assert model.cut_text(" ".join([*words, "a", "photo"])) == {"text_encoder": "a photo"}
