"""Labels as the world stores them → numbers from 0."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hvae_jax.errors import data_error

# Names or numbers that a notice lists.
NUM_LISTED = 5
# Of whole numbers that are stored as floats.
MOST = 2**53
WANTED = "labels must be integers, 0 or more, or strings"


class Named(NamedTuple):
    """An array and what it is called where it comes from."""

    key: str
    array: np.ndarray


def to_numbers(
    name: str, labels: Mapping[str, Named], num_images: Mapping[str, int], notices: list[str]
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels numbered alike in all splits.

    Args:
      name: the data set's in the config, for errors.
      labels: by split, see the table in `data`.
      num_images: of each split.
      notices: to which what was changed is added.

    Returns:
      By split int32 `[N]`, and the names of the classes 0, 1, … where these had others.

    Raises:
      RunError: a type, shape or value that is not accepted.
    """
    columns = {split: _to_column(name, found, num_images[split]) for split, found in labels.items()}
    keys = listed([key for key, _ in columns.values()])
    kinds = sorted({_kind_of(array) for _, array in columns.values()})
    if len(kinds) > 1:
        problem = f"labels must be of one kind in all splits; {keys} are {' and '.join(kinds)}"
        raise data_error(name, problem)
    arrays = {split: array for split, (_, array) in columns.items()}
    if kinds[0].startswith("one-hot"):
        notices.append(f"{keys}: {kinds[0]} became numbers from 0")
        return {split: array.argmax(1).astype(np.int32) for split, array in arrays.items()}, ()
    found = np.unique(np.concatenate([np.unique(array) for array in arrays.values()]))
    # Of ids with a few gaps the numbers stay; no table of classes may be as long as an id is large.
    if kinds[0] == "integers" and int(found[-1]) < 2 * len(found):
        return {split: array.astype(np.int32) for split, array in arrays.items()}, ()
    class_names = tuple(str(entry) for entry in found)
    shown = [repr(entry) for entry in class_names] if kinds[0] == "strings" else class_names
    notices.append(f"{keys}: {listed(shown)} became 0 to {len(found) - 1}")
    numbers = {split: np.searchsorted(found, array).astype(np.int32) for split, array in arrays.items()}
    return numbers, class_names


def listed(entries: Sequence[str]) -> str:
    """Separated by commas, the middle left out where there are many."""
    if len(entries) > NUM_LISTED:
        entries = [*entries[: NUM_LISTED - 2], "…", entries[-1]]
    return ", ".join(entries)


def _kind_of(array: np.ndarray) -> str:
    if array.ndim == 2:
        return f"one-hot of {array.shape[1]}"
    return "strings" if array.dtype.kind == "U" else "integers"


def _to_column(name: str, found: Named, num_images: int) -> Named:
    """Labels `[N]` of integers or strings, or one-hot rows `[N, M]` of bool."""
    key, array = found
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim not in (1, 2) or len(array) != num_images:
        wanted = f"[{num_images}], one label per image, or one-hot rows [{num_images}, M]"
        raise data_error(name, f"{key} has shape {list(found.array.shape)}, must be {wanted}")
    kind = array.dtype.kind
    if array.ndim == 2:
        if kind not in "buif" or not np.all((array == 0) | (array == 1)) or not np.all(array.sum(1) == 1):
            what = f"{key} {list(array.shape)} ({array.dtype}) is not one-hot"
            raise data_error(name, f"{what}: each row must hold one 1, else 0; or give [{num_images}] labels")
        return Named(key, array.astype(bool))
    if kind == "S":
        try:
            array = np.char.decode(array, "utf-8")
        except UnicodeDecodeError as error:
            raise data_error(name, f"{key} holds bytes that are not UTF-8 ({error.reason})") from error
    elif kind == "b" or (kind == "f" and np.all(np.abs(array) < MOST) and np.all(array == np.rint(array))):
        array = array.astype(np.int64)
    elif kind not in "uiU":
        what = "holds what is not a whole number" if kind == "f" else "is of no type that labels have"
        raise data_error(name, f"{key} ({array.dtype}) {what}; {WANTED}")
    if array.dtype.kind == "i" and (lowest := array.astype(np.int64).min()) < 0:
        raise data_error(name, f"{key} holds {lowest}; {WANTED}")
    return Named(key, array)
