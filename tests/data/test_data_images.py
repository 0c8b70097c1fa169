"""load_image: modes, orientations, real photographs, damaged files. save_png."""

from __future__ import annotations

import os
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image
from sklearn.datasets import load_sample_images

from lordfast.data import BadImageError, load_image, load_layers, save_png

SKIMAGE_DATA = Path(skimage.__file__).parent / "data"
RED = (200, 10, 60)


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return list(load_sample_images().images)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


# --- photographs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["png", "bmp", "tif"])
def test_lossless_photographs_load_bit_exact(photos: list[np.ndarray], tmp_path: Path, extension: str) -> None:
    for index, photo in enumerate(photos):
        path = tmp_path / f"{index}.{extension}"
        Image.fromarray(photo).save(path)
        np.testing.assert_array_equal(load_image(path), photo)


@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_jpeg_photographs_load_close(photos: list[np.ndarray], tmp_path: Path, mode: str) -> None:
    for index, photo in enumerate(photos):
        path = tmp_path / f"{index}.jpg"
        Image.fromarray(photo).convert(mode).save(path, quality=95)
        assert psnr(load_image(path), photo) > 30


def test_grey_jpeg_has_three_equal_channels(photos: list[np.ndarray], tmp_path: Path) -> None:
    grey = Image.fromarray(photos[0]).convert("L")
    grey.save(tmp_path / "grey.jpg", quality=95)
    loaded = load_image(tmp_path / "grey.jpg")
    assert np.ptp(loaded, axis=2).max() == 0
    assert psnr(loaded[..., 0], np.asarray(grey)) > 35


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("astronaut.png", (512, 512)),
        ("retina.jpg", (1411, 1411)),
        ("coins.png", (303, 384)),
    ],
)
def test_scikit_image_photographs(name: str, size: tuple[int, int]) -> None:
    loaded = load_image(SKIMAGE_DATA / name)
    with Image.open(SKIMAGE_DATA / name) as reference:
        expected = np.asarray(reference)
    assert loaded.dtype == np.uint8
    assert loaded.shape == (*size, 3)
    np.testing.assert_array_equal(loaded, expected if expected.ndim == 3 else np.stack([expected] * 3, axis=2))


def test_first_frame_of_multi_page_and_animated_files() -> None:
    with Image.open(SKIMAGE_DATA / "multipage.tif") as pages:
        assert pages.n_frames > 1
        first = np.asarray(pages.convert("RGB"))
    np.testing.assert_array_equal(load_image(SKIMAGE_DATA / "multipage.tif"), first)
    with Image.open(SKIMAGE_DATA / "no_time_for_that_tiny.gif") as animation:
        assert animation.n_frames > 1
        first = np.asarray(animation.convert("RGB"))
    np.testing.assert_array_equal(load_image(SKIMAGE_DATA / "no_time_for_that_tiny.gif"), first)


