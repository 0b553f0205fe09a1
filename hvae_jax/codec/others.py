"""What other lossless coders make of the same images, headers counted once."""

import io
import lzma
import math

import numpy as np
from PIL import Image, features


def bits_of_others(images: np.ndarray) -> dict[str, int | None]:
    """Bits of all images together: PNG and WebP of one picture that holds them all, xz of the raw pixels.

    Args:
      images: uint8 `[N, H, W, C]`; of black and white ones a pixel is one bit, to PNG and xz as well.

    Returns:
      `png`, `webp` and `xz`; None where Pillow lacks it, or a picture is too large for it.
    """
    is_binary = images.shape[-1] == 1 and bool(np.isin(images, (0, 255)).all())
    picture = _picture(images, is_binary)
    raw = np.packbits(images > 0) if is_binary else images
    return {
        "png": _bits(picture, "PNG", optimize=True),
        "webp": _bits(picture.convert("RGB"), "WEBP", lossless=True, quality=100, method=6)
        if features.check("webp")
        else None,
        "xz": 8 * len(lzma.compress(raw.tobytes(), preset=9 | lzma.PRESET_EXTREME)),
    }


def _picture(images: np.ndarray, is_binary: bool) -> Image.Image:
    """All images side by side, as square as can be; places that are left over stay black."""
    num, height, width, channels = images.shape
    columns = max(1, round(math.sqrt(num * height / width)))
    rows = -(-num // columns)
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:num] = images
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    picture = Image.fromarray(sheet[..., 0] if channels == 1 else sheet)
    return picture.convert("1", dither=Image.Dither.NONE) if is_binary else picture


def _bits(picture: Image.Image, kind: str, **options: bool | int) -> int | None:
    file = io.BytesIO()
    try:
        picture.save(file, kind, **options)
    except (OSError, ValueError):  # WebP takes at most 16,383 pixels a side
        return None
    return 8 * file.tell()
