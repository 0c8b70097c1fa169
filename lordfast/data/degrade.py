"""Low-resolution twins of pictures: blurred, scaled down, noised, compressed, in this order.

The usual model of super-resolution, low = JPEG(scale(blur(high)) + noise); all but the scaling may be left out.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter

from lordfast.data.images import Uint8Image, check_image


def crop_to_multiple(image: Uint8Image, factor: int) -> Uint8Image:
    """The largest centre crop whose sides are multiples of `factor`; of an odd excess the larger half goes at the end.

    Raises:
        ValueError: a side is shorter than `factor`.
    """
    check_image(image)
    height, width = (side // factor * factor for side in image.shape[:2])
    if not height or not width:
        raise ValueError(f"factor: an image of {image.shape[1]} x {image.shape[0]} has no {factor} pixels a side")
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width].copy()


def jpeg_roundtrip(image: Uint8Image, quality: int, subsampling: int = 2) -> Uint8Image:
    """What Pillow reads back from `image` (H, W, 3) saved as JPEG.

    Args:
        subsampling: Pillow's: 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0.
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return np.array(Image.open(buffer).convert("RGB"))


def degrade(
    image: Uint8Image,
    factor: int,
    *,
    blur: float = 0.0,
    noise: float = 0.0,
    jpeg: int | None = None,
    rng: np.random.Generator | None = None,
) -> Uint8Image:
    """The low-resolution twin of a uint8 image (H, W, 3) whose sides are multiples of `factor`.

    Args:
        factor: by which the sides shrink; antialiased bicubic.
        blur: standard deviation of a Gaussian blur, in pixels of the large image.
        noise: standard deviation of Gaussian noise, independent in every value, in grey levels.
        jpeg: quality, 1 to 95, of a JPEG that the small image goes through.
        rng: needed by `noise`.

    Returns:
        uint8 (H / factor, W / factor, 3).
    """
    check_image(image)
    check_degradation(factor, blur, noise, jpeg)
    height, width = image.shape[:2]
    if height % factor or width % factor:
        raise ValueError(f"image: expected sides that are multiples of {factor}, got {width} x {height}")
    if noise and rng is None:
        raise ValueError("rng: a numpy Generator is needed for noise, got None")
    picture = Image.fromarray(image)
    if blur:
        picture = picture.filter(ImageFilter.GaussianBlur(blur))
    small = np.array(picture.resize((width // factor, height // factor), Image.Resampling.BICUBIC))
    if noise and rng is not None:
        small = np.rint(small + rng.normal(0, noise, small.shape)).clip(0, 255).astype(np.uint8)
    if jpeg is not None:
        small = jpeg_roundtrip(small, jpeg)
    return small


def check_degradation(factor: int, blur: float, noise: float, jpeg: int | None) -> None:
    """Raise a ValueError for numbers that `degrade` can't take."""
    if factor < 2:
        raise ValueError(f"factor: expected at least 2, got {factor}")
    for name, value in (("blur", blur), ("noise", noise)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name}: expected 0 or more, got {value}")
    if jpeg is not None and not 1 <= jpeg <= 95:
        raise ValueError(f"jpeg: expected a quality from 1 to 95, got {jpeg}")
