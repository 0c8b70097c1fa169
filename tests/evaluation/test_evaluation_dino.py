"""DINO embeddings of a tiny random vision transformer, and weights that are not there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lordfast.data import make_faces
from lordfast.evaluation.dino import Dino
from lordfast.evaluation.measure import Unavailable

FACE = make_faces(1, seed=3)[0].image


def test_it_is_the_class_token_of_length_one(dino_folder: Path) -> None:
    import transformers

    images = [FACE, 255 - FACE]
    model = transformers.ViTModel.from_pretrained(dino_folder, add_pooling_layer=False).eval()
    small = [np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR)) for image in images]
    pixels = torch.tensor(np.stack(small) / 127.5 - 1, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        tokens = model(pixel_values=pixels).last_hidden_state
    expected = torch.nn.functional.normalize(tokens[:, 0].double(), dim=1)
    found = Dino(str(dino_folder)).images(images)
    assert torch.allclose(found, expected, atol=1e-5)
    assert float((found[0] - found[1]).abs().max()) > 0.01


def test_weights_that_are_not_there(dino_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="dino: .*nothing can't be loaded: "):
        Dino(str(tmp_path / "nothing"))
    from safetensors.torch import load_file, save_file

    for path in dino_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(dino_folder / "model.safetensors")
    removed = sorted(weights)[0]
    del weights[removed]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Unavailable, match=f"lacks 1 weights, such as {removed}"):
        Dino(str(tmp_path))


def test_its_key_follows_weights_and_preprocessing(dino_folder: Path, tmp_path: Path) -> None:
    for path in dino_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    key = Dino(str(dino_folder)).cache_key
    assert Dino(str(tmp_path)).cache_key == key
    config = tmp_path / "preprocessor_config.json"
    config.write_text(config.read_text().replace('"resample": 2', '"resample": 3'))
    assert Dino(str(tmp_path)).cache_key != key
