"""Noisy upscaling: noise, then Lanczos, or a (tiny, random) upscaling pipeline of diffusers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lordfast.data import list_images, load_image
from lordfast.diffusion.upscaling import load_upscaler
from lordfast.purify.noise import gaussian_noise
from lordfast.purify.run import run_purify
from lordfast.purify.smooth import resize
from lordfast.purify.upscale import noisy_upscale

Images = list[np.ndarray]


@pytest.fixture(scope="module")
def upscaler(sd15_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The topology of the x4 upscaler, random and tiny: a UNet that sees the noisy image, a VAE of factor 4."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DDPMScheduler,
        StableDiffusionPipeline,
        StableDiffusionUpscalePipeline,
        UNet2DConditionModel,
    )

    sd15 = StableDiffusionPipeline.from_pretrained(sd15_folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = StableDiffusionUpscalePipeline(
            vae=AutoencoderKL(
                block_out_channels=(4, 8, 8),
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                latent_channels=4,
                norm_num_groups=2,
                scaling_factor=0.08333,
            ),
            text_encoder=sd15.text_encoder,
            tokenizer=sd15.tokenizer,
            unet=UNet2DConditionModel(
                sample_size=16,
                in_channels=7,
                out_channels=4,
                block_out_channels=(16, 32),
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=24,
                attention_head_dim=8,
                norm_num_groups=8,
                num_class_embeds=1000,
            ),
            low_res_scheduler=DDPMScheduler(),
            scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1),
            max_noise_level=350,
        )
    folder = tmp_path_factory.mktemp("models") / "upscaler"
    pipeline.save_pretrained(folder)
    return folder


def test_without_an_upscaler_it_is_noise_and_then_lanczos(clean: Images) -> None:
    found = noisy_upscale(clean, std=0.1, seed=2, factor=2.0)
    for image, result in zip(clean, found, strict=True):
        assert np.array_equal(result, resize(gaussian_noise(image, 0.1, 2), 2.0))


def test_the_pipeline_sees_the_noisy_images_and_its_result_is_scaled_back(
    upscaler: Path, clean: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load_upscaler(upscaler, device="cpu")
    seen: dict[str, Any] = {}
    call = type(pipeline).__call__

    def watch(self: Any, prompt: list[str], **options: Any) -> Any:
        seen.update(options, prompt=prompt, output=call(self, prompt, **options))
        return seen["output"]

    monkeypatch.setattr(type(pipeline), "__call__", watch)
    cropped = [np.ascontiguousarray(image[:33, :40]) for image in clean[:2]]
    found = noisy_upscale(cropped, std=0.1, seed=2, pipeline=pipeline, prompt="a face", steps=2, noise_level=30)
    assert seen["prompt"] == ["a face"] * 2 and (seen["noise_level"], seen["num_inference_steps"]) == (30, 2)
    assert seen["image"].shape == (2, 3, 36, 40)  # multiples of 4, to which the pipeline would scale them
    given = ((seen["image"] + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()[:, :33]
    assert np.array_equal(given, [gaussian_noise(image, 0.1, 2) for image in cropped])
    large = seen["output"].images
    assert large.shape == (2, 3, 144, 160)
    for i, result in enumerate(found):
        levels = (large[i].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)[:132]
        expected = Image.fromarray(levels).resize((40, 33), Image.Resampling.LANCZOS)
        assert abs(np.asarray(expected).astype(int) - result).max() <= 1


def test_a_folder_with_an_upscaler(config, upscaler: Path, faces: Path, tmp_path: Path) -> None:
    # Without noise of ours, so that the seed is seen to reach the pipeline.
    options = {"upscaler": str(upscaler), "steps": 2, "resolution": 16, "std": 0.0}
    for out, more in (("a", {}), ("b", {"batch_size": 1}), ("c", {"seed": 1})):
        run_purify("noisy-upscale", config("noisy-upscale", out=tmp_path / out, **options, **more))
    results = [np.array([load_image(r.path) for r in list_images(tmp_path / out)]).astype(int) for out in "abc"]
    assert results[0].shape == (4, 16, 16, 3)
    assert abs(results[0] - results[1]).max() <= 1 and abs(results[0] - results[2]).mean() > 1
    with pytest.raises(ValueError, match="noise_level: expected a number at least 0 and at most 350, got 400"):
        run_purify("noisy-upscale", config("noisy-upscale", out=tmp_path / "d", noise_level=400, **options))
    (upscaler / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="upscaler: .* can't be loaded"):
        run_purify("noisy-upscale", config("noisy-upscale", out=tmp_path / "d", **options))
    assert not (tmp_path / "d").exists()
