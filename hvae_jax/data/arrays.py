"""Images and labels as the world stores them → uint8 images in [0, 255] and labels from 0.

Nothing is guessed: what can be read in one way only is read, and what it became is said in a notice; all
else is refused in one line. `data` lists what is accepted.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hvae_jax.data.labels import Named, listed, to_numbers
from hvae_jax.data.stored import FileMarks, Split
from hvae_jax.errors import data_error

CHANNELS = (1, 2, 3, 4)
# Images at a time where a whole split is looked through or converted.
CHUNK = 4096


class Source(NamedTuple):
    """What was found under a name.

    Attributes:
      splits: `train`, `test` and perhaps `valid`.
      class_names: of labels 0, 1, …; empty where the labels are numbers that say it themselves.
      notices: what was changed on the way, one line each.
      marks: of splits that are made of many files.
    """

    splits: Mapping[str, Split]
    class_names: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    marks: Mapping[str, FileMarks] | None = None


def to_source(name: str, images: Mapping[str, Named], labels: Mapping[str, Named]) -> Source:
    """Splits of arrays from a user's files.

    Args:
      name: the data set's in the config, for errors.
      images: by split, see the table in `data`.
      labels: of the same splits, or of none.

    Raises:
      RunError: a type, shape or value that is not accepted.
    """
    notices: list[str] = []
    pixels = _to_bytes(name, _with_channels(name, images, notices), notices)
    if not labels:
        zeros = {split: Split(array, np.zeros(len(array), np.int32)) for split, array in pixels.items()}
        return Source(zeros, (), tuple(notices))
    num_images = {split: len(array) for split, array in pixels.items()}
    numbers, class_names = to_numbers(name, labels, num_images, notices)
    splits = {split: Split(array, numbers[split]) for split, array in pixels.items()}
    return Source(splits, class_names, tuple(notices))


def _with_channels(name: str, images: Mapping[str, Named], notices: list[str]) -> dict[str, Named]:
    """Of shape `[N, H, W, C]`."""
    found, moved = {}, []
    for split, (key, array) in images.items():
        shape = (*array.shape, 1) if array.ndim == 3 else array.shape
        if len(shape) == 4 and shape[-1] not in CHANNELS and shape[1] in CHANNELS:
            array = np.ascontiguousarray(np.moveaxis(array, 1, -1))
            shape = array.shape
            moved.append(key)
        if len(shape) != 4 or shape[-1] not in CHANNELS or 0 in shape:
            wanted = "[N, H, W] or [N, H, W, C] with C 1 to 4, and not empty"
            hint = "; reshape flat images to [N, H, W]" if len(shape) == 2 else ""
            raise data_error(name, f"{key} has shape {list(array.shape)}, must be {wanted}{hint}")
        found[split] = Named(key, array.reshape(shape))
    if moved:
        notices.append(f"{listed(moved)}: channels first, [N, C, H, W], became [N, H, W, C]")
    return found


class _Range(NamedTuple):
    """What an array's values are."""

    low: float
    high: float
    are_whole: bool


def _to_bytes(name: str, images: Mapping[str, Named], notices: list[str]) -> dict[str, np.ndarray]:
    """Of type uint8."""
    kinds = {split: found.array.dtype.kind for split, found in images.items()}
    for split, (key, array) in images.items():
        if kinds[split] not in "buif":
            raise data_error(name, f"{key} is {array.dtype}, must be uint8, or other numbers from 0 to 255")
    ranges = {
        split: _range_of(name, *found) for split, found in images.items() if found.array.dtype != np.uint8
    }
    # One rule for all splits: pixels of 1 in one that is dark must not become 255 where others reach it.
    are_unit = all(ranges[split].high <= 1 for split, kind in kinds.items() if kind == "f")
    converted: dict[str, np.ndarray] = {}
    changed: dict[str, list[str]] = {}
    for split, (key, array) in images.items():
        if array.dtype == np.uint8:
            converted[split] = array
            continue
        low, high, are_whole = ranges[split]
        is_unit = kinds[split] == "b" or (kinds[split] == "f" and are_unit)
        if low < 0 or high > 255 or not (is_unit or are_whole):
            wanted = "must be whole numbers from 0 to 255"
            if kinds[split] == "f":
                wanted += ", or all splits in [0, 1]"
            raise data_error(
                name, f"{key} is {array.dtype} with values from {low:.6g} to {high:.6g}, {wanted}"
            )
        converted[split] = _scaled(array, 255 if is_unit else 1)
        what = "False and True became 0 and 255"
        if kinds[split] == "f":
            what = "values in [0, 1] were multiplied by 255 and rounded"
            what = what if is_unit else "whole numbers from 0 to 255, kept as they are"
        if kinds[split] in "bf":
            changed.setdefault(f"{array.dtype}, {what}", []).append(key)
    notices += [f"{listed(keys)}: {what}" for what, keys in changed.items()]
    return converted


def _range_of(name: str, key: str, array: np.ndarray) -> _Range:
    lows, highs, are_whole = [], [], True
    for start in range(0, len(array), CHUNK):
        chunk = array[start : start + CHUNK]
        if array.dtype.kind == "f" and not np.isfinite(chunk).all():
            raise data_error(name, f"{key} ({array.dtype}) holds NaN or infinity; clean the images first")
        lows.append(chunk.min())
        highs.append(chunk.max())
        are_whole = are_whole and (array.dtype.kind != "f" or bool(np.all(chunk == np.rint(chunk))))
    return _Range(float(min(lows)), float(max(highs)), are_whole)


def _scaled(array: np.ndarray, factor: int) -> np.ndarray:
    result = np.empty(array.shape, np.uint8)
    for start in range(0, len(array), CHUNK):
        chunk = array[start : start + CHUNK]
        if array.dtype.kind == "f":
            chunk = np.rint(chunk.astype(np.float64) * factor)
        result[start : start + CHUNK] = chunk if array.dtype.kind != "b" else chunk * np.uint8(factor)
    return result
