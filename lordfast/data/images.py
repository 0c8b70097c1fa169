"""One image: from a file of any common mode to uint8 RGB, to the training resolution, and back to PNG."""

from __future__ import annotations

import functools
import io
from pathlib import Path, PurePath
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from lordfast.data.colours import to_srgb
from lordfast.data.notices import notice
from lordfast.files import write_atomic
from lordfast.pixels import Uint8Image, check_image

Crop = Literal["center", "random"]
Layers = tuple[Uint8Image, npt.NDArray[np.uint8] | None]
"""Colours, uint8 (H, W, 3), and alpha, uint8 (H, W) or None."""

# Formats in Pillow's registry that are no pictures of pixels, or only seem to be read: vector graphics, videos,
# measurements, layers, and files that hold one picture in several sizes.
_NO_PICTURES = frozenset(
    {"BUFR", "CUR", "EPS", "FITS", "FLI", "GRIB", "HDF5", "ICNS", "ICO", "IPTC", "MPEG", "PDF", "PSD", "WMF"}
)
# Pictures that Pillow can't read, or not as they are meant.
_FOREIGN = """
    .heic .heics .heif .heifs .hif .avci .jxl .jxr .wdp .hdp .bpg .flif .exr .hdr .svg .svgz .eps .ai .wmf .emf .psd
    .psb .xcf .kra .ora .afphoto .clip .procreate .ico .icns .cur .pct .pict .djvu .livp .insp .raw .dng .cr2 .cr3
    .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .x3f .3fr .fff .erf .kdc .dcr .mrw .mos .mef .iiq .rwl .gpr
"""
FOREIGN_EXTENSIONS = frozenset(_FOREIGN.split())


class BadImageError(ValueError):
    """An image file that cannot be used; the message names the file and the reason, as do ``path`` and ``reason``."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"cannot read image {path}: {reason}")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[BadImageError], tuple[Path, str]]:
        # The default rebuilds from the message alone, which fails when the error comes out of a worker process.
        return type(self), (self.path, self.reason)


@functools.cache
def readable_extensions() -> frozenset[str]:
    """The lower-case extensions, with their full stop, of the picture formats that the installed Pillow reads."""
    # MPO, what many phones and stereo cameras write, is opened as the JPEG that it begins with.
    return frozenset(
        extension
        for extension, name in Image.registered_extensions().items()
        if (name in Image.OPEN or name == "MPO") and name not in _NO_PICTURES
    )


def names_image(name: str | PurePath) -> bool:
    """Whether a file is called as an image, of a format that is read or of another one."""
    return names_readable(name) or PurePath(name).suffix.lower() in FOREIGN_EXTENSIONS


def names_readable(name: str | PurePath) -> bool:
    """Whether a file is called as an image of a format that is read."""
    return PurePath(name).suffix.lower() in readable_extensions()


def load_image(path: str | Path) -> Uint8Image:
    """Read one image file as uint8 RGB of shape (H, W, 3), with its EXIF orientation applied.

    * Transparency (RGBA, LA, palette or colour-key) is composited on white.
    * 16-bit grey is scaled to 8 bits (65535 -> 255), not clipped. 32-bit integer pixels are read as 16-bit ones and
      must lie in 0..65535; float pixels must lie in [0, 1].
    * CMYK and other colour modes go through Pillow's conversion; colours with a profile become sRGB by `to_srgb`.
    * Of an animation or a multi-page file the first frame is read, and the log says how many are not. Previews, depth
      and gain maps that a phone puts into a JPEG are no frames.

    Raises:
        BadImageError: missing, empty, truncated, not an image, of a format that is not read, larger than Pillow's
            decompression-bomb limit, or pixel values outside the ranges above.
    """
    return on_white(*load_layers(path))


def load_layers(path: str | Path, content: bytes | None = None) -> Layers:
    """What `load_image` reads, before it is composited: colours (H, W, 3) and alpha (H, W), None in modes without.

    Args:
        content: what the file holds, where it is no file of its own; errors name it `path`.

    Raises:
        BadImageError: as `load_image`.
    """
    path = Path(path)
    if names_image(path) and not names_readable(path):
        raise BadImageError(path, f"{path.suffix} files are not read; expected PNG, JPEG or another format of pixels")
    try:
        if (path.stat().st_size if content is None else len(content)) == 0:
            raise BadImageError(path, "the file is empty (0 bytes)")
        with Image.open(path if content is None else io.BytesIO(content)) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened) or opened
            colours, alpha = _to_layers(image)
            frames = _frames(opened)
            if frames > 1:
                notice(f"{path}: only the first of {frames} frames is read")
            return to_srgb(image, colours, path), alpha
    except BadImageError:
        raise
    except FileNotFoundError:
        raise BadImageError(path, "no such file") from None
    except Image.UnidentifiedImageError:
        raise BadImageError(path, "not an image, or a format that Pillow does not know") from None
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error, EOFError, ... on damaged
        # files; whichever it is, what the user can act on is the file's name.
        raise BadImageError(path, f"{type(error).__name__}: {error}") from error


def _frames(image: Image.Image) -> int:
    if image.format == "MPO":
        # An MPO file says of each picture what it is for; views of a panorama or of a stereo camera are frames.
        kinds = [entry["Attribute"]["MPType"] for entry in getattr(image, "mpinfo", {}).get(0xB002, ())]
        return 1 + sum(kind.startswith("Multi-Frame Image") for kind in kinds[1:])
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:
        # The first frame could be read; that the next one is damaged is no reason not to use it.
        return 1


def _to_layers(image: Image.Image) -> Layers:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return np.repeat(_grey_to_uint8(np.asarray(image))[..., None], 3, axis=2), None
    if image.has_transparency_data:
        layers = np.array(image.convert("RGBA"))
        return np.ascontiguousarray(layers[..., :3]), np.ascontiguousarray(layers[..., 3])
    return np.array(image.convert("RGB")), None


def on_white(colours: Uint8Image, alpha: npt.NDArray[np.uint8] | None) -> Uint8Image:
    """`colours` (H, W, 3) with transparency `alpha` (H, W) over white, uint8 (H, W, 3)."""
    if alpha is None:
        return colours
    rgba = Image.fromarray(np.dstack([colours, alpha]))
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.array(Image.alpha_composite(white, rgba).convert("RGB"))


def _grey_to_uint8(pixels: npt.NDArray[np.generic]) -> Uint8Image:
    values = pixels.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if np.issubdtype(pixels.dtype, np.floating):
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(f"float pixels from {low:g} to {high:g}, expected [0, 1]")
        return np.rint(values * 255.0).astype(np.uint8)
    if low < 0 or high > 65535:
        raise ValueError(f"integer pixels from {low:g} to {high:g}, expected 0..65535")
    return np.rint(values / 257.0).astype(np.uint8)


def parse_resolution(resolution: int | tuple[int, int]) -> tuple[int, int]:
    """Return ``resolution`` as (height, width); an integer means a square."""
    pair = (resolution, resolution) if isinstance(resolution, (int, np.integer)) else tuple(resolution)
    if len(pair) != 2 or any(isinstance(v, bool) or not isinstance(v, (int, np.integer)) or v < 1 for v in pair):
        raise ValueError(f"resolution: expected a positive integer or (height, width), got {resolution!r}")
    return int(pair[0]), int(pair[1])


def fit_image(
    image: Uint8Image,
    resolution: int | tuple[int, int],
    *,
    crop: Crop = "center",
    rng: np.random.Generator | None = None,
) -> Uint8Image:
    """Bring an image to ``resolution`` without squashing it: scale so that it just covers the target, then crop.

    Args:
        image: uint8 (H, W, 3).
        resolution: pixels, an integer for a square or (height, width).
        crop: "center", or "random" for a uniform position drawn from ``rng``.
        rng: needed by ``crop="random"``; the same state gives the same result.

    Returns:
        uint8 (height, width, 3), a new array. Resampling is antialiased Lanczos and enlarges small images too; an
        image that already covers the target at scale 1 is only cut, so one of the right size comes back bit-identical.
    """
    check_image(image)
    return _fit(image, resolution, crop, rng)


def fit_layers(
    layers: Layers,
    resolution: int | tuple[int, int],
    *,
    crop: Crop = "center",
    rng: np.random.Generator | None = None,
) -> Layers:
    """`fit_image` of colours and alpha together: colours that alpha hides don't bleed into what it shows."""
    colours, alpha = layers
    if alpha is None:
        return fit_image(colours, resolution, crop=crop, rng=rng), None
    fitted = _fit(np.dstack([colours, alpha]), resolution, crop, rng)
    return np.ascontiguousarray(fitted[..., :3]), np.ascontiguousarray(fitted[..., 3])