def test_frames_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames = [Image.new("RGB", (8, 8), (60 * i, 0, 0)) for i in range(4)]
    for name in ("a.gif", "b.webp", "c.tif", "d.png", "e.avif", "f.mpo"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert load_image(tmp_path / name).max() < 8
        load_image(tmp_path / name)
    # Pillow calls the further pictures of an MPO file undefined, as phones do their gain maps; these are views.
    content = bytearray((tmp_path / "f.mpo").read_bytes())
    first = content.index(struct.pack("<I", 0x030000), content.index(b"MPF\0") + 50)
    content[first + 16 : first + 20] = struct.pack("<I", 0x020002)
    (tmp_path / "g.mpo").write_bytes(content)
    load_image(tmp_path / "g.mpo")
    told = [text.removeprefix(f"{tmp_path}/") for text in caplog.messages]
    counts = {"a.gif": 4, "b.webp": 4, "c.tif": 4, "d.png": 4, "e.avif": 4, "g.mpo": 2}
    assert told == [f"{name}: only the first of {count} frames is read" for name, count in counts.items()]


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_transparent_photograph_is_composited_on_white(
    photos: list[np.ndarray], tmp_path: Path, extension: str
) -> None:
    photo = photos[1][:128, :256]
    alpha = np.broadcast_to(np.arange(256, dtype=np.uint8)[None, :, None], (128, 256, 1))
    path = tmp_path / f"x.{extension}"
    Image.fromarray(np.concatenate([photo, alpha], axis=2)).save(path)
    expected = photo * (alpha / 255) + 255 * (1 - alpha / 255)
    np.testing.assert_allclose(load_image(path), expected, atol=1)


# --- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", RED, RED),
        ("RGBA", (*RED, 255), RED),
        ("RGBA", (*RED, 0), (255, 255, 255)),
        ("RGBA", (*RED, 51), (244, 206, 216)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 255), (77, 77, 77)),
        ("LA", (77, 0), (255, 255, 255)),
        ("1", 1, (255, 255, 255)),
        ("1", 0, (0, 0, 0)),
        ("I;16", 257 * 30, (30, 30, 30)),
    ],
)
def test_png_modes(tmp_path: Path, mode: str, color: int | tuple[int, ...], expected: tuple[int, int, int]) -> None:
    path = tmp_path / "x.png"
    Image.new(mode, (5, 4), color).save(path)
    loaded = load_image(path)
    assert loaded.shape == (4, 5, 3)
    assert loaded.dtype == np.uint8
    np.testing.assert_allclose(loaded, np.broadcast_to(expected, (4, 5, 3)), atol=1)


@pytest.mark.parametrize("extension", ["png", "gif"])
@pytest.mark.parametrize("transparent", [False, True])
def test_palette_images(tmp_path: Path, extension: str, transparent: bool) -> None:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 255, *RED, 0, 255, 0])
    image.putpixel((0, 0), 2)
    path = tmp_path / f"x.{extension}"
    if transparent:
        image.info["transparency"] = 2
    image.save(path)
    loaded = load_image(path)
    assert tuple(loaded[1, 1]) == RED
    assert tuple(loaded[0, 0]) == ((255, 255, 255) if transparent else (0, 255, 0))


def test_colour_key_transparency_of_rgb_png(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), RED)
    image.putpixel((0, 0), (1, 2, 3))
    image.save(tmp_path / "x.png", transparency=(1, 2, 3))
    loaded = load_image(tmp_path / "x.png")
    assert tuple(loaded[0, 0]) == (255, 255, 255)
    assert tuple(loaded[1, 1]) == RED


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, extension: str) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    path = tmp_path / f"x.{extension}"
    Image.fromarray(levels * 257).save(path)
    np.testing.assert_array_equal(load_image(path), np.stack([levels] * 3, axis=2))


def test_16_bit_rgb_png(tmp_path: Path) -> None:
    # Pillow cannot write this format, so the file is put together by hand.
    row = b"\0" + struct.pack(">HHH", 65535, 32768, 0) * 4
    header = struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0)
    data = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(row * 3)) + png_chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    np.testing.assert_allclose(load_image(tmp_path / "x.png"), np.broadcast_to((255, 128, 0), (3, 4, 3)), atol=1)


def test_integer_and_float_tiff(tmp_path: Path) -> None:
    integers = np.array([[0, 257, 65535]], np.int32)
    Image.fromarray(integers).save(tmp_path / "i.tif")
    assert load_image(tmp_path / "i.tif")[0, :, 1].tolist() == [0, 1, 255]
    floats = np.array([[0.0, 0.5, 1.0]], np.float32)
    Image.fromarray(floats).save(tmp_path / "f.tif")
    assert load_image(tmp_path / "f.tif")[0, :, 1].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    "pixels",
    [
        np.array([[0, 65536]], np.int32),
        np.array([[-1, 5]], np.int32),
        np.array([[0.0, 1.5]], np.float32),
        np.array([[0.0, np.nan]], np.float32),
    ],
)
def test_values_without_a_known_range_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "range.tif"
    Image.fromarray(pixels).save(path)
    with pytest.raises(BadImageError, match=r"range\.tif.*expected"):
        load_image(path)


