"""The colours of an image file in sRGB, as a colour-managed viewer shows them."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms

from lordfast.data.notices import notice
from lordfast.pixels import Uint8Image

_GAMMA = 0.45455
_XY = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
"""What a PNG file says of sRGB: the exponent, and x and y of white, red, green and blue."""

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_srgb(image: Image.Image, colours: Uint8Image, path: Path) -> Uint8Image:
    """`colours` as `image`'s profile means them, in sRGB; unchanged without one, and with one that means sRGB.

    Read are ICC profiles (RGB, grey and CMYK) and, in PNG files without one, gAMA and cHRM. Colours that sRGB does not
    have become the nearest that it has. A profile that can't be used is named in the log, and changes nothing.

    Args:
        image: as Pillow opened it.
        colours: its pixels, uint8 (H, W, 3).
        path: for the log.
    """
    info = image.info
    if "icc_profile" in info:
        try:
            return _through_profile(image, colours, info["icc_profile"])
        except Exception as error:
            # Little CMS reports damage in many ways, and the pixels can be used without.
            notice(f"{path}: its colour profile can't be used ({error}); the colours are read as sRGB")
            return colours
    if "srgb" not in info and ("gamma" in info or "chromaticity" in info):
        return _through_png_chunks(colours, info.get("gamma", _GAMMA), info.get("chromaticity", _XY), path)
    return colours


def _through_profile(image: Image.Image, colours: Uint8Image, profile: bytes | None) -> Uint8Image:
    if not profile:
        # Pillow's way to say that it could not decode it.
        raise ValueError("it is damaged")
    space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
    if space == "CMYK" and image.mode == "CMYK":
        source = image
    elif space == "RGB" and image.mode != "CMYK":
        source = Image.fromarray(colours)
    elif space == "GRAY" and image.mode != "CMYK" and not np.ptp(colours, axis=2).any():
        source = Image.fromarray(np.ascontiguousarray(colours[..., 0]))
    else:
        raise ValueError(f"it is for {space}, the image is {image.mode}")
    transform = _transform(profile, source.mode)
    if transform is None:
        return colours
    converted = np.array(ImageCms.applyTransform(source, transform))
    # Rounding may tint a grey.
    return np.repeat(converted[..., 1:2], 3, axis=2) if space == "GRAY" else converted


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Pixels of `mode` under `profile` to sRGB; None where that changes none by more than a grey level."""
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), mode, "RGB"
    )
    if mode == "CMYK":
        return transform
    levels = np.arange(256, dtype=np.uint8)
    grid = np.stack(np.meshgrid(levels[::15], levels[::15], levels[::15]), axis=-1).reshape(-1, 3)
    probe = np.concatenate([grid, np.repeat(levels[:, None], 3, axis=1)])[None]
    source = Image.fromarray(probe if mode == "RGB" else np.ascontiguousarray(probe[..., 0]))
    expected = probe if mode == "RGB" else probe[..., :1]
    shown = np.array(ImageCms.applyTransform(source, transform)).astype(int)
    return None if np.abs(shown - expected).max() <= 1 else transform


def _through_png_chunks(colours: Uint8Image, gamma: float, xy: tuple[float, ...], path: Path) -> Uint8Image:
    # As libpng: an exponent within 5 % of sRGB's stands for sRGB's curve.
    is_curve = abs(gamma / _GAMMA - 1) <= 0.05
    is_gamut = np.allclose(xy, _XY, atol=2e-3)
    if is_curve and is_gamut:
        return colours
    try:
        with np.errstate(divide="raise", invalid="raise"):
            matrix = np.eye(3) if is_gamut else np.linalg.inv(_to_xyz(_XY)) @ _adaptation(xy) @ _to_xyz(xy)
        steps = np.arange(256) / 255
        curve = _decode(steps) if is_curve else steps ** (1 / gamma)
    except (ArithmeticError, np.linalg.LinAlgError) as error:
        notice(f"{path}: its colour chunks can't be used ({error}); the colours are read as sRGB")
        return colours
    linear = curve.astype(np.float32)[colours] @ matrix.T.astype(np.float32)
    return np.rint(255 * _encode(linear.clip(0, 1))).astype(np.uint8)


def _to_xyz(xy: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """The matrix from linear RGB to XYZ for the chromaticities of white, red, green and blue."""
    points = np.array(xy).reshape(4, 2)
    white, *primaries = np.column_stack([points, 1 - points.sum(axis=1)]) / points[:, 1:]
    columns = np.array(primaries).T
    return np.asarray(columns * np.linalg.solve(columns, white))


def _adaptation(xy: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Bradford's matrix from XYZ under the white of `xy` to XYZ under sRGB's."""
    theirs, ours = (_BRADFORD @ (_to_xyz(each) @ np.ones(3)) for each in (xy, _XY))
    return np.asarray(np.linalg.inv(_BRADFORD) @ np.diag(ours / theirs) @ _BRADFORD)


def _decode(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _encode(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.where(values <= 0.0031308, values * 12.92, 1.055 * values ** (1 / 2.4) - 0.055)
