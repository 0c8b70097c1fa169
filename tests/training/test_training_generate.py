"""lordfast generate: images, resuming, and adapters that don't fit."""

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lordfast.data import load_image, save_png
from lordfast.diffusion import load_model
from lordfast.training.generate import GenerateConfig, load_adapters, run_generate
from lordfast.training.interrupt import Interrupted
from lordfast.training.stage2 import run_stage2


def _config(out: Path, **settings: Any) -> GenerateConfig:
    defaults = {"model": "demo", "prompt": "a photo of a person", "n": 3, "steps": 2, "batch_size": 2, "device": "cpu"}
    return GenerateConfig(out=out, **(defaults | settings))


def test_images_depend_on_the_seed_and_not_on_how_many_are_drawn(tmp_path: Path) -> None:
    assert run_generate(_config(tmp_path / "three"))["images"] == 3
    run_generate(_config(tmp_path / "five", n=5, batch_size=5))
    run_generate(_config(tmp_path / "other", seed=9))
    first, more, other = (
        [load_image(tmp_path / f / f"000{i}.png") for i in range(3)] for f in ("three", "five", "other")
    )
    for a, b in zip(first, more, strict=True):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[0], other[0])
    assert load_image(tmp_path / "three" / "preview" / "grid.png").shape[1] >= 3 * 64


def test_an_interrupted_run_ends_with_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_generate(_config(tmp_path / "straight", n=5, sampler="euler-a"))

    def press(image: np.ndarray, path: Path) -> None:
        save_png(image, path)
        if path.name == "0001.png":
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after 2 of 5 images"):
        patch.setattr("lordfast.training.generate.save_png", press)
        run_generate(_config(tmp_path / "broken", n=5, sampler="euler-a"))
    summary = run_generate(_config(tmp_path / "broken", n=5, sampler="euler-a", resume=True))
    for i in range(5):
        name = f"000{i}.png"
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes()
    assert run_generate(_config(tmp_path / "broken", n=5, sampler="euler-a", resume=True)) == summary


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"n": 0}, "n: expected at least 1, got 0"),
        ({"steps": 0}, "steps: expected at least 1"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"sampler": "magic"}, "sampler: expected one of ddim"),
        ({"model": "/nowhere"}, "model: '/nowhere' does not exist"),
        ({"resolution": 33}, "resolution: expected a positive multiple"),
        ({"lord": Path("/nowhere")}, "no LoRD adapter at /nowhere"),
        ({"lora": Path("/nowhere")}, "lora: /nowhere does not exist"),
    ],
)
def test_bad_settings_are_named_and_nothing_is_written(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        run_generate(_config(tmp_path / "out", **settings))
    assert not (tmp_path / "out").exists()


def test_a_lora_of_another_model_is_refused(
    stage2: Any, sd15_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stage2(stage2(model=str(sd15_folder), steps=1))
    with pytest.raises(ValueError, match="lora: .* does not fit demo"):
        run_generate(_config(tmp_path / "out", lora=tmp_path / "stage2"))
    assert not (tmp_path / "out").exists()


def test_a_lora_with_layers_that_the_model_lacks_is_not_loaded_in_part(stage2: Any, tmp_path: Path) -> None:
    run_stage2(stage2(steps=1))
    path = tmp_path / "stage2" / "pytorch_lora_weights.safetensors"
    tensors = load_file(path)
    down = next(key for key in tensors if key.endswith(("lora_A.weight", "lora.down.weight")))
    part = down.split(".attn")[0]
    tensors |= {
        key.replace(part, "unet.elsewhere"): value.clone() for key, value in tensors.items() if key.startswith(part)
    }
    save_file(tensors, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"lora: .*odd\.safetensors does not fit demo"):
        load_adapters(load_model("demo", device="cpu"), None, tmp_path / "odd.safetensors")


def test_a_lora_may_not_take_lord_s_name(stage2: Any, lord_folder: Path, tmp_path: Path) -> None:
    run_stage2(stage2(steps=1))
    model = load_model("demo", device="cpu")
    load_adapters(model, lord_folder, None)
    before = {name: value.clone() for name, value in model.unet.named_parameters()}
    with pytest.raises(ValueError, match="lord"):
        model.pipeline().load_lora_weights(tmp_path / "stage2", adapter_name="lord")
    after = dict(model.unet.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())
