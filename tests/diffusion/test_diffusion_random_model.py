"""Random models of the published architectures: complete, alive, and decided by the seed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lordfast.data import make_faces
from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.diffusion.random_model import byte_tokenizer, write_random
from lordfast.pixels import to_tensor


def _prediction(model: LatentDiffusion, prompt: str = "a photo", time: int = 500, seed: int = 0) -> Tensor:
    noisy = torch.randn(1, *model.latent_shape(64, 64), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([time]), model.embed([prompt]))[0]


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl", "sd3"])
def test_predictions_depend_on_everything_and_do_not_explode(family: str, narrow_folder: Callable[[str], Path]) -> None:
    model = load_model(narrow_folder(family), device="cpu")
    plain = _prediction(model)
    assert 0.1 < plain.std() < 3 and plain.flatten(1).std(dim=1).min() > 0.02
    for other in (_prediction(model, prompt="a tree"), _prediction(model, time=100), _prediction(model, seed=1)):
        assert (other - plain).std() > 0.03 * plain.std()


def test_the_seed_decides_the_weights(tmp_path: Path, narrow_folder: Callable[[str], Path]) -> None:
    again = write_random("sd3-narrow", tmp_path / "again")
    other = write_random("sd3-narrow", tmp_path / "other", seed=1)
    plain, same, different = (
        _prediction(load_model(folder, device="cpu")) for folder in (narrow_folder("sd3"), again, other)
    )
    assert torch.equal(same, plain)
    assert not torch.allclose(different, plain, atol=0.1)


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_pictures_make_latents_that_vary_as_trained_ones_do(family: str, narrow_folder: Callable[[str], Path]) -> None:
    model = load_model(narrow_folder(family), device="cpu")
    with torch.no_grad():
        latents = model.encode(to_tensor([face.image for face in make_faces(4, seed=1)]))
    assert 0.5 < latents.std() < 2


def test_only_toy_widths_are_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name: expected a topology at toy width, such as sdxl-narrow, got 'sdxl'"):
        write_random("sdxl", tmp_path / "out")
    with pytest.raises(ValueError, match="topology: expected one of .*, got 'sd4-narrow'"):
        write_random("sd4-narrow", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_knows_every_byte() -> None:
    tokenizer = byte_tokenizer(77, pad="!")
    ids = tokenizer(["Größe £ 5"], padding="max_length", max_length=20).input_ids[0]
    assert tokenizer.decode(ids, skip_special_tokens=True).strip("!").strip() == "größe £ 5"
    assert ids[0] == 512 and 513 in ids and ids[-1] == 0
