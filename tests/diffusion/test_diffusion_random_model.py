"""Random models of the published architectures: complete, alive, and decided by the seed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lordfast.diffusion import load_model
from lordfast.diffusion.random_model import byte_tokenizer, write_random


def _prediction(folder: Path, prompt: str = "a photo", time: int = 500, seed: int = 0) -> Tensor:
    model = load_model(folder, device="cpu")
    noisy = torch.randn(1, *model.latent_shape(64, 64), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model.predict(noisy, torch.tensor([time]), model.embed([prompt]))[0]


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl", "sd3"])
def test_predictions_depend_on_everything_and_do_not_explode(family: str, narrow_folder: Callable[[str], Path]) -> None:
    folder = narrow_folder(family)
    plain = _prediction(folder)
    assert 0.1 < plain.std() < 3 and plain.flatten(1).std(dim=1).min() > 0.02
    for other in (_prediction(folder, prompt="a tree"), _prediction(folder, time=100), _prediction(folder, seed=1)):
        assert (other - plain).std() > 0.03 * plain.std()


def test_the_seed_decides_the_weights(tmp_path: Path, narrow_folder: Callable[[str], Path]) -> None:
    again = write_random("sd3-narrow", tmp_path / "again")
    other = write_random("sd3-narrow", tmp_path / "other", seed=1)
    plain = _prediction(narrow_folder("sd3"))
    assert torch.equal(_prediction(again), plain)
    assert not torch.allclose(_prediction(other), plain, atol=0.1)


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
