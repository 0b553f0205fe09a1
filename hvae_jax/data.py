"""Data sets by name, as uint8 images in memory, and what turns them into a model's input.

`load(config)` understands `digits` (scikit-learn, nothing to download), `idx:FOLDER` (MNIST's own
file format), `npz:FILE` (your arrays) and, once prepared, `mnist`, `fashion_mnist`, `svhn_cropped`
and `cifar10` of TensorFlow Datasets, which are read without TensorFlow.
"""

import dataclasses
import difflib
import gzip
import json
import math
import os
import re
import shlex
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from hvae_jax.errors import RunError

BINARIZE = ("none", "round", "sample")
TFDS_NAMES = ("mnist", "fashion_mnist", "svhn_cropped", "cifar10")
KNOWN_NAMES = ("digits", *TFDS_NAMES, "idx:FOLDER", "npz:FILE")


class Split(NamedTuple):
    """Images and their labels.

    Attributes:
      images: uint8 `[N, H, W, C]`, 0 to 255.
      labels: int32 `[N]`, from 0; all 0 where the source has none.
    """

    images: np.ndarray
    labels: np.ndarray


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
    def num_classes(self) -> int:
        """The largest training label + 1."""
        return int(self.train.labels.max()) + 1


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The fields of `config.data`; a value that is not allowed raises RunError.

    Attributes:
      name: one of `KNOWN_NAMES`, with your path for FOLDER or FILE.
      data_dir: where TFDS data sets lie; "" is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      binarize: one of `BINARIZE`, see `make_preprocess`.
      num_valid: images set aside from the training split for validation, 0 or more.
      split_seed: chooses those images.
    """

    name: str
    data_dir: str
    binarize: str
    num_valid: int
    split_seed: int

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not isinstance(self.data_dir, str) or "://" in self.data_dir:
            raise _error(self.data_dir, 'must be a folder on this machine, or ""', "data_dir")
        make_preprocess(self.binarize)  # which knows what is allowed
        for field in ("num_valid", "split_seed"):
            value = getattr(self, field)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise _error(value, "must be an integer, 0 or more", field)


def load(config: DataConfig) -> Dataset:
    """Reads a whole data set into memory and sets `num_valid` training images aside.

    The test split is the source's own and never depends on `split_seed`. Validation images are the
    first `num_valid` of a permutation seeded by it, so a smaller validation set is part of a larger
    one; the other images stay in their order.

    Returns:
      The data set, in uint8.

    Raises:
      RunError: files are missing, damaged or of another kind, or no image is left to train on.
    """
    kind = config.name.partition(":")[0]
    read = {"digits": _read_digits, "idx": _read_idx, "npz": _read_npz}.get(kind, _read_tfds)
    splits = read(config)
    largest = 0 if "valid" in splits else len(splits["train"].images) - 1
    if config.num_valid > largest:
        why = "it has its own valid_images" if "valid" in splits else "an image must be left to train on"
        raise _error(config.num_valid, f"must be at most {largest} for {config.name}, {why}", "num_valid")
    train, aside = _set_aside(splits["train"], config.num_valid, config.split_seed)
    valid, test = splits.get("valid", aside), splits["test"]
    shapes = [list(split.images.shape[1:]) for split in (train, valid, test)]
    if shapes != [shapes[0]] * 3:
        raise _error(config.name, f"images of train, valid and test have shapes {shapes}, must be alike")
    return Dataset(config.name, train, valid, test)


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
        raise _error(binarize, f"must be one of {', '.join(BINARIZE)}", "binarize")
    return {
        "none": lambda _, images: jnp.asarray(images, jnp.float32) / 255,
        "round": lambda _, images: jnp.asarray(images > 127, jnp.float32),
        "sample": _sample,
    }[binarize]


def _sample(keys: jax.Array, images: jax.Array) -> jax.Array:
    # Drawn flat: threefry over four axes compiles slowly.
    probs = jnp.asarray(images, jnp.float32).reshape(images.shape[0], -1) / 255
    return jax.vmap(jax.random.bernoulli)(keys, probs).astype(jnp.float32).reshape(images.shape)


def _error(value: object, problem: str, field: str = "name") -> RunError:
    return RunError(f"config.data.{field}={value!r}: {problem}".replace("\n", " "))


def _check_name(name: str) -> None:
    if isinstance(name, str) and (name in ("digits", *TFDS_NAMES) or re.match("(idx|npz):.", name)):
        return
    close = difflib.get_close_matches(str(name).lower(), KNOWN_NAMES, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise _error(name, f"must be one of {', '.join(KNOWN_NAMES)}{hint}")


def _set_aside(split: Split, num_aside: int, seed: int) -> tuple[Split, Split]:
    """The images that stay, in their order, and those set aside."""
    order = np.random.default_rng(seed).permutation(len(split.images))
    stay, aside = np.sort(order[num_aside:]), order[:num_aside]
    return Split(split.images[stay], split.labels[stay]), Split(split.images[aside], split.labels[aside])


def _make_split(name: str, split: str, images: np.ndarray, labels: np.ndarray | None) -> Split:
    """A split of arrays from a user's file: `[N, H, W]` or `[N, H, W, C]`, and `[N]` or None."""
    if images.dtype != np.uint8:
        hint = "if its values are in [0, 1], multiply by 255 and cast to uint8"
        raise _error(name, f"{split}_images is {images.dtype}, must be uint8: {hint}")
    shape = (*images.shape, 1) if images.ndim == 3 else images.shape
    if len(shape) != 4 or shape[-1] not in (1, 3) or 0 in shape:
        wanted = "[N, H, W] or [N, H, W, C] with C 1 or 3, and not empty"
        raise _error(name, f"{split}_images has shape {list(images.shape)}, must be {wanted}")
    labels = np.zeros(len(images), np.int32) if labels is None else labels
    if labels.shape != shape[:1]:
        wanted = f"[{len(images)}], one label per image"
        raise _error(name, f"{split}_labels has shape {list(labels.shape)}, must be {wanted}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise _error(name, f"{split}_labels ({labels.dtype}) must be integers, 0 or more")
    return Split(images.reshape(shape), labels.astype(np.int32))


def _read_digits(_: DataConfig) -> dict[str, Split]:
    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    # scikit-learn ships no split: this one belongs to the data set, so its seed is fixed.
    train, test = _set_aside(Split(images, labels.astype(np.int32)), 360, seed=0)
    return {"train": train, "test": test}


def _read_idx(config: DataConfig) -> dict[str, Split]:
    name, folder = config.name, Path(config.name.removeprefix("idx:")).expanduser()
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise _error(name, f"{folder} {found}; name the folder that holds the four IDX files")
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
        raise _error(name, f"neither {path} nor {zipped.name} exists; put one there") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _error(name, f"cannot read {path} or .gz ({error}); get the file again") from error
    start = 4 + 4 * num_axes
    if content[:4] != bytes((0, 0, 8, num_axes)) or len(content) < start:
        problem = f"is not an IDX file of uint8 with {num_axes} axes (it starts {content[:4].hex(' ')})"
        raise _error(name, f"{path} {problem}; get the file again")
    shape = np.frombuffer(content, ">u4", count=num_axes, offset=4).tolist()
    if len(content) - start != math.prod(shape):
        problem = f"holds {len(content) - start} values where its header says {shape}"
        raise _error(name, f"{path} {problem}; get the file again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_npz(config: DataConfig) -> dict[str, Split]:
    name, path = config.name, Path(config.name.removeprefix("npz:")).expanduser()
    if not zipfile.is_zipfile(path):
        found = "is a folder" if path.is_dir() else "is no npz file" if path.exists() else "does not exist"
        raise _error(name, f"{path} {found}; name a file written by numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise _error(name, f"cannot read {path} ({error}); write it again with numpy.savez") from error
    splits = ["train", "test"] + ["valid"] * ("valid_images" in arrays)
    images, labels = {f"{split}_images" for split in splits}, {f"{split}_labels" for split in splits}
    # Labels for all splits or for none: a misspelt name must not turn into zeros.
    if set(arrays) not in (images, images | labels):
        wanted = "train_images, test_images, perhaps valid_images, and _labels for all of these or none"
        raise _error(name, f"{path} holds {sorted(arrays)}, must hold {wanted}")
    return {s: _make_split(name, s, arrays[f"{s}_images"], arrays.get(f"{s}_labels")) for s in splits}


def _prepared_folder(config: DataConfig) -> Path:
    """DATA_DIR/NAME/VERSION of the newest version that can be read."""
    # TFDS answers a missing one with talk about file formats or, offline, after minutes of retries.
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    data_dir = Path(config.data_dir or default).expanduser().absolute()
    if data_dir.is_file():
        raise _error(config.data_dir, f"{data_dir} is a file; name a folder", "data_dir")
    # A preparation that was cut short leaves incomplete.XXXXXX_VERSION behind.
    infos = (data_dir / config.name).glob("*/dataset_info.json")
    folders = [info.parent for info in infos if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)]
    readable = [f for f in folders if '"array_record"' in (f / "dataset_info.json").read_text()]
    if readable:
        return max(readable, key=lambda folder: [int(part) for part in folder.name.split(".")])
    problem = f"is not prepared in {data_dir} (config.data.data_dir={config.data_dir!r})"
    if folders:
        problem = f"{folders[0]} is not in the array_record format; move it away"
    raise _error(config.name, f"{problem}. Prepare it once: {_prepare_command(config.name, data_dir)}")


def _prepare_command(name: str, data_dir: Path) -> str:
    # Not `tfds build`: that imports apache-beam, which none of these data sets uses.
    folder = json.dumps(str(data_dir), ensure_ascii=False)
    builder = f'tfds.builder("{name}", data_dir={folder}, file_format="array_record")'
    code = f"import tensorflow_datasets as tfds; {builder}.download_and_prepare()"
    return f'pip install -e ".[prepare]" && python -c {shlex.quote(code)}'


def _read_tfds(config: DataConfig) -> dict[str, Split]:
    name, folder = config.name, _prepared_folder(config)
    import tensorflow_datasets as tfds  # here: slow to import, and most sources do without

    data_dir, splits = folder.parent.parent, ["train", "test"]
    try:
        sources = tfds.data_source(f"{name}:{folder.name}", split=splits, data_dir=data_dir, download=False)
        return {split: _read_source(source) for split, source in zip(splits, sources, strict=True)}
    except Exception as error:  # each damaged file has its own: OSError, RuntimeError, ParseError, ...
        command = _prepare_command(name, data_dir)
        raise _error(name, f"cannot read {folder} ({error}); move it away, then: {command}") from error


def _read_source(source: Any) -> Split:
    images = np.empty((len(source), *source.dataset_info.features["image"].shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), 1000):  # slices are faster than single images, by a fifth
        indices = range(start, min(start + 1000, len(source)))
        for i, example in zip(indices, source.__getitems__(list(indices)), strict=True):
            images[i], labels[i] = example["image"], example["label"]
    return Split(images, labels)
