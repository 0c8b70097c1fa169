"""The denoising loss by hand, its noise, and what it takes to ask for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lordfast.data import list_images, load_image, make_faces, save_png
from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.evaluation import EvaluateConfig, run_evaluate
from lordfast.evaluation.denoising import denoising_losses
from lordfast.evaluation.noise import keyed_noise
from lordfast.pixels import to_tensor
from lordfast.training.lora import LORA_NAME, add_lora

FACES = [face.image for face in make_faces(3, seed=3)]
EXAMPLES = [(f"{i}", image, f"person {i}") for i, image in enumerate(FACES)]


@pytest.fixture(scope="module")
def tiny(sd15_folder: Path) -> LatentDiffusion:
    return load_model(str(sd15_folder), device="cpu")


@torch.no_grad()
def test_it_is_the_mean_squared_error_of_the_prediction(tiny: LatentDiffusion) -> None:
    found = denoising_losses(tiny, EXAMPLES, (50, 800), seed=4, batch_size=2)
    assert found.dtype == torch.float64
    for i, (key, image, caption) in enumerate(EXAMPLES):
        latents, text = tiny.encode(to_tensor([image])), tiny.embed([caption])
        for j, timestep in enumerate((50, 800)):
            noise = keyed_noise(latents, 4, "denoising", [key], timestep)
            alpha = tiny.scheduler.alphas_cumprod[timestep]
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
            prediction = tiny.predict(noisy, torch.tensor([timestep]), text)
            assert float(found[i, j]) == pytest.approx(float((prediction - noise).square().mean()), rel=1e-4)


def test_the_noise_goes_by_seed_image_and_timestep_alone(tiny: LatentDiffusion) -> None:
    found = denoising_losses(tiny, EXAMPLES, (50, 800), batch_size=3)
    turned = denoising_losses(tiny, EXAMPLES[::-1], (800,), batch_size=2)
    assert torch.allclose(turned[:, 0], found[:, 1].flip(0), rtol=1e-5)
    renamed = denoising_losses(tiny, [("other", *EXAMPLES[0][1:])], (50,))
    reseeded = denoising_losses(tiny, EXAMPLES[:1], (50,), seed=1)
    assert len({float(renamed), float(reseeded), float(found[0, 0])}) == 3
    like = torch.zeros(2, 4, 8, 8)
    gates, losses = (keyed_noise(like, 0, purpose, ["a", "b"], 5) for purpose in ("gates", "denoising"))
    assert not torch.equal(gates, losses) and not torch.equal(losses[0], losses[1])
    assert abs(float(losses.std()) - 1) < 0.15


def test_bad_timesteps_and_no_images(tiny: LatentDiffusion) -> None:
    with pytest.raises(ValueError, match="timesteps: expected different integers from 0 to 999"):
        denoising_losses(tiny, EXAMPLES, (50, 1000))
    with pytest.raises(ValueError, match="examples: expected at least one image"):
        denoising_losses(tiny, [], (50,))


@pytest.fixture
def lora(sd15_folder: Path, tmp_path: Path) -> Path:
    """A LoRA that changes what the model predicts."""
    model = load_model(str(sd15_folder), device="cpu")
    add_lora(model, rank=2, alpha=2, target_modules=["to_q", "to_v"])
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.unet.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_lora(tmp_path / "lora", LORA_NAME)
    return tmp_path / "lora"


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    for i, image in enumerate(FACES):
        save_png(image, tmp_path / "held-out" / f"{i}.png")
    return tmp_path / "held-out"


def settings(tmp_path: Path, model: Path, **changes: Any) -> EvaluateConfig:
    common = {"out": tmp_path / "run", "device": "cpu", "model": str(model), "denoising_timesteps": (50, 800)}
    return EvaluateConfig(**{**common, "prompt": "a person", **changes})


def test_a_run_says_what_a_lora_does_to_held_out_images(
    sd15_folder: Path, lora: Path, held_out: Path, tmp_path: Path
) -> None:
    summary = run_evaluate(settings(tmp_path, sd15_folder, lora=lora, reference=held_out))
    assert "distribution" not in summary and "frequency" not in summary
    found = summary["denoising"]
    model = load_model(str(sd15_folder), device="cpu")
    records = list_images(held_out)
    examples = [(Path(record.name).stem, load_image(record.path), "a person") for record in records]
    bare = denoising_losses(model, examples, (50, 800)).numpy()
    model.pipeline().load_lora_weights(lora, adapter_name=LORA_NAME)
    expected = denoising_losses(model, examples, (50, 800)).numpy()
    assert found["loss"]["value"] == pytest.approx(expected.mean(), rel=1e-5)
    assert found["loss"]["low"] < found["loss"]["value"] < found["loss"]["high"]
    assert [row["value"] for row in found["timesteps"]] == pytest.approx(expected.mean(axis=0), rel=1e-5)
    rows = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(np.reshape(rows, (3, 2)), expected, rtol=1e-5)
    assert "| timestep 800 |" in (tmp_path / "run" / "table.md").read_text()

    alone = run_evaluate(settings(tmp_path, sd15_folder, denoising=True, reference=held_out, out=tmp_path / "bare"))
    assert alone["denoising"]["loss"]["value"] == pytest.approx(bare.mean(), rel=1e-5)
    assert abs(bare.mean() - expected.mean()) > 1e-3 * bare.mean(), "else nothing above says that the LoRA was there"


def test_what_it_takes(sd15_folder: Path, lora: Path, held_out: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"lora": lora}, "reference: --lora needs --reference too"),
        ({"denoising": True}, "reference: --denoising needs --reference too"),
        (
            {"lora": lora, "reference": held_out, "prompt": None},
            "prompt: 3 images in .* have no caption, such as 0",
        ),
        ({"lora": held_out, "reference": held_out}, "lora: .* does not exist"),
        ({"lora": lora, "reference": held_out, "denoising_timesteps": (50, 50)}, "timesteps: expected different"),
        ({"lora": lora, "reference": held_out, "clean": held_out}, "lord: --clean needs --lord and --attacked too"),
    ):
        with pytest.raises(ValueError, match=message):
            run_evaluate(settings(tmp_path, sd15_folder, **changes))
        assert not (tmp_path / "run").exists()
