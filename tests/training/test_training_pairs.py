"""`lordfast pairs`: folders and rows that belong together, each pair by itself, resumed to the same bits."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lordfast.cli.main import main
from lordfast.data import fit_image, list_images, load_image
from lordfast.data.degrade import crop_to_multiple, degrade
from lordfast.data.images import load_fitted
from lordfast.training import pairs as module
from lordfast.training.inpainting import InpaintingConfig, run_inpainting
from lordfast.training.interrupt import Interrupted
from lordfast.training.run import RunFolder
from lordfast.training.super_resolution import SuperResolutionConfig, run_super_resolution

KINDS: dict[str, tuple[type, Callable[[Any], dict[str, Any]], tuple[str, ...]]] = {
    "inpainting": (InpaintingConfig, run_inpainting, ("images", "masks", "masked")),
    "super-resolution": (SuperResolutionConfig, run_super_resolution, ("high", "low")),
}


def make(kind: str, out: Path, images: Path, **changes: Any) -> dict[str, Any]:
    config, run, _ = KINDS[kind]
    return run(config(out=out, images=images, **changes))


def metadata(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def files(run: Path) -> dict[str, bytes]:
    skip = {"config.yaml", "environment.json", "summary.json", "metrics.jsonl"}
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name not in skip}


@pytest.fixture(scope="module")
def inpainted(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two variants of every photograph, at its own size."""
    out = tmp_path_factory.mktemp("pairs") / "inpainted"
    make("inpainting", out, photos, variants=2, least_area=0.1, most_area=0.3, fill=3)
    return out


def test_inpainting_pairs_belong_together(inpainted: Path, photos: Path) -> None:
    rows, sources = metadata(inpainted), {record.name: record for record in list_images(photos)}
    assert len(rows) == 2 * len(sources) == 18
    assert {row["source"] for row in rows} == set(sources)
    for row in rows:
        image, masked = load_image(inpainted / row["file_name"]), load_image(inpainted / row["masked"])
        with Image.open(inpainted / row["mask"]) as opened:
            assert opened.mode == "L"
            mask = np.array(opened)
        record = sources[row["source"]]
        np.testing.assert_array_equal(image, load_image(record.path))
        assert mask.shape == image.shape[:2] and set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(masked[mask == 0], image[mask == 0])
        assert (masked[mask == 255] == 3).all()
        assert row["share"] == np.mean(mask == 255) and 0.1 <= row["share"] <= 0.3
        assert row["text"] == record.caption and row["transformations"][-1]["name"] == "place"
        assert row["mask"] == row["file_name"].replace("images/", "masks/")
        assert row["masked"] == row["file_name"].replace("images/", "masked/")
    # Captions go with the images for every other command, under the names that the images had.
    listed = {record.name: record.caption for record in list_images(inpainted / "images")}
    assert listed == {row["file_name"].removeprefix("images/"): row["text"] for row in rows}
    assert {"1/sub/china.png", "2/sub/china.jpg.png", "1/moon16.png"} <= set(listed)
    assert (inpainted / "preview" / "grid.png").exists() and (inpainted / "config.yaml").exists()


def test_variants_and_seeds_differ_and_other_images_do_not_matter(
    inpainted: Path, photos: Path, tmp_path: Path
) -> None:
    by_source: dict[str, list[dict[str, Any]]] = {}
    for row in metadata(inpainted):
        by_source.setdefault(row["source"], []).append(row)
    for one, two in by_source.values():
        assert (one["variant"], two["variant"]) == (1, 2) and one["transformations"] != two["transformations"]
        assert (inpainted / one["mask"]).read_bytes() != (inpainted / two["mask"]).read_bytes()
    (tmp_path / "alone").mkdir()
    shutil.copy(photos / "moon.png", tmp_path / "alone")
    settings = {"variants": 1, "least_area": 0.1, "most_area": 0.3, "fill": 3}
    make("inpainting", tmp_path / "one", tmp_path / "alone", **settings)
    assert (tmp_path / "one/masks/moon.png").read_bytes() == (inpainted / "masks/1/moon.png").read_bytes()
    make("inpainting", tmp_path / "other", tmp_path / "alone", **settings, seed=1)
    assert (tmp_path / "other/masks/moon.png").read_bytes() != (inpainted / "masks/1/moon.png").read_bytes()