def load_fitted(path: str | Path, resolution: int | tuple[int, int]) -> Uint8Image:
    """An image file as training sees it: brought to `resolution` by `fit_layers`, its middle, and put on white.

    Raises:
        BadImageError: as `load_image`.
    """
    return on_white(*fit_layers(load_layers(path), resolution))


def _fit(
    image: npt.NDArray[np.uint8], resolution: int | tuple[int, int], crop: Crop, rng: np.random.Generator | None
) -> npt.NDArray[np.uint8]:
    height, width = parse_resolution(resolution)
    if crop not in ("center", "random"):
        raise ValueError(f'crop: expected "center" or "random", got {crop!r}')
    if rng is None and crop == "random":
        raise ValueError("rng: a numpy Generator is needed for random crops, got None")

    at_y, at_x = rng.random(2) if rng is not None and crop == "random" else (0.5, 0.5)
    source_height, source_width = image.shape[:2]
    if max(height * source_width, width * source_height) == source_height * source_width:
        # Scale 1. An odd excess leaves the extra line after the crop for "center".
        top = min(int(at_y * (source_height - height + 1)), source_height - height)
        left = min(int(at_x * (source_width - width + 1)), source_width - width)
        if crop == "center":
            top, left = (source_height - height) // 2, (source_width - width) // 2
        fitted = image[top : top + height, left : left + width].copy()
    else:
        # Pillow weighs colours with alpha where there is one. The window is cut in source pixels and only it is
        # resampled: the scale is exactly the same along both axes, and a 1 x 50 000 strip does not become a huge
        # intermediate.
        scale = max(height / source_height, width / source_width)
        window_height = min(height / scale, float(source_height))
        window_width = min(width / scale, float(source_width))
        top_edge = at_y * (source_height - window_height)
        left_edge = at_x * (source_width - window_width)
        window = (
            left_edge,
            top_edge,
            min(left_edge + window_width, float(source_width)),
            min(top_edge + window_height, float(source_height)),
        )
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS, box=window)
        fitted = np.array(resized)
    return fitted


def save_png(image: Uint8Image | Image.Image, path: str | Path) -> None:
    """Write a uint8 (H, W, 3) array or a PIL image as PNG: lossless, and never seen half-written under ``path``.

    Raises:
        ValueError: if ``path`` does not end in ".png".
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"path: expected a name that ends in .png, got {path}")
    if not isinstance(image, Image.Image):
        check_image(image)
        image = Image.fromarray(image)
    write_atomic(path, png_bytes(image))


def png_bytes(image: Image.Image) -> bytes:
    """A PIL image as the content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
