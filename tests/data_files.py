"""Small data sets, and the files that they come in."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hvae_jax.data import DataConfig, Split
from hvae_jax.errors import RunError

IDX_FILES = {
    "train_images": "train-images-idx3-ubyte",
    "train_labels": "train-labels-idx1-ubyte",
    "test_images": "t10k-images-idx3-ubyte",
    "test_labels": "t10k-labels-idx1-ubyte",
}


def make_config(name: str, **fields: Any) -> DataConfig:
    values: dict[str, Any] = {
        "data_dir": "",
        "binarize": "none",
        "num_valid": 0,
        "split_seed": 0,
        "streaming": "never",
        "num_workers": 0,
    }
    return DataConfig(name, **(values | fields))


def make_arrays(
    num_train: int = 7, num_test: int = 3, shape: tuple[int, ...] = (8, 9), seed: int = 0
) -> dict[str, np.ndarray]:
    """Random images, so that no two are alike, and labels of three classes, the last one in train."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for split, num_images in (("train", num_train), ("test", num_test)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (num_images, *shape), np.uint8)
        arrays[f"{split}_labels"] = np.arange(num_images) % 3
    return arrays


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    np.savez(path, allow_pickle=True, **arrays)


def assert_split(split: Split, images: np.ndarray, labels: np.ndarray) -> None:
    assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(split.images, images, strict=False)
    np.testing.assert_array_equal(split.labels, labels)


def pairs(split: Split) -> list[tuple[bytes, int]]:
    """Images with their labels, in an order that does not depend on the split's."""
    return sorted((image.tobytes(), int(label)) for image, label in zip(*split, strict=True))


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(RunError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def write_idx(folder: Path, arrays: dict[str, np.ndarray], zipped: bool) -> None:
    for key, file in IDX_FILES.items():
        array = arrays[key].astype(np.uint8)
        content = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
        path = folder / (f"{file}.gz" if zipped else file)
        path.write_bytes(gzip.compress(content) if zipped else content)
