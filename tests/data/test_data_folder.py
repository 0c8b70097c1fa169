"""Listing folders, lazy loading with seeds per image, names of the results."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lordfast.data import (
    BadImageError,
    ImageRecord,
    NoImagesError,
    list_images,
    load_image,
    load_images,
    output_names,
    save_png,
)


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (12, 20)) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(image).save(path)
    return image


def names(folder: Path) -> list[str]:
    return [record.name for record in list_images(folder)]


# --- list_images -----------------------------------------------------------------------------------------------------


def test_lists_recursively_sorted_by_name(tmp_path: Path) -> None:
    wanted = ["B.PNG", "a.jpg", "b.webp", "c.bmp", "d.tif", "e.tiff", "f.gif", "g.jpeg", "sub/deep/z.png", "sub/a.png"]
    for name in wanted:
        write_image(tmp_path / name)
    records = list_images(tmp_path)
    assert [record.name for record in records] == sorted(wanted)
    assert [record.path for record in records] == [tmp_path / name for name in sorted(wanted)]
    assert all(record.path.is_file() for record in records)


def test_an_output_folder_of_a_run_can_be_listed(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    for ignored in (".hidden.png", ".cache/x.png", "checkpoints/10/x.png", "validation/x.png", "sub/.git/x.png"):
        write_image(tmp_path / ignored)
    for other in ("config.yaml", "metrics.jsonl", "summary.json", "a.txt", "a.png.bak", "png"):
        (tmp_path / other).write_text("0")
    assert names(tmp_path) == ["a.png"]


def test_folders_of_a_run_are_data_anywhere_else(tmp_path: Path) -> None:
    for name in ("train/a.png", "validation/b.png", "preview/c.png"):
        write_image(tmp_path / name)
    assert names(tmp_path) == ["preview/c.png", "train/a.png", "validation/b.png"]


def test_the_named_folder_itself_may_be_a_validation_folder(tmp_path: Path) -> None:
    write_image(tmp_path / "validation" / "a.png")
    assert names(tmp_path / "validation") == ["a.png"]


def test_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere" / "x.png")
    write_image(tmp_path / "data" / "a.png")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "linked")
    os.symlink(tmp_path / "data", tmp_path / "data" / "self")
    assert names(tmp_path / "data") == ["a.png", "linked/x.png"]


def test_accepts_a_string(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    assert list_images(str(tmp_path)) == [ImageRecord(tmp_path / "a.png", "a.png", None)]


def test_clear_errors_for_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_images(tmp_path / "nowhere")
    (tmp_path / "file.png").write_bytes(b"x")
    with pytest.raises(NotADirectoryError, match=r"file\.png"):
        list_images(tmp_path / "file.png")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty" / "config.yaml").write_text("command: stage2")
    write_image(tmp_path / "empty" / "checkpoints" / "x.png")
    with pytest.raises(ValueError, match=r"no images in .*empty.*\.png"):
        list_images(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"captions: .*'maybe'"):
        list_images(tmp_path, captions="maybe")  # type: ignore[arg-type]


def test_every_format_that_pillow_reads_and_no_other(tmp_path: Path) -> None:
    """Those of other formats are refused together, or with skip_bad one by one."""
    pixels = np.dstack([*np.meshgrid(np.arange(0, 200, 10), np.arange(0, 120, 10)), np.full((12, 20), 90)])
    pixels = pixels.astype(np.uint8)
    save_png(pixels, tmp_path / "a.png")
    formats = {"b.avif": "AVIF", "c.JFIF": "JPEG", "d.jpe": "JPEG", "e.jp2": "JPEG2000", "f.tga": "TGA", "g.qoi": "QOI"}
    for name, kind in formats.items():
        Image.fromarray(pixels).save(tmp_path / name, format=kind)
    Image.fromarray(pixels).save(tmp_path / "h.mpo", format="MPO", save_all=True)
    readable = ["a.png", *formats, "h.mpo"]
    assert names(tmp_path) == readable
    loaded = {record.name: image for record, image in load_images(list_images(tmp_path), (12, 20))}
    assert all(abs(image.astype(int) - pixels).mean() < 8 for image in loaded.values())
    for name in ("e.jp2", "f.tga", "g.qoi"):
        np.testing.assert_array_equal(loaded[name], pixels)
    # Pillow reads the last two after a fashion.
    foreign = ["i.HEIC", "sub/j.Dng", "k.svg", "l.psd", "m.ico"]
    (tmp_path / "sub").mkdir()
    for name in foreign:
        (tmp_path / name).write_bytes((tmp_path / "a.png").read_bytes())
    with pytest.raises(ValueError, match=r"5 of 13 images in .*: i\.HEIC, k\.svg, l\.psd, \.\.\.; convert"):
        list_images(tmp_path)
    records = list_images(tmp_path, skip_bad=True)
    bad: list[str] = []
    good = [r.name for r, _ in load_images(records, 8, skip_bad=True, on_bad=lambda r, error: bad.append(r.name))]
    assert good == readable and sorted(bad) == sorted(foreign)
    with pytest.raises(BadImageError, match=r"l\.psd: \.psd files are not read"):
        load_image(tmp_path / "l.psd")


def test_what_is_passed_over_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_image(tmp_path / "a.png")
    for name in (".secret.jpg", "._a.png", ".git/x.png", "sub/b.png"):
        write_image(tmp_path / name)
    (tmp_path / "sub" / "b.png").rename(tmp_path / "sub" / "scan")
    for name in ("live.MOV", "more.zip", "a.txt", "a.caption", "README.md", "config.json", "._b.jpg"):
        (tmp_path / name).write_text("x")
    assert names(tmp_path) == ["a.png"]
    (tmp_path / "twice").symlink_to(tmp_path / "sub")
    assert names(tmp_path) == ["a.png"]
    assert ".secret.jpg, live.MOV, more.zip, ... (4 in all)" in caplog.messages[0]
    assert "(5 in all)" in caplog.messages[1]
    with pytest.raises(NoImagesError):
        list_images(tmp_path / "sub")
    assert "not used, though they may hold images: scan (1 in all)" in caplog.messages[2]


def test_a_sub_folder_that_may_not_be_read_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "shut" / "b.png")
    scandir = os.scandir

    def guarded(path: str) -> object:
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with pytest.raises(PermissionError, match="shut"):
        list_images(tmp_path)


# --- load_images -----------------------------------------------------------------------------------------------------


def test_loads_in_order_at_the_resolution(tmp_path: Path) -> None:
    first = write_image(tmp_path / "a.png", 1, (16, 16))
    write_image(tmp_path / "b.png", 2, (40, 90))
    loaded = list(load_images(list_images(tmp_path), 16))
    assert [record.name for record, _ in loaded] == ["a.png", "b.png"]
    assert all(image.shape == (16, 16, 3) for _, image in loaded)
    np.testing.assert_array_equal(loaded[0][1], first)
    assert [image.shape for _, image in load_images(list_images(tmp_path), (8, 24))] == [(8, 24, 3)] * 2


def test_is_lazy(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    images = load_images(list_images(tmp_path), 8)
    assert next(images)[0].name == "a.png"
    with pytest.raises(BadImageError, match=r"b\.png"):
        next(images)


def test_variants_depend_on_seed_name_and_number_only(tmp_path: Path) -> None:
    for index, name in enumerate(["a.png", "b.png", "sub/a.png"]):
        write_image(tmp_path / name, index)
    records = list_images(tmp_path)

    def variants_of(chosen: list[ImageRecord], seed: int, count: int) -> dict[str, list[np.ndarray]]:
        result: dict[str, list[np.ndarray]] = {}
        for record, image in load_images(chosen, 8, crop="random", seed=seed, variants=count):
            result.setdefault(record.name, []).append(image)
        return result

    every = variants_of(records, 3, 4)
    alone = variants_of(records[1:2], 3, 6)
    assert [len(images) for images in every.values()] == [4, 4, 4]
    np.testing.assert_array_equal(every["b.png"], alone["b.png"][:4])
    np.testing.assert_array_equal(variants_of(records[::-1], 3, 4)["a.png"], every["a.png"])
    assert not np.array_equal(every["b.png"][0], every["b.png"][1])
    assert not np.array_equal(variants_of(records, 4, 4)["b.png"], every["b.png"])


def test_the_same_picture_under_two_names_is_cropped_differently(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        write_image(tmp_path / name, 0, (8, 200))
    crops = [image for _, image in load_images(list_images(tmp_path), 8, crop="random")]
    assert not np.array_equal(crops[0], crops[1])
    assert not np.array_equal(crops[1], crops[2])


def test_skip_bad_goes_on_and_reports(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"not an image")
    write_image(tmp_path / "c.png")
    reported: list[tuple[str, str]] = []
    loaded = load_images(
        list_images(tmp_path), 8, skip_bad=True, on_bad=lambda record, error: reported.append((record.name, str(error)))
    )
    assert [record.name for record, _ in loaded] == ["a.png", "c.png"]
    assert [name for name, _ in reported] == ["b.png"]
    assert "b.png" in reported[0][1]
    with pytest.raises(BadImageError, match=r"b\.png"):
        list(load_images(list_images(tmp_path), 8))


def test_all_bad_is_an_error_even_when_skipping(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"none of the 2 images.*a\.png"):
        list(load_images(list_images(tmp_path), 8, skip_bad=True))


def test_wrong_arguments_raise_at_the_call(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    records = list_images(tmp_path)
    with pytest.raises(ValueError, match=r"variants: .*0"):
        load_images(records, 8, variants=0)
    with pytest.raises(ValueError, match="resolution: "):
        load_images(records, 0)
    with pytest.raises(ValueError, match="crop: "):
        load_images(records, 8, crop="top")  # type: ignore[arg-type]


# --- output_names ----------------------------------------------------------------------------------------------------


def records_named(*given_names: str) -> list[ImageRecord]:
    return [ImageRecord(Path("/data") / name, name) for name in given_names]


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["a.jpg", "sub/b.webp", "c.d.JPEG", "e.png"], ["a.png", "sub/b.png", "c.d.png", "e.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png"]),
        (["a.jpg", "a.webp"], ["a.jpg.png", "a.webp.png"]),
        (["a.jpg", "sub/a.jpg"], ["a.png", "sub/a.png"]),
        (["a.jpg", "a.jpg.png", "a.png"], ["a.jpg-1.png", "a.jpg.png", "a.png"]),
        (["A.jpg", "a.webp"], ["A.jpg.png", "a.webp.png"]),
        (["a.PNG", "a.png"], ["a.PNG.png", "a.png"]),
        (["a.PNG"], ["a.png"]),
    ],
)
def test_output_names(inputs: list[str], outputs: list[str]) -> None:
    assert output_names(records_named(*inputs)) == outputs
    assert output_names(records_named(*inputs[::-1])) == outputs[::-1]


@given(
    st.lists(
        st.builds(
            "{}{}".format,
            st.sampled_from(["a", "b", "a.jpg", "a.png", "s/a", "a.jpg-1"]),
            st.sampled_from([".png", ".jpg", ".jpeg", ".webp"]),
        ),
        unique=True,
    )
)
def test_output_names_never_collide(inputs: list[str]) -> None:
    outputs = output_names(records_named(*inputs))
    assert len({name.casefold() for name in outputs}) == len(inputs)
    assert all(name.endswith(".png") for name in outputs)
    assert all(out == name for name, out in zip(inputs, outputs, strict=True) if name.endswith(".png"))


def test_output_names_refuse_repeated_records() -> None:
    with pytest.raises(ValueError, match=r'"a\.jpg" comes more than once'):
        output_names(records_named("a.jpg", "b.jpg", "a.jpg"))


def test_results_can_be_written_under_the_output_names(tmp_path: Path) -> None:
    for index, name in enumerate(["a.jpg", "a.png", "sub/b.bmp"]):
        write_image(tmp_path / "in" / name, index)
    records = list_images(tmp_path / "in")
    for (_, image), name in zip(load_images(records, 8), output_names(records), strict=True):
        save_png(image, tmp_path / "out" / name)
    assert names(tmp_path / "out") == ["a.jpg.png", "a.png", "sub/b.png"]


def test_an_image_that_is_not_read_takes_no_name() -> None:
    assert output_names(records_named("a.cr2", "a.jpg", "b.heic")) == ["a.cr2.png", "a.png", "b.heic.png"]
