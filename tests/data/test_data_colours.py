"""Colour profiles and colour chunks: pixels as a colour-managed viewer shows them, in sRGB."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from lordfast.data import load_image, load_layers

SKIMAGE_DATA = Path(skimage.__file__).parent / "data"
# From linear Adobe RGB (1998) to linear sRGB, both D65.
ADOBE = np.array([[1.39836, -0.39836, 0.0], [0.0, 1.0, 0.0], [0.0, -0.04293, 1.04293]])
# Display P3 to sRGB.
P3 = np.array([[1.22494, -0.22494, 0.0], [-0.04206, 1.04206, 0.0], [-0.01964, -0.07864, 1.09828]])
P3_CHUNK = (0.3127, 0.3290, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060)


def encode(linear: np.ndarray) -> np.ndarray:
    """Linear sRGB in [0, 1] as grey levels."""
    linear = linear.clip(0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def decode(levels: np.ndarray) -> np.ndarray:
    values = levels / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def profile_of(path: str) -> bytes:
    with Image.open(SKIMAGE_DATA / path) as image:
        return image.info["icc_profile"]


def tag(profile: bytes, name: bytes) -> bytes:
    for i in range(struct.unpack(">I", profile[128:132])[0]):
        key, start, size = struct.unpack(">4sII", profile[132 + 12 * i : 144 + 12 * i])
        if key == name:
            return profile[start : start + size]
    raise KeyError(name)


def cmyk_profile() -> bytes:
    """A press whose inks C, M and Y do nothing, and whose K goes evenly from L* = 100 to L* = 0."""
    levels = bytes(range(256))
    grid = b"".join(bytes([0 if corner & 1 else 255, 128, 128]) for corner in range(16))
    matrix = struct.pack(">9i", *(np.eye(3).ravel() * 65536).astype(int))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + 4 * levels + grid + 3 * levels
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    start = 132 + 24
    tags = struct.pack(">I", 2) + struct.pack(">4sII", b"A2B0", start, len(table))
    tags += struct.pack(">4sII", b"wtpt", start + len(table), len(white))
    size = start + len(table) + len(white)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02100000, b"prtr", b"CMYK", b"Lab ") + bytes(12) + b"acsp"
    head += bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + tags + table + white


def test_wide_gamuts_become_srgb(tmp_path: Path) -> None:
    """An Adobe RGB photograph and its variants; P3 as a PNG file's own chunks say it, and with a linear curve."""
    with Image.open(SKIMAGE_DATA / "rocket.jpg") as opened:
        stored, profile = np.asarray(opened), opened.info["icc_profile"]
    shown = encode((stored / 255) ** 2.19921875 @ ADOBE.T)
    assert abs(shown - stored).max() > 30
    np.testing.assert_allclose(load_image(SKIMAGE_DATA / "rocket.jpg"), shown, atol=1.5)
    alpha = np.random.default_rng(0).integers(0, 256, stored.shape[:2], dtype=np.uint8)
    Image.fromarray(np.dstack([stored, alpha])).save(
        tmp_path / "a.webp", lossless=True, exact=True, icc_profile=profile
    )
    colours, kept = load_layers(tmp_path / "a.webp")
    np.testing.assert_allclose(colours, shown, atol=1.5)
    np.testing.assert_array_equal(kept, alpha)

    def chunks(gamma: float) -> PngInfo:
        info = PngInfo()
        info.add(b"gAMA", struct.pack(">I", round(gamma * 1e5)))
        info.add(b"cHRM", struct.pack(">8I", *(round(value * 1e5) for value in P3_CHUNK)))
        return info

    Image.fromarray(stored).save(tmp_path / "p3.png", pnginfo=chunks(0.45455))
    np.testing.assert_allclose(load_image(tmp_path / "p3.png"), encode(decode(stored) @ P3.T), atol=0.6)
    Image.fromarray(stored).save(tmp_path / "linear.png", pnginfo=chunks(1))
    content = (tmp_path / "linear.png").read_bytes()
    np.testing.assert_allclose(load_layers("a.tar/x.png", content)[0], encode(stored / 255 @ P3.T), atol=0.6)
    # sRGB's own chunk goes before both, and a profile before that.
    info = chunks(1)
    info.add(b"sRGB", b"\0")
    Image.fromarray(stored).save(tmp_path / "both.png", pnginfo=info)
    np.testing.assert_array_equal(load_image(tmp_path / "both.png"), stored)


