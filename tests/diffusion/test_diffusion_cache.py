"""The cache of latents and text: nothing is encoded twice, and nothing stale is ever returned."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lordfast.data import list_images, load_images
from lordfast.diffusion import LatentDiffusion, TensorCache, content_key, load_model
from lordfast.diffusion.cache import cached_moments, cached_text
from lordfast.pixels import to_tensor


class Counter:
    """Counts the calls of a function that it replaces, and how many images or prompts went through."""

    def __init__(self, function: Callable) -> None:
        self.function, self.items = function, 0

    def __call__(self, batch: object) -> object:
        self.items += len(batch)  # type: ignore[arg-type]
        return self.function(batch)


@pytest.fixture
def counted(demo_model: LatentDiffusion) -> tuple[LatentDiffusion, Counter, Counter]:
    images, prompts = Counter(demo_model.encode_moments), Counter(demo_model.embed)
    demo_model.encode_moments, demo_model.embed = images, prompts  # type: ignore[method-assign, assignment]
    return demo_model, images, prompts


@pytest.fixture
def pictures(photos: Path) -> list[np.ndarray]:
    return [image for _, image in load_images(list_images(photos)[:4], 64)]


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_latents_are_encoded_once_and_are_right(counted, pictures, tmp_path) -> None:
    model, images, _ = counted
    first = cached_moments(model, pictures, TensorCache(tmp_path))
    assert images.items == 4
    # Another cache object over the same folder, as in a later run; the order and company do not matter.
    cache = TensorCache(tmp_path)
    again = cached_moments(model, [*pictures[::-1], pictures[0]], cache)
    assert images.items == 4
    assert (cache.hits, cache.misses) == (5, 0)
    for before, after in zip(first, again, strict=True):
        assert torch.equal(before.flip(0), after[:4])
        assert torch.equal(before[0], after[4])
    with torch.no_grad():
        mean, std = images.function(to_tensor(pictures))
    torch.testing.assert_close(first[0], mean)
    torch.testing.assert_close(first[1], std)


def test_the_same_picture_twice_in_one_call_is_encoded_once(counted, pictures, tmp_path) -> None:
    model, images, _ = counted
    cached_moments(model, [pictures[0], pictures[1], pictures[0]], TensorCache(tmp_path))
    assert images.items == 2


def test_what_is_cached_does_not_depend_on_what_was_there(demo_model, pictures, tmp_path) -> None:
    cached_moments(demo_model, pictures[1:3], TensorCache(tmp_path / "warm"))
    warm = cached_moments(demo_model, pictures, TensorCache(tmp_path / "warm"))
    cold = cached_moments(demo_model, pictures, TensorCache(tmp_path / "cold"))
    assert torch.equal(warm[0], cold[0]) and torch.equal(warm[1], cold[1])


def test_a_renamed_file_hits_and_an_edited_one_misses(counted, photos, tmp_path) -> None:
    model, images, _ = counted
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "a.png").write_bytes((photos / "moon.png").read_bytes())

    def encode() -> torch.Tensor:
        found = [image for _, image in load_images(list_images(folder), 64)]
        return cached_moments(model, found, TensorCache(tmp_path / "cache"))[0]

    before = encode()
    (folder / "a.png").rename(folder / "b.png")
    assert torch.equal(encode(), before) and images.items == 1
    (folder / "b.png").write_bytes((photos / "coffee.png").read_bytes())
    assert not torch.allclose(encode(), before) and images.items == 2


def test_one_grey_level_is_an_edit(counted, pictures, tmp_path) -> None:
    model, images, _ = counted
    edited = pictures[0].copy()
    edited[5, 6, 1] ^= 1
    cached_moments(model, [pictures[0], edited], TensorCache(tmp_path))
    assert images.items == 2


def test_another_vae_misses(demo_model, pictures, tmp_path) -> None:
    cached_moments(demo_model, pictures[:1], TensorCache(tmp_path))
    other = load_model("demo", device="cpu")
    with torch.no_grad():
        next(other.vae.parameters())[0] += 1e-3
    cache = TensorCache(tmp_path)
    cached_moments(other, pictures[:1], cache)
    assert (cache.hits, cache.misses) == (0, 1)
    same, cache = load_model("demo", device="cpu"), TensorCache(tmp_path)
    cached_moments(same, pictures[:1], cache)
    assert (cache.hits, cache.misses) == (1, 0)


def test_the_same_weights_with_another_scale_miss(save_sd15, pictures, tmp_path) -> None:
    for number, scale in enumerate((0.18215, 0.3)):
        model = load_model(save_sd15(f"scale{number}", vae={"scaling_factor": scale}), device="cpu")
        mean, _ = cached_moments(model, pictures[:1], TensorCache(tmp_path))
        with torch.no_grad():
            torch.testing.assert_close(mean, model.encode(to_tensor(pictures[:1])))


def test_another_dtype_misses(demo_model, pictures, tmp_path) -> None:
    cached_moments(demo_model, pictures[:1], TensorCache(tmp_path))
    cache = TensorCache(tmp_path)
    cached_moments(load_model("demo", device="cpu", dtype="bf16"), pictures[:1], cache)
    assert cache.misses == 1


@pytest.mark.parametrize("damage", [b"", b"\x08", None])
def test_a_damaged_entry_is_computed_again(counted, pictures, tmp_path, damage) -> None:
    model, images, _ = counted
    before = cached_moments(model, pictures[:2], TensorCache(tmp_path))
    for path in entries(tmp_path):
        path.write_bytes(path.read_bytes()[:-7] if damage is None else damage)
    after = cached_moments(model, pictures[:2], TensorCache(tmp_path))
    assert images.items == 4
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    cached_moments(model, pictures[:2], TensorCache(tmp_path))
    assert images.items == 4, "the damaged entry was not replaced"


def test_text_is_embedded_once(counted, tmp_path) -> None:
    model, _, prompts = counted
    wanted = ["a face", "", "a face", "a hill"]
    first = cached_text(model, wanted, TensorCache(tmp_path))["encoder_hidden_states"]
    assert prompts.items == 3
    again = cached_text(model, wanted[::-1], TensorCache(tmp_path))["encoder_hidden_states"]
    assert prompts.items == 3
    assert torch.equal(first.flip(0), again)
    torch.testing.assert_close(first, prompts.function(wanted)["encoder_hidden_states"])


def test_nothing_to_encode_is_an_error(demo_model, tmp_path) -> None:
    with pytest.raises(ValueError, match="images: expected at least one"):
        cached_moments(demo_model, [], TensorCache(tmp_path))
    with pytest.raises(ValueError, match="prompts: expected at least one"):
        cached_text(demo_model, [], TensorCache(tmp_path))


def test_a_write_that_is_cut_short_leaves_nothing(tmp_path, monkeypatch, caplog) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError("No space left on device")

    cache = TensorCache(tmp_path)
    monkeypatch.setattr("os.replace", fail)
    with caplog.at_level(logging.WARNING):
        for key in ("aa11", "bb22"):
            cache.put(key, {"x": torch.ones(2)})
            assert cache.get(key) is None
    assert entries(tmp_path) == []
    assert caplog.text.count("No space left on device") == 1, "said once, not at every entry"


def test_a_folder_that_cannot_be_written_costs_no_run(demo_model, pictures, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    mean, _ = cached_moments(demo_model, pictures[:2], TensorCache(tmp_path / "file"))
    with torch.no_grad():
        torch.testing.assert_close(mean, demo_model.encode(to_tensor(pictures[:2])))


def test_the_folder_comes_from_the_environment(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("LORDFAST_CACHE", str(tmp_path / "own"))
    assert TensorCache().folder == tmp_path / "own"
    monkeypatch.delenv("LORDFAST_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert TensorCache().folder == tmp_path / "xdg" / "lordfast"


def test_keys_tell_arrays_apart() -> None:
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert content_key(image) == content_key(image.copy())
    # Equal bytes, another shape, type or split.
    others = [image.reshape(1, 4, 3), image.view(np.int8), image[:, ::-1]]
    assert len({content_key(other) for other in [image, *others]}) == 4
    assert content_key("ab", "c") != content_key("a", "bc")
