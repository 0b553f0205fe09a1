"""Rows of images or labels that stay where they are until they are asked for.

To whoever reads them they are an array: they have a shape, a length and bytes, take indices and slices,
and `np.asarray` reads them all.
"""

import abc
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# An array or a `StoredArray`. Not a protocol of what both can do: most callers hold arrays, and use them so.
Rows = Any
# Bytes; that of XLA's buffers.
ALIGNMENT = 64


class StoredArray(abc.ABC):
    """Rows `[N, ...]` of a longer array that is not on the devices, maybe not even in memory.

    Attributes:
      shape: (N, ...).
      dtype: of the rows.
      num_workers: processes that it is worth to read with; 0 where reading is but a copy.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: Any, num_workers: int, index: np.ndarray | None
    ) -> None:
        """Rows `index` of the longer array, or all `shape[0]` of it."""
        self._index = np.arange(shape[0]) if index is None else index
        self.shape, self.dtype, self.num_workers = (
            (len(self._index), *shape[1:]),
            np.dtype(dtype),
            num_workers,
        )

    @abc.abstractmethod
    def read(self, places: np.ndarray) -> np.ndarray:
        """The rows at `places` of the longer array, in that order."""

    @abc.abstractmethod
    def select(self, index: np.ndarray) -> "StoredArray":
        """Rows `index` of these, still not read."""

    @property
    def nbytes(self) -> int:
        """Of all rows in memory."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> np.ndarray:
        places = np.asarray(self._index[key])
        return self.read(places.ravel()).reshape((*places.shape, *self.shape[1:]))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # what is read is new
        return np.asarray(self.read(self._index), dtype)


class HostArray(StoredArray):
    """An array in the host's memory that is too large for the devices."""

    def __init__(self, array: np.ndarray, index: np.ndarray | None = None) -> None:
        super().__init__(array.shape, array.dtype, 0, index)
        self._array = array

    def read(self, places: np.ndarray) -> np.ndarray:
        """See `StoredArray`."""
        return self._array[places]

    def select(self, index: np.ndarray) -> "HostArray":
        """See `StoredArray`."""
        return HostArray(self._array, self._index[index])


def select(rows: Any, index: np.ndarray) -> Any:
    """Rows `index` of an array, copied, or of a stored one without reading them."""
    if isinstance(rows, StoredArray):
        return rows.select(index)
    if len(index) and not 0 <= index.min() <= index.max() < len(rows):
        raise IndexError(f"{index.min()} to {index.max()} of {len(rows)} rows")
    out = empty((len(index), *rows.shape[1:]), rows.dtype)
    return np.take(rows, index, axis=0, out=out, mode="clip")  # "raise" would take a second copy


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """`np.empty`, from an address where JAX's CPU devices read the array itself instead of a copy each."""
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.empty(num_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + num_bytes].view(dtype).reshape(shape)


def concatenate(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Along the first axis, lying as the arrays of `empty` do."""
    first = arrays[0]
    out = empty((sum(map(len, arrays)), *first.shape[1:]), first.dtype)
    return np.concatenate(arrays, out=out)


def aligned(array: np.ndarray) -> np.ndarray:
    """The array, copied where it does not lie as those of `empty` do."""
    if array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = empty(array.shape, array.dtype)
    copy[...] = array
    return copy


class FileMarks(NamedTuple):
    """Of a split that is made of many files, what tells whether they are the same: two SHA-256.

    Attributes:
      names: of their names, in order.
      sizes: of their sizes in bytes.
    """

    names: str
    sizes: str


class Split(NamedTuple):
    """Images and their labels: arrays, or where they are streamed a `StoredArray`.

    Attributes:
      images: uint8 `[N, H, W, C]`, 0 to 255.
      labels: int32 `[N]`, from 0; all 0 where the source has none.
    """

    images: Rows
    labels: Rows
