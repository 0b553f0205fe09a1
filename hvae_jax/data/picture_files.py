"""One PNG or JPEG file: what its first bytes say, and its pixels as they are seen.

A file is known by its content. Of several frames the first one counts, and colour profiles are not applied.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg")
_FORMATS = ("PNG", "JPEG")
_GREY = ("1", "L", "LA", "La", "I", "I;16", "I;16B")
_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_WIDE = ("I", "I;16", "I;16B")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LIES = (5, 6, 7, 8)


class UnreadableError(Exception):
    """A file that is damaged, of another kind, or not to be opened; the message says which."""


class Header(NamedTuple):
    """What a file says before its pixels.

    Attributes:
      height, width: in pixels, turned as its EXIF data say.
      is_grey: stored without colour; a palette counts as grey where all of it is.
      has_alpha: an alpha channel, or a colour that is transparent.
      is_wide: 16 bits a channel.
      is_cmyk: stored as printing colours.
      is_turned: its EXIF data turn or mirror it.
      num_bytes: of the file.
    """

    height: int
    width: int
    is_grey: bool
    has_alpha: bool
    is_wide: bool
    is_cmyk: bool
    is_turned: bool
    num_bytes: int


def read_header(path: str) -> Header:
    """Reads no pixels.

    Raises:
      UnreadableError: it cannot be.
    """
    with _open(path) as (image, num_bytes):
        orientation = _orientation(image)
        width, height = image.size
        if orientation in _LIES:
            width, height = height, width
        return Header(
            height,
            width,
            is_grey=image.mode in _GREY or (image.mode in ("P", "PA") and _is_grey_palette(image)),
            has_alpha=_has_alpha(image),
            is_wide=image.mode in _WIDE or any("16" in str(tile[3]) for tile in image.tile),
            is_cmyk=image.mode == "CMYK",
            is_turned=orientation in _TURNS,
            num_bytes=num_bytes,
        )


def read_pixels(path: str, channels: int, side: int | None = None) -> np.ndarray:
    """Its pixels as a viewer shows them, over white where they are transparent.

    Grey becomes colour of equal channels where colour is asked for. Of 16 bits the upper 8 are kept.

    Args:
      path: of the file.
      channels: 1 or 3; 1 only of files that are grey by their header.
      side: cuts out the square in the middle (of an odd rest, one pixel less at the top and left than at the
        bottom and right) and scales it with Pillow's bicubic filter, which averages where it makes smaller.

    Returns:
      uint8 `[H, W, channels]`, `[side, side, channels]` with a side.

    Raises:
      UnreadableError: it is damaged.
    """
    with _open(path) as (image, _):
        turn = _TURNS.get(_orientation(image))
        opaque = _to_opaque(image).convert("L" if channels == 1 else "RGB")
        if turn is not None:
            opaque = opaque.transpose(turn)
        if side is not None:
            width, height = opaque.size
            square = min(width, height)
            left, top = (width - square) // 2, (height - square) // 2
            opaque = opaque.crop((left, top, left + square, top + square))
            opaque = opaque.resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(opaque, np.uint8).reshape(opaque.height, opaque.width, channels)


@contextmanager
def _open(path: str) -> Iterator[tuple[Any, int]]:
    """The file's image, with all that goes wrong in the block as `UnreadableError`, and its size in bytes."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UnreadableError("it is no file")  # a pipe would be waited for
        with open(path, "rb") as file, Image.open(file, formats=_FORMATS) as image:
            yield image, file.seek(0, 2)
    except UnreadableError:
        raise
    except UnidentifiedImageError as error:  # its message names an object in memory
        raise UnreadableError("it is no PNG or JPEG file") from error
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from error
    except Exception as error:  # what is damaged raises anything: SyntaxError, ValueError, struct.error, …
        raise UnreadableError(str(error) or type(error).__name__) from error


def _orientation(image: Any) -> int:
    """1, upright, to 8; known before the pixels are read, so a PNG's that follows them is not seen."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as viewers do: the picture counts, not what is said about it
        return 1


def _has_alpha(image: Any) -> bool:
    return image.mode in _ALPHA or "transparency" in image.info


def _is_grey_palette(image: Any) -> bool:
    colours = np.frombuffer(bytes(image.palette.palette), np.uint8)
    if image.palette.rawmode not in (None, "RGB"):
        return False
    colours = colours[: len(colours) // 3 * 3].reshape(-1, 3)
    return bool(np.all(colours == colours[:, :1]))


def _to_opaque(image: Any) -> Any:
    """Of 8 bits, laid over white."""
    if image.mode in _WIDE:
        values = np.asarray(image)
        upper = (values >> 8).astype(np.uint8)
        if (transparent := image.info.get("transparency")) is not None:
            upper[values == transparent] = 255
        return Image.fromarray(upper)
    if not _has_alpha(image):
        return image
    over = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)
