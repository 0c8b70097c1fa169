"""From image files to the batches that the loop draws."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lordfast.data import list_images, save_png
from lordfast.diffusion import TensorCache
from lordfast.training.examples import ImageOptions, LatentBatches, LatentStore, TextStore, list_folder, read_images
from lordfast.training.seeds import derived_generator


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    folder = tmp_path / "wide"
    for i in range(2):
        save_png(np.random.default_rng(i).integers(0, 256, (64, 160, 3), dtype=np.uint8), folder / f"{i}.png")
    return folder


def test_crops_and_mirrors_multiply_the_examples(wide: Path) -> None:
    options = ImageOptions(crop="random", variants=3, flip=True)
    found = read_images(list_images(wide), options, 64, seed=0)
    images = [image for _, image in found]
    assert len(images) == 2 * 3 * 2
    assert len({image.tobytes() for image in images}) == 12
    for image, mirrored in zip(images[:6], images[6:], strict=True):
        assert np.array_equal(image[:, ::-1], mirrored)
    assert [record.name for record, _ in found[:6]] == ["0.png"] * 3 + ["1.png"] * 3
    again = read_images(list_images(wide), options, 64, seed=0)
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(found, again, strict=True))
    other = read_images(list_images(wide), options, 64, seed=1)
    assert not all(np.array_equal(a, b) for (_, a), (_, b) in zip(found, other, strict=True))


def test_a_bad_image_is_named_or_skipped_with_its_name(wide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = wide / "[b]broken[1].png"
    bad.write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"\[b\]broken\[1\]\.png"):
        read_images(list_images(wide), ImageOptions(), 64, seed=0)
    assert len(read_images(list_images(wide), ImageOptions(skip_bad=True), 64, seed=0)) == 2
    assert str(bad) in capsys.readouterr().err


def test_the_errors_of_a_folder_name_the_argument(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="data: image folder"):
        list_folder(tmp_path / "nowhere", "data")
    with pytest.raises(ValueError, match="data: no images in"):
        list_folder(tmp_path, "data")


def test_what_is_drawn_depends_on_the_generator_alone(demo_model: Any, wide: Path) -> None:
    images = [image for _, image in read_images(list_images(wide), ImageOptions(), 64, seed=0)]
    cache = TensorCache()
    store = LatentStore.of(demo_model, images, cache)
    text = TextStore(demo_model, ["a", "b"], cache)
    for sample in (False, True):
        batches = LatentBatches(store, text, demo_model.timesteps, sample)

        def draw(indices: list[int], batches: LatentBatches = batches) -> dict[str, Any]:
            return batches(indices, [derived_generator("slot", i) for i in indices])

        both, second = draw([0, 1]), draw([1])
        for name in ("latents", "noise", "timesteps"):
            assert torch.equal(both[name][1:], second[name])
        assert torch.equal(both["text"]["encoder_hidden_states"][1:], second["text"]["encoder_hidden_states"])
        assert torch.equal(both["latents"], store.mean) is not sample
        assert int(both["timesteps"].min()) >= 0 and int(both["timesteps"].max()) < demo_model.timesteps


def test_latents_are_those_of_the_model(demo_model: Any, wide: Path) -> None:
    images = [image for _, image in read_images(list_images(wide), ImageOptions(), 64, seed=0)]
    store = LatentStore.of(demo_model, images, TensorCache())
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(store.mean, demo_model.encode(pixels), rtol=1e-4, atol=1e-5)
    draws = torch.stack([store.draw(0, derived_generator(i), sample=True) for i in range(400)])
    spread = (draws - store.mean[0]) / store.std[0].clamp_min(1e-12)
    assert abs(float(spread.mean())) < 0.05 and abs(float(spread.std()) - 1) < 0.05


def test_examples_that_share_a_prompt_share_its_row_and_nothing_else(demo_model: Any) -> None:
    prompts = ["a face", "a hill", "a face", "a tree"]
    cached, tokens = (TextStore(demo_model, prompts, TensorCache(), trained=trained) for trained in (False, True))
    expected = demo_model.embed(prompts)["encoder_hidden_states"]
    torch.testing.assert_close(cached([0, 1, 2, 3])["encoder_hidden_states"], expected)
    torch.testing.assert_close(cached([3, 0, 3])["encoder_hidden_states"], expected[[3, 0, 3]])
    assert torch.equal(tokens([1, 2])["ids"], demo_model.tokenize(["a hill", "a face"])["ids"])
