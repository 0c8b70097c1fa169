"""Pretraining from nothing to the packed model, at toy size, and the parts of its denoiser stage."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from torch import nn

import lordfast
from lordfast.data import FaceAttributes, LandscapeAttributes, face_caption, landscape_caption, make_faces
from lordfast.demo.classifier import load_classifier
from lordfast.demo.pretrain import denoiser
from lordfast.demo.pretrain.denoiser import CaptionedLatents, DenoiserConfig, DenoiserObjective
from lordfast.demo.pretrain.stages import PretrainConfig, run_pretrain
from lordfast.demo.pretrain.vocabulary import WORDS, make_tokenizer
from lordfast.demo.quality import MAX_BYTES


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("pretrain") / "run"
    config = PretrainConfig(
        out=out,
        device="cpu",
        dtype="fp32",
        faces=12,
        landscapes=12,
        held_out=4,
        vae_steps=2,
        vae_batch_size=2,
        unet_steps=2,
        unet_batch_size=2,
        high_noise_steps=2,
        classifier_steps=2,
        classifier_batch_size=4,
        lord_pictures=4,
        lord_steps=1,
        quality_pictures=2,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(denoiser, "SAMPLE_PROMPTS", denoiser.SAMPLE_PROMPTS[:1])
        summary = run_pretrain(config)
        # A resumed run that has finished returns what it wrote.
        config.resume = True
        assert run_pretrain(config)["quality"] == summary["quality"]
    return out, summary


def test_what_comes_out_is_a_whole_model(made: tuple[Path, dict[str, Any]]) -> None:
    out, summary = made
    model = out / "model"
    pipeline = StableDiffusionPipeline.from_pretrained(model)
    assert {p.dtype for part in (pipeline.unet, pipeline.vae) for p in part.parameters()} == {torch.float32}
    image = pipeline("a photo of a person", num_inference_steps=1, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    vocabulary = json.loads((model / "tokenizer" / "vocab.json").read_text())
    assert vocabulary == pipeline.tokenizer.get_vocab()
    merges = (model / "tokenizer" / "merges.txt").read_text().splitlines()[1:]
    assert all("".join(merge.split(" ")) in vocabulary for merge in merges) and len(merges) > 50
    assert load_classifier(model / "classifier").num_features == 64
    lordfast.load_lord(pipeline, model / "lord")
    adapter = [p for name, p in pipeline.unet.named_parameters() if "lord_" in name]
    assert adapter and {p.dtype for p in adapter} == {torch.float32}
    assert summary["quality"]["bytes"] < MAX_BYTES


def test_the_card_has_the_measured_numbers(made: tuple[Path, dict[str, Any]]) -> None:
    out, summary = made
    card = (out / "model" / "README.md").read_text()
    assert "{" not in card
    for value in (*summary["quality"]["psnr"].values(), summary["quality"]["agreement"]["faces"]["skin"]["agreement"]):
        assert (f"{value:.2f} dB" if value > 1 else f"| {value:.1%} |") in card
    assert "12 drawn faces and 12 landscapes" in card
    assert "| 4 images |" in card, "2 steps of 2 images"


def test_every_stage_shows_its_samples(made: tuple[Path, dict[str, Any]]) -> None:
    out, _ = made
    assert (out / "vae" / "samples" / "step-000002.png").is_file()
    for stage in ("unet", "unet-high-noise"):
        assert (out / stage / "samples" / "step-000002.png").is_file()


def test_the_second_stage_goes_on_from_the_first(made: tuple[Path, dict[str, Any]]) -> None:
    out, _ = made
    file = "model/unet/diffusion_pytorch_model.safetensors"
    first, second = (load_file(out / stage / file) for stage in ("unet", "unet-high-noise"))
    # Two steps at no more than 4e-4 move no weight far; two networks drawn anew would differ by tenths.
    largest = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert 0 < largest < 2e-3


def test_latents_are_those_of_the_pictures_and_of_their_mirror_images(made: tuple[Path, dict[str, Any]]) -> None:
    out, _ = made
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(out / "vae" / "model")
    latents = torch.load(out / "latents.pt", weights_only=True)
    images = np.load(next((out / "data").glob("training-faces.npz")))["images"]
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        for row, seen in enumerate((pixels, pixels.flip(-1))):
            expected = vae.encode(seen).latent_dist.mean * vae.config.scaling_factor
            torch.testing.assert_close(latents[row, : len(images)], expected, atol=1e-4, rtol=1e-4)


def test_every_word_is_one_token_and_the_longest_caption_fits() -> None:
    tokenizer = make_tokenizer()
    longest = FaceAttributes("brown", "short", True, True, True, "medium", "surprised", "purple", 0)
    place = LandscapeAttributes("sunset", "autumn", "meadow", True, True, True)
    for caption in (face_caption(longest, token="sks"), landscape_caption(place, token="sks")):
        words = caption.split()
        assert set(words) <= set(WORDS)
        ids = tokenizer(caption).input_ids
        assert len(ids) == len(words) + 2 <= tokenizer.model_max_length
        assert tokenizer.convert_ids_to_tokens(ids)[1:-1] == [f"{word}</w>" for word in words]


def test_captions_are_drawn_anew_and_some_are_empty_or_have_the_rare_token() -> None:
    tokenizer = make_tokenizer()
    config = DenoiserConfig(out=Path("unused"))
    batches = CaptionedLatents(
        torch.arange(2.0)[:, None, None, None, None].expand(2, 1, 4, 2, 2),
        [make_faces(1, 0)[0].attributes],
        tokenizer,
        config,
        1000,
    )
    n = 600
    drawn = batches([0] * n, [torch.Generator().manual_seed(i) for i in range(n)])
    again = batches([0] * 3, [torch.Generator().manual_seed(i) for i in range(3)])
    for name, value in again.items():
        torch.testing.assert_close(drawn[name][:3], value)
    texts = tokenizer.batch_decode(drawn["ids"], skip_special_tokens=True)
    # Four standard deviations of a share of 0.1 among 600 are below 0.05.
    assert abs(sum(not text.strip() for text in texts) / n - config.no_caption) < 0.05
    assert abs(sum("sks" in text for text in texts) / n - config.rare_token) < 0.05
    assert len(set(texts)) > 5
    assert abs(float(drawn["latents"].mean()) - 0.5) < 0.09, "half of them mirrored"
    assert drawn["timesteps"].float().mean().sub(500).abs() < 60


class _Text(nn.Module):
    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor]:
        return (ids,)


def test_the_loss_is_min_snr_weighted() -> None:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")

    class Unet(nn.Module):
        def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> Any:
            self.noisy = noisy
            return SimpleNamespace(sample=torch.zeros_like(noisy))

    unet = Unet()
    objective = DenoiserObjective(unet, _Text(), scheduler, min_snr=5.0)
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(2))
    timesteps = torch.tensor([0, 300, 999])
    out = objective(latents=latents, noise=noise, timesteps=timesteps, ids=torch.zeros(3, 4))
    torch.testing.assert_close(unet.noisy, scheduler.add_noise(latents, noise, timesteps))
    alpha = scheduler.alphas_cumprod[timesteps].double()
    ratio = alpha / (1 - alpha)
    error = noise.double().square().mean(dim=(1, 2, 3))
    expected = (torch.minimum(ratio, torch.tensor(5.0)) / ratio * error).mean()
    assert float(out["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert ratio[0] > 100 and ratio[2] < 0.01, "one below the threshold, one far above"
    heavier = DenoiserObjective(unet, _Text(), scheduler, min_snr=5.0, max_weight=30.0)
    assert heavier.weight[0] == objective.weight[0]
    assert float(heavier.weight[300]) == pytest.approx(max(1.0, 1 / float(ratio[1])) * float(objective.weight[300]))
    assert float(heavier.weight[999]) == pytest.approx(30.0)


def test_high_noise_is_drawn_as_often_as_asked_for() -> None:
    config = DenoiserConfig(out=Path("unused"), high_noise=0.5)
    batches = CaptionedLatents(
        torch.zeros(2, 1, 4, 2, 2), [make_faces(1, 0)[0].attributes], make_tokenizer(), config, 1000
    )
    drawn = batches([0] * 400, [torch.Generator().manual_seed(i) for i in range(400)])["timesteps"]
    # Half of them above 700, and 30 % of the other half; four standard deviations are below 0.1.
    assert abs(float((drawn >= 700).float().mean()) - 0.65) < 0.1