def test_grey_profiles_at_8_and_16_bits(tmp_path: Path) -> None:
    profile = profile_of("page.png")
    curve = tag(profile, b"kTRC")
    points = np.frombuffer(curve[12:], dtype=">u2")[: struct.unpack(">I", curve[8:12])[0]] / 65535
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = encode(np.interp(levels / 255, np.linspace(0, 1, len(points)), points))
    assert abs(expected - levels).max() > 10
    Image.fromarray(levels).save(tmp_path / "8.png", icc_profile=profile)
    Image.fromarray(levels.astype(np.uint16) * 257).save(tmp_path / "16.tif", icc_profile=profile)
    Image.fromarray(np.dstack([levels, levels])).save(tmp_path / "alpha.png", icc_profile=profile)
    for name in ("8.png", "16.tif", "alpha.png"):
        colours, alpha = load_layers(tmp_path / name)
        np.testing.assert_allclose(colours, np.repeat(expected[..., None], 3, axis=2), atol=1.5, err_msg=name)
        assert (alpha is not None) == (name == "alpha.png")
    assert np.array_equal(colours[..., 0], colours[..., 1]) and np.array_equal(colours[..., 0], colours[..., 2])


def test_cmyk_goes_through_its_profile(tmp_path: Path) -> None:
    inks = np.zeros((8, 8, 4), np.uint8)
    inks[4:, :, 3] = 128
    Image.fromarray(inks, "CMYK").save(tmp_path / "with.jpg", quality=100, icc_profile=cmyk_profile())
    Image.fromarray(inks, "CMYK").save(tmp_path / "without.jpg", quality=100)
    # L* = 100 (1 - 128 / 255) is Y = 0.183.
    shown = load_image(tmp_path / "with.jpg")
    assert abs(shown[0] - 255.0).max() <= 1 and abs(shown[-1] - encode(np.array(0.1829))).max() <= 1
    assert load_image(tmp_path / "without.jpg")[-1, 0].tolist() == [127, 127, 127]


def test_a_profile_that_means_srgb_changes_no_bit(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    made = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for number, profile in enumerate((made, profile_of("astronaut.png"))):
        Image.fromarray(stored).save(tmp_path / f"{number}.png", icc_profile=profile)
        np.testing.assert_array_equal(load_image(tmp_path / f"{number}.png"), stored)


def test_an_unusable_profile_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    half = profile_of("rocket.jpg")[:300]
    for name, profile in {"cut.png": half, "noise.png": b"profile", "press.png": cmyk_profile()}.items():
        Image.fromarray(stored).save(tmp_path / name, icc_profile=profile)
    Image.fromarray(stored).save(tmp_path / "zip.png")
    content = (tmp_path / "zip.png").read_bytes()
    broken = b"iCCPname\0\0not zlib"
    chunk = struct.pack(">I", len(broken) - 4) + broken + struct.pack(">I", zlib.crc32(broken))
    (tmp_path / "zip.png").write_bytes(content[:33] + chunk + content[33:])
    info = PngInfo()
    info.add(b"cHRM", bytes(32))
    info.add(b"gAMA", bytes(4))
    Image.fromarray(stored).save(tmp_path / "nought.png", pnginfo=info)
    names = ("cut.png", "noise.png", "press.png", "zip.png", "nought.png")
    with caplog.at_level(logging.WARNING):
        for name in names * 2:
            np.testing.assert_array_equal(load_image(tmp_path / name), stored, err_msg=name)
    assert [sum(name in text for text in caplog.messages) for name in names] == [1] * 5
