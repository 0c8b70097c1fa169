"""`run_purify` on folders as people have them: names, captions, modes, sizes, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lordfast.data import BadImageError, list_images, load_image, load_layers
from lordfast.data.images import on_white
from lordfast.diffusion import LatentDiffusion
from lordfast.purify import run as run_module
from lordfast.purify.config import BatchPurifier
from lordfast.purify.diffpure import diffpure
from lordfast.purify.jpeg import jpeg
from lordfast.purify.noise import gaussian_noise
from lordfast.purify.registry import PURIFIERS, Purifier
from lordfast.purify.run import run_purify
from lordfast.purify.smooth import blur


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def products(run: Path) -> list[str]:
    return sorted(path.relative_to(run).as_posix() for path in run.rglob("*.png"))


NAMES = {
    "astronaut.jpg": "astronaut.png",
    "china.jpg": "china.png",
    "coffee.png": "coffee.png",
    "flower.png": "flower.png",
    "moon.png": "moon.png",
    "moon16.png": "moon16.png",
    "portrait.jpg": "portrait.png",
    "sub/china.jpg": "sub/china.jpg.png",
    "sub/china.png": "sub/china.png",
}


def test_a_folder_of_photographs(photos: Path, config, tmp_path: Path) -> None:
    out = tmp_path / "run"
    summary = run_purify("jpeg", config("jpeg", images=photos, quality=40))
    assert products(out) == sorted(NAMES.values())
    rows = metrics(out)
    assert {row["image"]: row["output"] for row in rows} == NAMES
    assert sorted(row["step"] for row in rows) == list(range(1, 10))
    for row in rows:
        rgb, alpha = load_layers(photos / row["image"])
        with Image.open(out / row["output"]) as saved:
            assert (saved.format, saved.mode) == ("PNG", "RGB" if alpha is None else "RGBA")
            pixels = np.asarray(saved)
        opaque = ... if alpha is None else alpha == 255
        seen, shown = on_white(rgb, alpha), load_image(out / row["output"])
        assert np.array_equal(pixels[..., :3][opaque], jpeg(seen, 40)[opaque]), row["image"]
        if alpha is not None:
            assert np.array_equal(pixels[..., 3], alpha) and 0 < alpha.mean() < 255
        expected = 10 * np.log10(255**2 / ((shown.astype(float) - seen) ** 2).mean())
        assert row["psnr"] == pytest.approx(expected, rel=1e-6)  # torchmetrics takes the logarithm in fp32
    assert [row["image"] for row in rows if load_layers(photos / row["image"])[1] is not None] == ["flower.png"]
    assert (summary["purifier"], summary["images"], summary["skipped"], summary["unchanged"]) == ("jpeg", 9, 0, 0)
    assert summary["psnr"] == pytest.approx(np.mean([row["psnr"] for row in rows]))
    assert json.loads((out / "summary.json").read_text()) == summary
    assert (out / "config.yaml").exists() and (out / "environment.json").exists()
    # Captions travel with the images.
    before = {record.name: record.caption for record in list_images(photos)}
    assert {record.name: record.caption for record in list_images(out)} == {
        NAMES[name]: caption for name, caption in before.items()
    }


def test_a_model_on_a_folder_of_photographs(photos: Path, config, tmp_path: Path) -> None:
    summary = run_purify("diffpure", config("diffpure", images=photos, start=20, steps=1, resolution=48))
    assert summary["images"] == 9 and products(tmp_path / "run") == sorted(NAMES.values())
    for name in products(tmp_path / "run"):
        with Image.open(tmp_path / "run" / name) as saved:
            assert saved.size == (48, 48) and saved.mode == ("RGBA" if name == "flower.png" else "RGB")


def test_hidden_colours_don_t_reach_what_is_seen(config, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    y, x = np.mgrid[:48, :48] - 23.5
    disc = (np.hypot(y, x) < 15) * np.uint8(255)
    for name, hidden in (("black", (0, 0, 0)), ("white", (255, 255, 255)), ("green", (0, 200, 0))):
        colours = np.where(disc[..., None] > 0, (220, 0, 0), hidden).astype(np.uint8)
        Image.fromarray(np.dstack([colours, disc])).save(tmp_path / "in" / f"{name}.png")
    run_purify("blur", config("blur", images=tmp_path / "in", radius=2.0))
    saved = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / "run").glob("*.png")}
    assert sorted(saved) == ["black", "green", "white"]
    seen = load_image(tmp_path / "in" / "black.png")
    for name, pixels in saved.items():
        assert np.array_equal(pixels[disc == 255][:, :3], blur(seen, 2.0)[disc == 255])
        # Towards the white around the disc its edge brightens, and does not darken.
        assert pixels[disc == 255][:, :3].min(axis=0).tolist() == [220, 0, 0]
        assert pixels[disc == 255][:, 1].max() > 80
        given = np.asarray(Image.open(tmp_path / "in" / f"{name}.png"))
        assert np.array_equal(pixels[disc == 0], given[disc == 0])


def test_what_shines_through_changes_as_it_is_seen_to(config, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    rgba[:5, :, 3] = 0
    rgba[5:10, :, 3] = 255
    rgba[10:, :, 3] = rng.integers(1, 255, (10, 30))
    Image.fromarray(rgba).save(tmp_path / "in" / "a.png")
    Image.fromarray(rgba[..., [0, 3]], mode="LA").save(tmp_path / "in" / "b.png")
    run_purify("gaussian-noise", config("gaussian-noise", images=tmp_path / "in", std=0.1, seed=3))
    saved = [np.asarray(Image.open(tmp_path / "run" / name)) for name in ("a.png", "b.png")]
    assert np.array_equal(saved[0][..., 3], rgba[..., 3]) and np.array_equal(saved[1][..., 3], rgba[..., 3])
    seen = load_image(tmp_path / "in" / "a.png")
    noisy = gaussian_noise(seen, 0.1, 3)
    colours, change = saved[0][..., :3], noisy.astype(int) - seen
    assert np.array_equal(colours[:5], rgba[:5, :, :3])
    assert np.array_equal(colours[5:10], noisy[5:10])
    assert np.array_equal(colours[10:], (rgba[10:, :, :3] + change[10:]).clip(0, 255)) and change[10:].any()


@pytest.mark.parametrize("name", [*PURIFIERS])
def test_every_purifier_runs_on_mixed_sizes(name: str, config, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    rng = np.random.default_rng(0)
    sizes = {"a": (64, 64), "b": (1, 1), "c": (33, 50), "d": (64, 64)}
    for stem, (height, width) in sizes.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / "in" / f"{stem}.png")
    quick = {"iterations": 2} if name in ("impress", "tv") else {}
    summary = run_purify(name, config(name, images=tmp_path / "in", **quick))
    assert summary["images"] == 4
    for stem, size in sizes.items():
        found, given = (load_image(tmp_path / folder / f"{stem}.png") for folder in ("run", "in"))
        assert found.shape[:2] == size
        assert min(size) == 1 or (found != given).any()


def test_images_of_one_size_share_a_batch(config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    for i in range(7):
        Image.new("RGB", (20, 10) if i % 2 else (10, 20), (i, 0, 0)).save(tmp_path / "in" / f"{i}.png")
    batches = []

    def build(config: Any) -> BatchPurifier:
        def apply(images: Any, tick: Any) -> Any:
            batches.append((images[0].shape[:2], [int(image[0, 0, 0]) for image in images]))
            return [image + 1 for image in images]

        return BatchPurifier(apply)

    blur = PURIFIERS["blur"]
    monkeypatch.setitem(PURIFIERS, "blur", Purifier(blur.config, blur.summary, build))
    run_purify("blur", config("blur", images=tmp_path / "in", batch_size=3))
    assert batches == [((10, 20), [1, 3, 5]), ((20, 10), [0, 2, 4]), ((20, 10), [6])]
    assert [load_image(tmp_path / "run" / f"{i}.png")[0, 0, 0] for i in range(7)] == list(range(1, 8))


def test_the_folder_is_what_the_function_makes(
    config, demo_model: LatentDiffusion, faces: Path, tmp_path: Path
) -> None:
    run_purify("diffpure", config("diffpure", strength=0.05, steps=2, seed=4))
    images = [load_image(record.path) for record in list_images(faces)]
    expected = diffpure(demo_model, images, start=50, steps=2, seed=4)
    for name, image in zip(products(tmp_path / "run"), expected, strict=True):
        assert np.array_equal(load_image(tmp_path / "run" / name), image)


def test_what_changes_nothing_is_counted(config) -> None:
    summary = run_purify("blur", config("blur", radius=0.0))
    assert (summary["unchanged"], summary["psnr"]) == (4, None)


def test_a_bad_image_is_named_before_anything_is_written(
    config, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (faces / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no image")
    with pytest.raises(BadImageError, match=r"broken\.jpg"):
        run_purify("blur", config("blur"))
    assert not (tmp_path / "run").exists()
    summary = run_purify("blur", config("blur", skip_bad=True))
    assert (summary["images"], summary["skipped"]) == (4, 1)
    assert "broken.jpg" in capsys.readouterr().err.replace("\n", "")
    for path in faces.glob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match="images: none of the 1 images could be read"):
        run_purify("blur", config("blur", skip_bad=True, out=tmp_path / "other"))


@pytest.mark.parametrize(
    ("name", "overrides", "error", "message"),
    [
        ("jpeg", {"quality": 101}, ValueError, "quality: expected"),
        ("jpeg", {"subsampling": "4:1:1"}, ValueError, "subsampling: expected one of"),
        ("gaussian-noise", {"std": 13.0}, ValueError, "std: expected"),
        ("blur", {"radius": -1.0}, ValueError, "radius: expected"),
        ("resize", {"factor": 0.5}, ValueError, "factor: expected"),
        ("tv", {"weight": -1.0}, ValueError, "weight: expected"),
        ("tv", {"device": "cuda:99"}, ValueError, "device: "),
        ("blur", {"batch_size": 0}, ValueError, "batch_size: expected at least 1"),
        ("blur", {"resolution": 0}, ValueError, "resolution: expected a positive integer"),
        ("blur", {"seed": -1}, ValueError, "seed: expected"),
        ("blur", {"dtype": "fp8"}, ValueError, "dtype: expected one of"),
        ("blur", {"images": Path("nowhere")}, FileNotFoundError, "images: image folder nowhere"),
        ("vae-roundtrip", {"tile": 20}, ValueError, "tile: expected a positive multiple of 32"),
        ("vae-roundtrip", {"model": "none"}, ValueError, "model: 'none' does not exist"),
        ("diffpure", {"strength": 0.0}, ValueError, "strength: expected a number above 0"),
        ("diffpure", {"strength": 1.0}, ValueError, "strength: expected a timestep from 1 to 999 of 1000, got 1000"),
        ("diffpure", {"start": 1000}, ValueError, "start: expected a timestep"),
        ("diffpure", {"strength": 0.003}, ValueError, "steps: expected 1 to 3"),
        ("gridpure", {"gamma": 2.0}, ValueError, "gamma: expected"),
        ("gridpure", {"rounds": 0}, ValueError, "rounds: expected"),
        ("impress", {"lr": 0.0}, ValueError, "lr: expected a number above 0"),
        ("impress", {"iterations": 0}, ValueError, "iterations: expected"),
        ("impress", {"distance": "l1"}, ValueError, "distance: expected one of"),
        ("noisy-upscale", {"upscaler": "demo"}, ValueError, "upscaler: demo is a StableDiffusionPipeline; expected"),
        ("noisy-upscale", {"upscaler": "none"}, ValueError, "upscaler: 'none' does not exist"),
        ("noisy-upscale", {"factor": 0.0}, ValueError, "factor: expected"),
    ],
)
def test_bad_requests_write_nothing(
    config, tmp_path: Path, name: str, overrides: dict, error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        run_purify(name, config(name, **overrides))
    assert not (tmp_path / "run").exists()


def test_names_and_configs_belong_together(config) -> None:
    with pytest.raises(ValueError, match="purifier: expected one of jpeg, .*got 'wash'"):
        run_purify("wash", config("blur"))
    with pytest.raises(TypeError, match="config: jpeg takes a JpegConfig, got a BlurConfig"):
        run_purify("jpeg", config("blur"))


def test_too_little_memory_says_what_helps(config, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(images: Any, tick: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    blur = PURIFIERS["blur"]
    monkeypatch.setitem(PURIFIERS, "blur", Purifier(blur.config, blur.summary, lambda config: BatchPurifier(full)))
    with pytest.raises(ValueError, match="batch_size: 4 images of 64 x 64 pixels don't fit"):
        run_purify("blur", config("blur"))


def test_an_existing_run_is_refused_before_the_model_is_loaded(config, monkeypatch: pytest.MonkeyPatch) -> None:
    run_purify("vae-roundtrip", config("vae-roundtrip"))
    monkeypatch.setattr("lordfast.purify.config.load_model", lambda *args, **options: pytest.fail("too early"))
    with pytest.raises(ValueError, match="holds a run already"):
        run_purify("vae-roundtrip", config("vae-roundtrip"))
    with pytest.raises(ValueError, match="tile: None -> 64"):
        run_purify("vae-roundtrip", config("vae-roundtrip", resume=True, tile=64))
    assert run_module.run_purify("vae-roundtrip", config("vae-roundtrip", resume=True))["images"] == 4