# What a viewer has to do to the stored pixels, for each value of the EXIF tag.
ORIENTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", sorted(ORIENTATIONS))
@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_exif_orientation_is_applied(
    photos: list[np.ndarray], tmp_path: Path, orientation: int, extension: str
) -> None:
    photo = photos[1][:96, :128]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{extension}"
    Image.fromarray(photo).save(path, exif=exif, quality=95)
    loaded, expected = load_image(path), ORIENTATIONS[orientation](photo)
    assert loaded.shape == expected.shape
    if extension == "png":
        np.testing.assert_array_equal(loaded, expected)
    else:
        assert psnr(loaded, expected) > 30


# --- damaged files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "gif"])
@pytest.mark.parametrize("kept", [0.1, 0.6, 0.95])
def test_truncated_files(photos: list[np.ndarray], tmp_path: Path, extension: str, kept: float) -> None:
    path = tmp_path / f"cut.{extension}"
    Image.fromarray(photos[0]).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(BadImageError, match=rf"cut\.{extension}"):
        load_image(path)


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty"), (b"hello, I am not an image", "not an image"), (b"\x89PNG\r\n\x1a\n", "")]
)
def test_files_that_are_no_images(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "fake.png"
    path.write_bytes(content)
    with pytest.raises(BadImageError, match=rf"fake\.png: .*{reason}") as caught:
        load_image(path)
    assert caught.value.path == path
    assert reason in caught.value.reason


def test_corrupt_png_checksum(tmp_path: Path) -> None:
    path = tmp_path / "crc.png"
    Image.new("RGB", (16, 16), RED).save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(BadImageError, match=r"crc\.png"):
        load_image(path)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("L", (64, 64)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BadImageError, match=r"bomb\.png.*[Bb]omb"):
        load_image(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match=r"gone\.png: no such file"):
        load_image(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(BadImageError, match=r"folder\.png"):
        load_image(tmp_path / "folder.png")


def test_bad_image_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(BadImageError("a/b.png", "it is broken")))
    assert str(error) == "cannot read image a/b.png: it is broken"
    assert (error.path, error.reason) == (Path("a/b.png"), "it is broken")


# --- save_png --------------------------------------------------------------------------------------------------------


def test_save_png_is_lossless_and_replaces(photos: list[np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "x.png"
    save_png(photos[1], path)
    save_png(photos[0], path)
    np.testing.assert_array_equal(load_image(path), photos[0])
    assert [p.name for p in path.parent.iterdir()] == ["x.png"]
    save_png(Image.fromarray(photos[1]), path)
    np.testing.assert_array_equal(load_image(path), photos[1])


def test_interrupted_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    save_png(np.full((4, 4, 3), 9, np.uint8), path)

    def fail(source: object, target: object) -> None:
        assert Path(str(source)).parent == path.parent
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        save_png(np.zeros((4, 4, 3), np.uint8), path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    assert (load_image(path) == 9).all()


def test_saved_files_have_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "ordinary").write_bytes(b"")
    save_png(np.zeros((4, 4, 3), np.uint8), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_save_png_refuses_what_is_not_png_or_uint8(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path: .*\.jpg"):
        save_png(np.zeros((4, 4, 3), np.uint8), tmp_path / "x.jpg")
    with pytest.raises(TypeError, match="image: expected dtype uint8, got float32"):
        save_png(np.zeros((4, 4, 3), np.float32), tmp_path / "x.png")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"image: expected shape \(H, W, 3\), got \(4, 4\)"):
        save_png(np.zeros((4, 4), np.uint8), tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_opacity_is_read_apart_from_the_colours(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    rgb, alpha = load_layers(tmp_path / "a.png")
    assert np.array_equal(rgb, rgba[..., :3]) and alpha is not None and np.array_equal(alpha, rgba[..., 3])
    white = np.rint(rgb * (alpha[..., None] / 255) + 255 - alpha[..., None].astype(float))
    assert abs(load_image(tmp_path / "a.png") - white).max() <= 1
    Image.fromarray(rgba[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    rgb, alpha = load_layers(tmp_path / "deep.png")
    assert alpha is None and np.array_equal(rgb, np.repeat(rgba[..., :1], 3, axis=2))
    with pytest.raises(BadImageError, match="no such file"):
        load_layers(tmp_path / "none.png")
