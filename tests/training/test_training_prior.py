"""Prior preservation: the loss, its batches, and where class images come from."""

import functools
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lordfast.data import load_image, save_png
from lordfast.diffusion import TensorCache
from lordfast.diffusion.sampling import generate
from lordfast.training.examples import LatentBatches, LatentStore, TextStore, WithPrior
from lordfast.training.interrupt import Interrupted
from lordfast.training.lora import LoraObjective, add_lora
from lordfast.training.seeds import derived_generator
from lordfast.training.stage2 import draw_class_images, run_stage2

PRIOR = {"prior_preservation": True, "class_prompt": "a photo of a person", "class_images": 3}


@pytest.fixture(autouse=True)
def _one_sampler_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lordfast.training.generate.generate", functools.partial(generate, steps=1))


def _batches(model: Any, seed: int, count: int, prompt: str) -> LatentBatches:
    images = [np.random.default_rng(seed + i).integers(0, 256, (64, 64, 3), dtype=np.uint8) for i in range(count)]
    cache = TensorCache()
    return LatentBatches(
        LatentStore.of(model, images, cache), TextStore(model, [prompt] * count, cache), model.timesteps
    )


def test_the_loss_is_instance_plus_weighted_prior(demo_model: Any) -> None:
    instance, prior = _batches(demo_model, 0, 4, "a photo of sks person"), _batches(demo_model, 50, 3, "a person")
    generators = [derived_generator("test", i) for i in range(2)]
    batch = WithPrior(instance, prior)([3, 1], generators)
    assert torch.equal(batch["latents"][:2], torch.stack([instance.store.mean[3], instance.store.mean[1]]))
    assert all(any(torch.equal(row, known) for known in prior.store.mean) for row in batch["latents"][2:])
    text = batch["text"]["encoder_hidden_states"]
    assert torch.equal(text[0], instance.text([0])["encoder_hidden_states"][0])
    assert torch.equal(text[3], prior.text([0])["encoder_hidden_states"][0])
    add_lora(demo_model, rank=2, alpha=2, target_modules=["to_q"])
    with torch.no_grad():
        out = LoraObjective(demo_model, prior_weight=0.3)(**batch)
        noisy = demo_model.add_noise(batch["latents"], batch["noise"], batch["timesteps"])
        error = demo_model.predict(noisy, batch["timesteps"], batch["text"])
        error = (error - demo_model.target(batch["latents"], batch["noise"], batch["timesteps"])).square()
    assert out["instance_loss"].item() == pytest.approx(error[:2].mean().item(), rel=1e-5)
    assert out["prior_loss"].item() == pytest.approx(error[2:].mean().item(), rel=1e-5)
    assert out["loss"].item() == pytest.approx(error[:2].mean().item() + 0.3 * error[2:].mean().item(), rel=1e-5)


def test_missing_class_images_are_drawn_once_and_reused(
    stage2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = tmp_path / "class"
    run_stage2(stage2("first", **PRIOR, class_data=shared))
    assert sorted(path.name for path in shared.iterdir()) == [f"class-000{i}.png" for i in range(3)]
    pixels = [load_image(path) for path in sorted(shared.iterdir())]
    assert not np.array_equal(pixels[0], pixels[1])

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("drew class images again")

    monkeypatch.setattr("lordfast.training.generate.generate", never)
    run_stage2(stage2("second", **PRIOR, class_data=shared))
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("first", "second")]
    assert rows[0] == rows[1] and '"prior_loss"' in rows[0]


def test_brought_class_images_count_and_are_never_overwritten(stage2: Any, demo_model: Any, tmp_path: Path) -> None:
    folder = tmp_path / "class"
    mine = np.full((64, 64, 3), 77, np.uint8)
    save_png(mine, folder / "sub" / "mine.png")
    save_png(mine, folder / "class-0001.png")
    (folder / "notes.txt").write_text("kept")
    draw_class_images(demo_model, stage2(**PRIOR), folder)
    assert sorted(path.name for path in folder.rglob("*.png")) == ["class-0000.png", "class-0001.png", "mine.png"]
    assert np.array_equal(load_image(folder / "class-0001.png"), mine)


def test_an_interrupted_drawing_goes_on_to_the_same_images(
    stage2: Any, demo_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stage2(**(PRIOR | {"class_images": 10}))
    draw_class_images(demo_model, config, tmp_path / "straight")

    def press(image: np.ndarray, path: Path) -> None:
        save_png(image, path)
        if path.name == "class-0002.png":
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after 8 of 10 images"):
        patch.setattr("lordfast.training.generate.save_png", press)
        draw_class_images(demo_model, config, tmp_path / "broken")
    (tmp_path / "broken" / "class-0005.png").unlink()  # as if killed in the middle of a batch
    draw_class_images(demo_model, config, tmp_path / "broken")
    names = [path.name for path in sorted((tmp_path / "straight").iterdir())]
    assert len(names) == 10
    for name in names:
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()


def test_class_data_that_is_unusable_is_refused_before_anything_is_written(stage2: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="class_data: .* got the file"):
        run_stage2(stage2(**PRIOR, class_data=tmp_path / "file"))
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match=r"broken\.png"):
        run_stage2(stage2(**PRIOR, class_data=tmp_path / "class"))
    assert not (tmp_path / "stage2").exists()
