"""Random models of the published architectures: complete, alive, and decided by the seed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lordfast.data import make_faces
from lordfast.diffusion import LatentDiffusion, load_model
from lordfast.diffusion.random_model import byte_tokenizer, random_model, write_random
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


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl", "sd3"])
def test_a_model_in_memory_is_the_model_in_the_folder(family: str, narrow_folder: Callable[[str], Path]) -> None:
    stored = load_model(narrow_folder(family), device="cpu", dtype="bf16")
    made = random_model(f"{family}-narrow", device="cpu", dtype="bf16")
    assert type(made) is type(stored) and made.dtype == torch.bfloat16 and made.resolution == stored.resolution
    assert torch.equal(_prediction(made), _prediction(stored))
    for part in ("unet", "vae"):
        weights, others = (getattr(model, part).state_dict() for model in (made, stored))
        assert weights.keys() == others.keys()
        # The VAE's last layer is scaled by what it makes of pictures of another size.
        same = [name for name, value in weights.items() if torch.equal(value, others[name])]
        assert len(same) >= len(weights) - 2


def test_settings_of_a_model_in_memory() -> None:
    with pytest.raises(ValueError, match="topology: expected one of sd15, "):
        random_model("sd16")
    with pytest.raises(ValueError, match="dtype: expected one of fp32, bf16, fp16, got 'fp8'"):
        random_model("sd15-narrow", dtype="fp8")
