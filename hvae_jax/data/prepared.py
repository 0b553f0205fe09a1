"""Data sets that TensorFlow Datasets prepared as array_record, read without TensorFlow."""

import io
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hvae_jax.data import stored
from hvae_jax.data.paths import expand
from hvae_jax.data.stored import Split, StoredArray
from hvae_jax.errors import RunError, data_error

# The split that stands in where a data set has no `test`, as ImageNet's have not.
STAND_IN = "validation"
# Records at a time where many are read: slices are faster than single ones.
SLICE = 1000


class Records:
    """One split's records: dicts of features, the image still encoded.

    Can be pickled; a process opens the files when it first reads.
    """

    def __init__(self, name: str, folder: Path, split: str) -> None:
        """Of the prepared version in `folder`; `name` is that of the config, for errors."""
        self._name, self._folder, self._split = name, folder, split
        self._source: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None}

    def __len__(self) -> int:
        return len(self._open())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of labels 0, 1, …; empty where the data set does not say."""
        label = self._open().dataset_info.features["label"] if self.are_labelled else None
        return tuple(getattr(label, "names", ())) if getattr(label, "num_classes", None) else ()

    @property
    def are_labelled(self) -> bool:
        """Whether there are labels."""
        return "label" in self._open().dataset_info.features

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C).

        Raises:
          RunError: no images, or not all of one shape.
        """
        features = self._open().dataset_info.features
        shape = features["image"].shape if "image" in features else ()
        if len(shape) != 3 or None in shape or np.dtype(features["image"].np_dtype) != np.uint8:
            have = ", ".join(f"{key} {feature.shape} {feature.np_dtype}" for key, feature in features.items())
            needs = "must have a feature `image`, uint8 [H, W, C] of one shape for all"
            raise data_error(self._name, f"{self._folder} {needs}; it has {have}")
        return shape

    def examples(self, places: np.ndarray) -> list[dict[str, Any]]:
        """The records at `places`, in that order.

        Raises:
          RunError: a file is missing or damaged.
        """
        try:
            return self._open().__getitems__(places.tolist())
        except Exception as error:  # each damaged file has its own: OSError, RuntimeError, ParseError, ...
            raise self._error(error) from error

    def decode(self, example: dict[str, Any], out: np.ndarray) -> None:
        """Writes an example's image to `out`, uint8 `[H, W, C]`.

        Raises:
          RunError: it is damaged.
        """
        try:
            with Image.open(io.BytesIO(example["image"])) as image:
                out[:] = np.asarray(image, np.uint8).reshape(out.shape)
        except Exception as error:
            raise self._error(error) from error

    def _open(self) -> Any:
        if self._source is None:
            import tensorflow_datasets as tfds  # here: slow to import, and most sources do without

            try:
                builder: Any = tfds.builder_from_directory(self._folder)
                # Images are decoded by us: TFDS's way takes half as long again.
                self._source = builder.as_data_source(
                    self._split, decoders={"image": tfds.decode.SkipDecoding()}
                )
            except Exception as error:
                raise self._error(error) from error
        return self._source

    def _error(self, error: Exception) -> RunError:
        command = prepare_command(self._name, data_dir_of(self._name, self._folder))
        return data_error(self._name, f"cannot read {self._folder} ({error}); move it away, then: {command}")


class RecordImages(StoredArray):
    """The images of a prepared split, uint8 `[N, H, W, C]`."""

    def __init__(self, records: Records, num_workers: int, index: np.ndarray | None = None) -> None:
        super().__init__((len(records), *records.image_shape), np.uint8, num_workers, index)
        self._records = records

    def read(self, places: np.ndarray) -> np.ndarray:
        """See `StoredArray`."""
        images = np.empty((len(places), *self.shape[1:]), self.dtype)
        for example, image in zip(self._records.examples(places), images, strict=True):
            self._records.decode(example, image)
        return images

    def select(self, index: np.ndarray) -> "RecordImages":
        """See `StoredArray`."""
        return RecordImages(self._records, self.num_workers, self._index[index])

    def read_all(self) -> tuple[np.ndarray, np.ndarray]:
        """Images and labels in one pass."""
        images, labels = stored.empty(self.shape, self.dtype), np.empty(len(self), np.int32)
        for start in range(0, len(self), SLICE):
            places = self._index[start : start + SLICE]
            for i, example in enumerate(self._records.examples(places), start=start):
                self._records.decode(example, images[i])
                labels[i] = example.get("label", 0)
        return images, labels