def test_masks_of_ones_own(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    drawn = np.zeros((50, 70), np.uint8)
    drawn[10:40, 20:50] = 255
    Image.fromarray(drawn).save(tmp_path / "masks" / "square.png")
    make("inpainting", tmp_path / "out", photos / "sub", masks=tmp_path / "masks")
    rows = metadata(tmp_path / "out")
    assert [row["transformations"][0] for row in rows] == [{"name": "file", "file": "square.png"}] * 2
    with pytest.raises(ValueError, match="out: .* lies inside the masks"):
        make("inpainting", tmp_path / "masks" / "out", photos / "sub", masks=tmp_path / "masks")


def test_low_twins_are_their_high_ones_degraded(photos: Path, tmp_path: Path) -> None:
    summary = make("super-resolution", tmp_path / "out", photos, factor=3, blur=0.8, jpeg=70)
    assert (summary["images"], summary["pairs"]) == (9, 9)
    for row, record in zip(metadata(tmp_path / "out"), list_images(photos), strict=True):
        high, low = (load_image(tmp_path / "out" / row[field]) for field in ("file_name", "low"))
        np.testing.assert_array_equal(high, crop_to_multiple(load_image(record.path), 3))
        np.testing.assert_array_equal(low, degrade(high, 3, blur=0.8, jpeg=70))
        assert (low.shape[0] * 3, low.shape[1] * 3) == high.shape[:2]
        assert row["text"] == record.caption and (row["factor"], row["jpeg"], row["noise"]) == (3, 70, 0.0)
    assert list_images(tmp_path / "out" / "high")[0].caption == list_images(photos)[0].caption


def test_noise_and_random_crops_are_drawn_per_variant(photos: Path, tmp_path: Path) -> None:
    settings = {"resolution": 48, "crop": "random", "variants": 3, "noise": 4.0}
    make("super-resolution", tmp_path / "out", photos / "sub", **settings)
    rows = metadata(tmp_path / "out")
    assert [row["file_name"] for row in rows[:3]] == [f"high/{v}/china.jpg.png" for v in (1, 2, 3)]
    crops = [load_image(tmp_path / "out" / row["file_name"]) for row in rows[:3]]
    assert all(crop.shape == (48, 48, 3) for crop in crops)
    assert (crops[0] != crops[1]).any() and (crops[1] != crops[2]).any()
    plain = degrade(crops[0], 4)
    noise = load_image(tmp_path / "out" / rows[0]["low"]).astype(int) - plain
    assert 2.5 < noise.std() < 5.5
    make("inpainting", tmp_path / "masks", photos / "sub", resolution=48)
    first = load_image(tmp_path / "masks" / "images" / "china.jpg.png")
    np.testing.assert_array_equal(first, fit_image(load_image(photos / "sub" / "china.jpg"), 48))


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_ends_in_the_same_bits(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    settings: dict[str, Any] = {"resolution": 64} | ({"noise": 3.0} if kind == "super-resolution" else {})
    make(kind, tmp_path / "whole", photos, **settings)
    run, save, count = tmp_path / "run", module.save_png, 0
    pictures = len(KINDS[kind][2])

    def interrupted(*args: Any) -> None:
        nonlocal count
        count += 1
        save(*args)
        if count == pictures + 1:
            signal.raise_signal(signal.SIGINT)
        if count == 3 * pictures + 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "save_png", interrupted)
    with pytest.raises(Interrupted, match="after 2 of 9 pairs"):
        make(kind, run, photos, **settings)
    with pytest.raises(KeyboardInterrupt):
        make(kind, run, photos, **settings, resume=True)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "file_na')
    (run / KINDS[kind][2][-1] / "china.png").unlink()
    before = count
    summary = make(kind, run, photos, **settings, resume=True)
    # All but the two finished pairs that still have their files, and the preview.
    assert count - before == (9 - 2) * pictures + 1
    assert files(run) == files(tmp_path / "whole")
    assert metadata(run) == metadata(tmp_path / "whole") and summary["pairs"] == 9
    logged = sorted(RunFolder(run).rows(), key=lambda row: row["step"])
    assert [row["step"] for row in logged] == list(range(1, 10))
    assert make(kind, run, photos, **settings, resume=True) == summary


def stopped(kind: str, run: Path, images: Path, **changes: Any) -> None:
    """A run of which all is there but its end."""
    make(kind, run, images, **changes)
    (run / "summary.json").unlink()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", ["pixels", "alpha", "caption", "gone"])
def test_pairs_of_images_that_changed_are_not_kept(photos: Path, tmp_path: Path, kind: str, change: str) -> None:
    images = Path(shutil.copytree(photos, tmp_path / "images"))
    stopped(kind, tmp_path / "run", images)
    before = files(tmp_path / "run")
    with Image.open(images / "flower.png") as opened:
        pixels = np.array(opened)
    if change == "caption":
        (images / "flower.txt").write_text("another flower")
    elif change == "gone":
        (images / "flower.png").unlink()
    else:
        pixels[100, 100, 3 if change == "alpha" else 0] ^= 1
        Image.fromarray(pixels).save(images / "flower.png")
    how = {"caption": "has another caption", "gone": "removed"}.get(change, "replaced")
    with pytest.raises(ValueError, match=rf"resume: inputs of the run .*\(images: flower.png {how}\); expected"):
        make(kind, tmp_path / "run", images, resume=True)
    assert files(tmp_path / "run") == before
    make(kind, tmp_path / "run", images, overwrite=True)
    assert files(tmp_path / "run") != before


def test_an_untouched_folder_is_gone_on_with(photos: Path, tmp_path: Path) -> None:
    stopped("super-resolution", tmp_path / "run", photos)
    before = files(tmp_path / "run")
    assert "input" not in metadata(tmp_path / "run")[0]
    make("super-resolution", tmp_path / "run", photos, resume=True)
    assert files(tmp_path / "run") == before


def test_hidden_colours_don_t_bleed_into_a_smaller_square(tmp_path: Path) -> None:
    y, x = np.mgrid[:150, :150] - 74.5
    disc = (np.hypot(y, x) < 50) * np.uint8(255)
    (tmp_path / "images").mkdir()
    colours = np.where(disc[..., None] > 0, (220, 0, 0), (0, 0, 255)).astype(np.uint8)
    Image.fromarray(np.dstack([colours, disc])).save(tmp_path / "images" / "disc.png")
    for kind, field in (("super-resolution", "high"), ("inpainting", "images")):
        make(kind, tmp_path / kind, tmp_path / "images", resolution=64)
        found = load_image(tmp_path / kind / field / "disc.png")
        np.testing.assert_array_equal(found, load_fitted(tmp_path / "images" / "disc.png", 64))
        assert (found != fit_image(load_image(tmp_path / "images" / "disc.png"), 64)).any()
        # Red on white: nowhere is there more blue than green.
        np.testing.assert_array_equal(found[..., 1], found[..., 2])


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "bounds": ("inpainting", {"least_area": 0.5, "most_area": 0.2}, "least_area, most_area: expected shares"),
    "reach": (
        "inpainting",
        {"resolution": 4, "least_area": 0.01, "most_area": 0.02},
        r"no number of pixels of an image of 4 x 4 .*\(.*astronaut\.jpg\)",
    ),
    "fill": ("inpainting", {"fill": 300}, "fill: expected a grey level from 0 to 255, got 300"),
    "masks": ("inpainting", {"masks": Path("nowhere")}, "masks: image folder nowhere does not exist"),
    "crop": ("inpainting", {"crop": "random"}, "crop: random needs a resolution"),
    "variants": ("inpainting", {"variants": 0}, "variants: expected at least 1, got 0"),
    "same": (
        "super-resolution",
        {"variants": 2},
        "variants: 2 pairs of an image differ only with crop random or noise",
    ),
    "factor": ("super-resolution", {"factor": 1}, "factor: expected at least 2, got 1"),
    "small": ("super-resolution", {"factor": 120}, r"factor: an image of .*\(.*coffee|has no 120 pixels a side"),
    "side": ("super-resolution", {"resolution": 0}, "resolution: expected a positive integer"),
    "seed": ("super-resolution", {"seed": -1}, "seed: expected a whole number"),
    "images": ("super-resolution", {"images": Path("nowhere")}, "images: image folder nowhere does not exist"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_explained_and_nothing_is_written(photos: Path, tmp_path: Path, case: str) -> None:
    kind, changes, message = BAD[case]
    with pytest.raises((ValueError, OSError), match=message):
        make(kind, tmp_path / "out", **({"images": photos} | changes))
    assert not list(tmp_path.iterdir())


def test_bad_images_stop_the_run_or_are_named(photos: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(photos / "sub", tmp_path / "images"))
    (folder / "bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"cannot read image .*bad\.png"):
        make("inpainting", tmp_path / "out", folder)
    assert not (tmp_path / "out").exists()
    summary = make("inpainting", tmp_path / "out", folder, skip_bad=True)
    assert summary["skipped"] == [str(folder / "bad.png")] and summary["pairs"] == 2
    for path in folder.glob("china*"):
        path.unlink()
    with pytest.raises(ValueError, match="images: none of the 1 images"):
        make("inpainting", tmp_path / "none", folder, skip_bad=True)


def test_the_command_line(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--images", str(photos / "sub"), "--out"]
    assert main(["pairs", "inpainting", *words, str(tmp_path / "a"), "--variants", "2"]) == 0
    assert f"4 pairs of 2 images: {tmp_path / 'a'}" in capsys.readouterr().out
    assert main(["pairs", "super-resolution", *words, str(tmp_path / "b"), "--factor", "2"]) == 0
    config = str(tmp_path / "b" / "config.yaml")
    assert main(["pairs", "super-resolution", "--config", config, "--out", str(tmp_path / "c")]) == 0
    assert files(tmp_path / "b") == files(tmp_path / "c")
    capsys.readouterr()
    for arguments, message in {
        (): "pairs: expected a kind (inpainting, super-resolution) first",
        ("colour",): "pairs: expected one of inpainting, super-resolution, got 'colour'",
        ("inpainting", "--config", config): "belongs to 'lordfast pairs super-resolution'",
    }.items():
        assert main(["pairs", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["pairs", "--help"]) == 0
    assert "super-resolution  images and their low-resolution twins" in capsys.readouterr().out
