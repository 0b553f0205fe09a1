"""Whether uint8 images are bytes from 0 to 255, as all that follows takes them to be."""

from collections.abc import Iterator, Mapping

import numpy as np

from hvae_jax.data.fingerprints import is_in_memory, sampled_places
from hvae_jax.data.stored import Rows, Split
from hvae_jax.errors import data_error

# The largest value of images that surely are bytes, and the smallest that rounds to 1.
BRIGHT = 128
CHUNK = 1024
ANYWAY = "config.data.check_values=False takes them as they are"


def to_bytes(x: np.ndarray) -> np.ndarray:
    """Values, clipped to [0, 1], as 0 … 255, rounded; uint8 of the same shape."""
    return np.round(np.clip(x, 0.0, 1.0) * 255).astype(np.uint8)


def check(name: str, splits: Mapping[str, Split], binarize: str) -> tuple[str, ...]:
    """Refuses images that would be all but black, masks of 0 and 1 for example.

    Of images on disk the sample is looked at that their fingerprint is made of.

    Args:
      name: the data set's in the config, for errors.
      splits: by name, uint8 `[N, H, W, C]`, none empty.
      binarize: as in the config.

    Returns:
      A notice where the largest value of the training images is below `BRIGHT`.

    Raises:
      RunError: a split's largest value is 1 or less, or rounding leaves each training image constant.
    """
    highs = {split: _high(found.images) for split, found in splits.items()}
    for split, high in highs.items():
        if high <= 1:
            problem = f"the largest value of the {split} images is {high}, and pixels are taken as 0 to 255"
            raise data_error(name, f"{problem}: multiply them by 255; {ANYWAY}")
    high = highs["train"]
    scale, why = f"multiply them by {255 // high}", f"no value is above {high}"
    if high >= BRIGHT:
        scale, why = "scale them", "none has values on both sides of it"
    if binarize == "round" and not any(map(_varies, _chunks(splits["train"].images))):
        problem = f"rounding at 127 leaves every training image constant: {why}"
        raise data_error(name, f"{problem}; if pixels are not 0 to 255, {scale}; {ANYWAY}")
    if high >= BRIGHT:
        return ()
    return (f"the largest value of the training images is {high} of 255; if that is white, {scale}",)


def _high(images: Rows) -> int:
    """The largest value; looking ends where it is at least `BRIGHT`."""
    high = 0
    for chunk in _chunks(images):
        high = max(high, int(chunk.max()))
        if high >= BRIGHT:
            break
    return high


def _varies(chunk: np.ndarray) -> bool:
    """Whether any image is not constant after rounding."""
    is_white = (chunk > 127).reshape(len(chunk), -1)
    return bool(np.any(is_white != is_white[:, :1]))


def _chunks(images: Rows) -> Iterator[np.ndarray]:
    if is_in_memory(images):
        for start in range(0, len(images), CHUNK):
            yield images[start : start + CHUNK]
    else:
        yield images[sampled_places(len(images))]