class RecordLabels(StoredArray):
    """The labels of a prepared split, int32 `[N]`; 0 where it has none."""

    def __init__(self, records: Records, num_workers: int, index: np.ndarray | None = None) -> None:
        super().__init__((len(records),), np.int32, num_workers, index)
        self._records = records

    def read(self, places: np.ndarray) -> np.ndarray:
        """See `StoredArray`."""
        examples = self._records.examples(places)
        return np.asarray([example.get("label", 0) for example in examples], self.dtype)

    def select(self, index: np.ndarray) -> "RecordLabels":
        """See `StoredArray`."""
        return RecordLabels(self._records, self.num_workers, self._index[index])


def open_splits(name: str, data_dir: str, num_workers: int) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits `train` and `test` of a prepared data set, and `valid` where it has one of its own.

    Args:
      name: as in a config.
      data_dir: where it lies; "" is TFDS's default.
      num_workers: processes to read images with where they are streamed.

    Returns:
      The splits, not read but for an image each, and the names of the classes where it says them.

    Raises:
      RunError: it is not prepared, or cannot be read.
    """
    folder = prepared_folder(name, data_dir)
    have = _split_names(name, folder)
    wanted = {"train": "train", "test": "test" if "test" in have else STAND_IN}
    if {"test", STAND_IN} <= set(have):
        wanted["valid"] = STAND_IN
    splits, class_names = {}, ()
    for split, own in wanted.items():
        records = Records(name, folder, own)
        images = RecordImages(records, num_workers)
        images[:1]  # a missing or damaged file is said now
        labels = RecordLabels(records, num_workers)
        splits[split] = Split(images, labels if records.are_labelled else np.zeros(len(images), np.int32))
        class_names = records.class_names
    return splits, class_names


def prepared_folder(name: str, data_dir: str) -> Path:
    """DATA_DIR/NAME/VERSION of the newest version that can be read.

    Raises:
      RunError: there is none.
    """
    # TFDS answers a missing one with talk about file formats or, offline, after minutes of retries.
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    parent = expand(data_dir or default, data_dir, "data_dir").absolute()
    try:
        if parent.exists() and not parent.is_dir():
            raise data_error(data_dir, f"{parent} is a file; name a folder", "data_dir")
        # A preparation that was cut short leaves incomplete.XXXXXX_VERSION behind.
        infos = (parent / tfds_name(name)).glob("*/dataset_info.json")
        folders = [info.parent for info in infos if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)]
        readable = [f for f in folders if b'"array_record"' in (f / "dataset_info.json").read_bytes()]
    except (OSError, ValueError) as error:  # ValueError: no path can be that
        problem = (
            f"cannot look into {parent} ({getattr(error, 'strerror', error)}); name a folder that can be read"
        )
        raise data_error(data_dir, problem, "data_dir") from error
    if readable:
        return max(readable, key=lambda folder: [int(part) for part in folder.name.split(".")])
    problem = f"is not prepared in {parent} (config.data.data_dir={data_dir!r})"
    if folders:
        problem = f"{folders[0]} is not in the array_record format; move it away"
    raise data_error(name, f"{problem}. Prepare it once: {prepare_command(name, parent)}")


def prepare_command(name: str, data_dir: Path) -> str:
    """What a user types to prepare a data set."""
    # Not `tfds build`: that imports apache-beam, which none of the named data sets uses.
    folder = json.dumps(str(data_dir), ensure_ascii=False)
    builder = f'tfds.builder("{tfds_name(name)}", data_dir={folder}, file_format="array_record")'
    code = f"import tensorflow_datasets as tfds; {builder}.download_and_prepare()"
    return f'pip install -e ".[prepare]" && python -c {shlex.quote(code)}'


def tfds_name(name: str) -> str:
    """TFDS's own name, with its config where it has one: `tfds:imagenet_resized/64x64` without `tfds:`."""
    return name.removeprefix("tfds:")


def data_dir_of(name: str, folder: Path) -> Path:
    """DATA_DIR of DATA_DIR/NAME/VERSION."""
    return folder.parents[tfds_name(name).count("/") + 1]


def _split_names(name: str, folder: Path) -> list[str]:
    try:
        info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
        return [split["name"] for split in info["splits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        command = prepare_command(name, data_dir_of(name, folder))
        raise data_error(name, f"cannot read {folder} ({error}); move it away, then: {command}") from error
