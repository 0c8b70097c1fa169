"""A model's architecture out of its config files alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lordfast.diffusion import load_model
from lordfast.diffusion.configs import read_topology
from lordfast.diffusion.topologies import TOPOLOGIES


def configs_only(folder: Path, to: Path) -> Path:
    """A copy without weights: what is read must not need them."""
    return Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*.safetensors", "*.bin")))


def test_a_published_name_is_its_topology():
    assert read_topology("sdxl") is TOPOLOGIES["sdxl"]


def test_a_folder_without_weights(sd15_folder, tmp_path):
    found = read_topology(configs_only(sd15_folder, tmp_path / "model"))
    assert found.pipeline == "StableDiffusionPipeline" and found.resolution == 64
    assert found.denoiser[0] == "UNet2DConditionModel"
    assert list(found.denoiser[1]["block_out_channels"]) == [32, 32, 64, 64]
    assert found.vae["latent_channels"] == 4 and not any(key.startswith("_") for key in found.vae)
    assert [cls for cls, _ in found.text] == ["CLIPTextModel"] and found.text[0][1]["hidden_size"] == 24


def test_the_modules_have_the_sizes_of_the_loaded_ones(sd15_folder):
    from lordfast.training.memory.model import denoiser_of, numbers, part, vae_of

    topology, model = read_topology(sd15_folder), load_model(sd15_folder, device="cpu")
    assert numbers(denoiser_of(topology)) == numbers(model.unet)
    assert numbers(vae_of(topology)) == numbers(model.vae)
    assert numbers(part("transformers", *topology.text[0])) == numbers(model.text_encoder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("unet/config.json", None, "unet/config.json of .* can't be read"),
        ("vae/config.json", "{", "vae/config.json of .* can't be read"),
        ("model_index.json", '{"_class_name": "X", "vae": ["diffusers", "AutoencoderKL"]}', "has no denoiser"),
        (
            "model_index.json",
            json.dumps({"_class_name": "X", "unet": ["diffusers", "U"], "vae": ["diffusers", "AutoencoderTiny"]}),
            "or no AutoencoderKL",
        ),
    ],
    ids=["no config", "broken config", "no denoiser", "another autoencoder"],
)
def test_what_can_not_be_estimated_is_refused(sd15_folder, tmp_path, file, content, message):
    folder = configs_only(sd15_folder, tmp_path / "model")
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_topology(folder)


def test_nothing_there_names_what_could_be():
    with pytest.raises(ValueError, match="'sd16' does not exist; .* published topologies are sd15, "):
        read_topology("sd16")
