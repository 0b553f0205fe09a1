"""Data sets by name, as uint8 images, and what turns them into a model's input.

`load(config)` understands `digits` (scikit-learn, nothing to download), `idx:FOLDER` (MNIST's own
file format), `npz:FILE` (your arrays) and, once prepared, `mnist`, `fashion_mnist`, `svhn_cropped`,
`cifar10` and `tfds:NAME` of TensorFlow Datasets, which are read without TensorFlow. A split that is too
large to keep on the devices is streamed to them: it comes as a `stored.StoredArray`.
"""

import dataclasses
import difflib
import gzip
import hashlib
import math
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax import prepared, stored
from hvae_jax.prepared import RecordImages, data_error
from hvae_jax.stored import HostArray, Rows

BINARIZE = ("none", "round", "sample")
TFDS_NAMES = ("mnist", "fashion_mnist", "svhn_cropped", "cifar10")
KNOWN_NAMES = ("digits", *TFDS_NAMES, "tfds:NAME", "idx:FOLDER", "npz:FILE")
STREAMING = ("auto", "always", "never")
# Bytes of a split beyond which "auto" streams it: every device would keep a copy.
STREAM_BYTES = 2**30


class Split(NamedTuple):
    """Images and their labels: arrays, or where they are streamed a `StoredArray`.

    Attributes:
      images: uint8 `[N, H, W, C]`, 0 to 255.
      labels: int32 `[N]`, from 0; all 0 where the source has none.
    """

    images: Rows
    labels: Rows


class Dataset(NamedTuple):
    """Three disjoint splits of images of one shape; `valid` can be empty."""

    name: str
    train: Split
    valid: Split
    test: Split

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        _, height, width, channels = self.train.images.shape
        return height, width, channels

    @property
    def title(self) -> str:
        """The name as figures say it: of a folder or file its own name alone, without the way there."""
        kind, _, rest = self.name.partition(":")
        return Path(rest).stem if kind in ("idx", "npz") else rest or kind

    @property
    def num_classes(self) -> int:
        """The largest training label + 1."""
        return int(np.asarray(self.train.labels).max()) + 1

    def describe(self) -> dict[str, Any]:
        """What the data are, ready for JSON."""
        splits = {"train": self.train, "valid": self.valid, "test": self.test}
        return {
            "name": self.name,
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "splits": {
                name: {"num_images": len(split.images), "fingerprint": _fingerprint(split)}
                for name, split in splits.items()
            },
        }


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The fields of `config.data`; a value that is not allowed raises RunError.

    Attributes:
      name: one of `KNOWN_NAMES`, with your path for FOLDER or FILE.
      data_dir: where TFDS data sets lie; "" is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      binarize: one of `BINARIZE`, see `make_preprocess`.
      num_valid: images set aside from the training split for validation, 0 or more.
      split_seed: chooses those images.
      streaming: which splits come to the devices batch by batch instead of staying there: those of more than
        `STREAM_BYTES` ("auto"), all ("always") or none ("never"). The numbers are the same.
      num_workers: processes that read and decode what is streamed from disk; 0 reads in threads.
    """

    name: str
    data_dir: str
    binarize: str
    num_valid: int
    split_seed: int
    streaming: str
    num_workers: int

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not isinstance(self.data_dir, str) or "://" in self.data_dir:
            raise data_error(self.data_dir, 'must be a folder on this machine, or ""', "data_dir")
        make_preprocess(self.binarize)  # which knows what is allowed
        if self.streaming not in STREAMING:
            raise data_error(self.streaming, f"must be one of {', '.join(STREAMING)}", "streaming")
        for field in ("num_valid", "split_seed", "num_workers"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise data_error(value, "must be an integer, 0 or more", field)


def load(config: DataConfig) -> Dataset:
    """Reads a data set, except what is streamed, and sets `num_valid` training images aside.

    The test split is the source's own and never depends on `split_seed`. Validation images are the
    first `num_valid` of a permutation seeded by it, so a smaller validation set is part of a larger
    one; the other images stay in their order.

    Returns:
      The data set, in uint8.

    Raises:
      RunError: files are missing, damaged or of another kind, or no image is left to train on.
    """
    kind = config.name.partition(":")[0]
    read = {"digits": _read_digits, "idx": _read_idx, "npz": _read_npz}.get(kind, _open_prepared)
    splits = read(config)
    largest = 0 if "valid" in splits else len(splits["train"].images) - 1
    if config.num_valid > largest:
        why = "it has its own valid_images" if "valid" in splits else "an image must be left to train on"
        raise data_error(config.num_valid, f"must be at most {largest} for {config.name}, {why}", "num_valid")
    train, aside = _set_aside(splits["train"], config.num_valid, config.split_seed)
    valid, test = splits.get("valid", aside), splits["test"]
    shapes = [list(split.images.shape[1:]) for split in (train, valid, test)]
    if shapes != [shapes[0]] * 3:
        raise data_error(config.name, f"images of train, valid and test have shapes {shapes}, must be alike")
    train, valid, test = (_place(split, config.streaming) for split in (train, valid, test))
    return Dataset(config.name, train, valid, test)


def subset(num_images: int, most: int, seed: int = 0) -> np.ndarray:
    """Places of a random subset of at most `most` of `num_images` images, sorted."""
    order = np.random.default_rng(seed).permutation(num_images)
    return np.sort(order[:most])


def spread(labels: np.ndarray, num: int, seed: int = 0) -> np.ndarray:
    """Places of `num` images that show all classes, sorted by class; fewer where there are fewer images.

    Classes take turns; within a class the seed draws.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    turns = np.zeros(len(labels), int)
    for label in np.unique(labels):
        own = order[labels[order] == label]
        turns[own] = np.arange(len(own))
    chosen = np.lexsort((labels, turns))[:num]
    return chosen[np.argsort(labels[chosen], kind="stable")]


def _fingerprint(split: Split) -> str:
    digest = hashlib.sha256()
    for rows in split:
        rows = np.ascontiguousarray(rows if isinstance(rows, np.ndarray) else rows[:16])
        digest.update(f"{rows.shape} {rows.dtype}".encode() + rows.tobytes())
    return digest.hexdigest()[:16]


def make_preprocess(binarize: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """What turns stored images into a model's input, on the device.

    Args:
      binarize: "none": value / 255. "round": 1 where value / 255 > 0.5, else 0. "sample": a Bernoulli
        draw with probability value / 255 (Salakhutdinov & Murray, 2008).

    Returns:
      `(keys, images) -> x`: keys `[B]`, typed, one per image so that a draw does not depend on the
      batch, and used by "sample" only; images uint8 `[B, H, W, C]`; x float32 in [0, 1], same shape.

    Raises:
      RunError: another `binarize`.
    """
    if binarize not in BINARIZE:
        raise data_error(binarize, f"must be one of {', '.join(BINARIZE)}", "binarize")
    return {
        "none": lambda _, images: jnp.asarray(images, jnp.float32) / 255,
        "round": lambda _, images: jnp.asarray(images > 127, jnp.float32),
        "sample": _sample,
    }[binarize]


def _sample(keys: jax.Array, images: jax.Array) -> jax.Array:
    # Drawn flat: threefry over four axes compiles slowly.
    probs = jnp.asarray(images, jnp.float32).reshape(images.shape[0], -1) / 255
    return jax.vmap(jax.random.bernoulli)(keys, probs).astype(jnp.float32).reshape(images.shape)


def _check_name(name: str) -> None:
    if isinstance(name, str) and (name in ("digits", *TFDS_NAMES) or re.match("(idx|npz|tfds):.", name)):
        return
    close = difflib.get_close_matches(str(name).lower(), KNOWN_NAMES, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise data_error(name, f"must be one of {', '.join(KNOWN_NAMES)}{hint}")


def _set_aside(split: Split, num_aside: int, seed: int) -> tuple[Split, Split]:
    """The images that stay, in their order, and those set aside."""
    order = np.random.default_rng(seed).permutation(len(split.images))
    stay, aside = np.sort(order[num_aside:]), order[:num_aside]
    first, second = (Split(*(stored.select(rows, index) for rows in split)) for index in (stay, aside))
    return first, second


def _place(split: Split, streaming: str) -> Split:
    """The split as it is streamed, or in memory."""
    is_streamed = streaming == "always" or (streaming == "auto" and split.images.nbytes > STREAM_BYTES)
    if isinstance(split.images, RecordImages) and not is_streamed:
        return Split(*split.images.read_all())
    if isinstance(split.images, np.ndarray) and is_streamed:
        return Split(HostArray(split.images), split.labels)
    return split


def _make_split(name: str, split: str, images: np.ndarray, labels: np.ndarray | None) -> Split:
    """A split of arrays from a user's file: `[N, H, W]` or `[N, H, W, C]`, and `[N]` or None."""
    if images.dtype != np.uint8:
        hint = "if its values are in [0, 1], multiply by 255 and cast to uint8"
        raise data_error(name, f"{split}_images is {images.dtype}, must be uint8: {hint}")
    shape = (*images.shape, 1) if images.ndim == 3 else images.shape
    if len(shape) != 4 or shape[-1] not in (1, 3) or 0 in shape:
        wanted = "[N, H, W] or [N, H, W, C] with C 1 or 3, and not empty"
        raise data_error(name, f"{split}_images has shape {list(images.shape)}, must be {wanted}")
    labels = np.zeros(len(images), np.int32) if labels is None else labels
    if labels.shape != shape[:1]:
        wanted = f"[{len(images)}], one label per image"
        raise data_error(name, f"{split}_labels has shape {list(labels.shape)}, must be {wanted}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise data_error(name, f"{split}_labels ({labels.dtype}) must be integers, 0 or more")
    return Split(images.reshape(shape), labels.astype(np.int32))


def _read_digits(_: DataConfig) -> dict[str, Split]:
    from sklearn.datasets import load_digits  # a second and 75 MiB that no other data set needs

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    # scikit-learn ships no split: this one belongs to the data set, so its seed is fixed.
    train, test = _set_aside(Split(images, labels.astype(np.int32)), 360, seed=0)
    return {"train": train, "test": test}


def _read_idx(config: DataConfig) -> dict[str, Split]:
    name, folder = config.name, Path(config.name.removeprefix("idx:")).expanduser()
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise data_error(name, f"{folder} {found}; name the folder that holds the four IDX files")
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx_file(name, folder / f"{prefix}-images-idx3-ubyte", num_axes=3)
        labels = _read_idx_file(name, folder / f"{prefix}-labels-idx1-ubyte", num_axes=1)
        splits[split] = _make_split(name, split, images, labels)
    return splits


def _read_idx_file(name: str, path: Path, num_axes: int) -> np.ndarray:
    """The bytes 0, 0, 8 (uint8) and the number of axes, their sizes as big-endian uint32, the values."""
    zipped = path.with_name(f"{path.name}.gz")
    try:
        content = path.read_bytes() if path.exists() else gzip.decompress(zipped.read_bytes())
    except FileNotFoundError as error:
        raise data_error(name, f"neither {path} nor {zipped.name} exists; put one there") from error
    except (OSError, EOFError, zlib.error) as error:
        raise data_error(name, f"cannot read {path} or .gz ({error}); get the file again") from error
    start = 4 + 4 * num_axes
    if content[:4] != bytes((0, 0, 8, num_axes)) or len(content) < start:
        problem = f"is not an IDX file of uint8 with {num_axes} axes (it starts {content[:4].hex(' ')})"
        raise data_error(name, f"{path} {problem}; get the file again")
    shape = np.frombuffer(content, ">u4", count=num_axes, offset=4).tolist()
    if len(content) - start != math.prod(shape):
        problem = f"holds {len(content) - start} values where its header says {shape}"
        raise data_error(name, f"{path} {problem}; get the file again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_npz(config: DataConfig) -> dict[str, Split]:
    name, path = config.name, Path(config.name.removeprefix("npz:")).expanduser()
    if not zipfile.is_zipfile(path):
        found = "is a folder" if path.is_dir() else "is no npz file" if path.exists() else "does not exist"
        raise data_error(name, f"{path} {found}; name a file written by numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise data_error(name, f"cannot read {path} ({error}); write it again with numpy.savez") from error
    splits = ["train", "test"] + ["valid"] * ("valid_images" in arrays)
    images, labels = {f"{split}_images" for split in splits}, {f"{split}_labels" for split in splits}
    # Labels for all splits or for none: a misspelt name must not turn into zeros.
    if set(arrays) not in (images, images | labels):
        wanted = "train_images, test_images, perhaps valid_images, and _labels for all of these or none"
        raise data_error(name, f"{path} holds {sorted(arrays)}, must hold {wanted}")
    return {s: _make_split(name, s, arrays[f"{s}_images"], arrays.get(f"{s}_labels")) for s in splits}


def _open_prepared(config: DataConfig) -> dict[str, Split]:
    opened = prepared.open_splits(config.name, config.data_dir, config.num_workers)
    return {name: Split(*arrays) for name, arrays in opened.items()}
