"""Data sets by name: what a name means, how a split is set aside, what turns images into a model's input."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax.data import folder_files, idx_files, npz_files, pixels, prepared, stored
from hvae_jax.data.arrays import Source, to_source
from hvae_jax.data.fingerprints import fingerprint, is_in_memory
from hvae_jax.data.folder_files import FolderImages
from hvae_jax.data.prepared import RecordImages
from hvae_jax.data.stored import FileMarks, HostArray, Split
from hvae_jax.errors import data_error
from hvae_jax.values import is_integer

BINARIZE = ("none", "round", "sample")
TFDS_NAMES = ("mnist", "fashion_mnist", "svhn_cropped", "cifar10")
KNOWN_NAMES = ("digits", *TFDS_NAMES, "tfds:NAME", "idx:FOLDER", "npz:FILE", "folder:PATH")
STREAMING = ("auto", "always", "never")
# Bytes of a split beyond which "auto" streams it: every device would keep a copy.
STREAM_BYTES = 2**30
# No machine has more cores.
MAX_WORKERS = 1024
# Of squares that the images of a folder become.
MAX_SIDE = 4096
FOLDER = "folder:"


class Dataset(NamedTuple):
    """Three disjoint splits of images of one shape; `valid` can be empty.

    Attributes:
      name: that of the config.
      train: to train on.
      valid: to choose by.
      test: to report on.
      class_names: of labels 0, 1, …, where the source has names, or numbers with large gaps.
      notices: what became of the source's arrays, and what looks wrong with them, for a program to print
        once; one line each.
      marks: of the files of each split, where the source is a folder of files.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    class_names: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()
    marks: Mapping[str, FileMarks] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C); of data of one's own, whatever one example has."""
        image_shape: Any = tuple(self.train.images.shape[1:])
        return image_shape

    @property
    def title(self) -> str:
        """The name as figures say it, see `title_of`."""
        return title_of(self.name)

    @property
    def num_classes(self) -> int:
        """As many as have names, else the largest training label + 1."""
        return len(self.class_names) or int(np.asarray(self.train.labels).max()) + 1

    @property
    def splits(self) -> dict[str, Split]:
        """`train`, `valid` and `test`."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    def describe(self) -> dict[str, Any]:
        """What the data are, ready for JSON: equal for equal data, streamed or not.

        Returns:
          `name`, `image_shape` [H, W, C], `num_classes`, and `splits`: by name `num_images` and
          `fingerprint`, 16 hexadecimal digits that another image or label would change. Of a data set of
          TFDS it is that of a sample, and of more than `STREAM_BYTES` of a folder of files: see
          `fingerprints.fingerprint`.
        """
        splits = {
            name: {"num_images": len(split.images), "fingerprint": self._fingerprint(name)}
            for name, split in self.splits.items()
        }
        return {
            "name": self.name,
            "image_shape": list(self.image_shape),
            "num_classes": self.num_classes,
            "splits": splits,
        }

    def _fingerprint(self, name: str) -> str:
        split = self.splits[name]
        if self.marks is not None:  # by size alone, so that streaming it makes no difference
            return fingerprint(*split, split.images.nbytes > STREAM_BYTES, self.marks[name])
        is_prepared = self.name in TFDS_NAMES or self.name.startswith("tfds:")
        return fingerprint(*split, is_prepared or not is_in_memory(split.images))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The fields of `config.data`; a value that is not allowed raises RunError.

    Attributes:
      name: one of `KNOWN_NAMES`, with your path for FOLDER, FILE or PATH.
      data_dir: where TFDS data sets lie; "" is $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      binarize: one of `BINARIZE`, see `make_preprocess`.
      num_valid: images set aside from the training split for validation, 0 or more.
      split_seed: chooses those images.
      streaming: which splits come to the devices batch by batch instead of staying there: those of more than
        `STREAM_BYTES` ("auto"), all ("always") or none ("never"). The numbers are the same.
      num_workers: processes that read and decode what is streamed from disk; 0 reads in threads.
      check_values: refuse images that cannot be bytes from 0 to 255, see `pixels.check`; False takes all.
      side: of the squares that the images of `folder:PATH` become, 1 to `MAX_SIDE`: the middle of each,
        scaled. None keeps images as they are.
    """

    name: str
    data_dir: str
    binarize: str
    num_valid: int
    split_seed: int
    streaming: str
    num_workers: int
    check_values: bool = True
    side: int | None = None

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not isinstance(self.data_dir, str) or "://" in self.data_dir:
            raise data_error(self.data_dir, 'must be a folder on this machine, or ""', "data_dir")
        make_preprocess(self.binarize)  # which knows what is allowed
        if self.streaming not in STREAMING:
            raise data_error(self.streaming, f"must be one of {', '.join(STREAMING)}", "streaming")
        if not isinstance(self.check_values, bool):
            raise data_error(self.check_values, "must be True or False", "check_values")
        for field in ("num_valid", "split_seed", "num_workers"):
            value = getattr(self, field)
            most = MAX_WORKERS if field == "num_workers" else None
            if not is_integer(value, 0, most):
                raise data_error(
                    value, "must be an integer, 0 " + (f"to {most}" if most else "or more"), field
                )
        if self.side is not None and not is_integer(self.side, 1, MAX_SIDE):
            raise data_error(self.side, f"must be an integer, 1 to {MAX_SIDE}, or None", "side")
        if self.side is not None and not self.name.startswith(FOLDER):
            problem = (
                f"only images of {FOLDER}PATH are scaled, config.data.name is {self.name!r}; leave it out"
            )
            raise data_error(self.side, problem, "side")


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
    own = {"digits": _read_digits, "idx": _read_idx, "npz": _read_npz, "folder": _open_folder}
    splits, class_names, notices, marks = own.get(kind, _open_prepared)(config)
    for split, found in splits.items():
        if not len(found.images):
            raise data_error(config.name, f"the {split} split has no images")
    if config.check_values:
        notices = (*notices, *pixels.check(config.name, splits, config.binarize))
    largest = 0 if "valid" in splits else len(splits["train"].images) - 1
    if config.num_valid > largest:
        why = "it has its own validation images" if "valid" in splits else "an image must be left to train on"
        raise data_error(config.num_valid, f"must be at most {largest} for {config.name}, {why}", "num_valid")
    train, aside = _set_aside(splits["train"], config.num_valid, config.split_seed)
    valid, test = splits.get("valid", aside), splits["test"]
    shapes = [list(split.images.shape[1:]) for split in (train, valid, test)]
    if shapes != [shapes[0]] * 3:
        raise data_error(config.name, f"images of train, valid and test have shapes {shapes}, must be alike")
    train, valid, test = (_place(split, config.streaming) for split in (train, valid, test))
    notices = tuple(f"{config.name}: {notice}" for notice in notices)
    if marks is not None:
        marks = {"valid": marks["train"], **marks}
    return Dataset(config.name, train, valid, test, class_names, notices, marks)


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


def title_of(name: str) -> str:
    """A data set's name as figures say it: of a folder or file its own name alone, without the way there."""
    kind, _, rest = name.partition(":")
    own = {"idx": Path(rest).name, "npz": Path(rest).stem, "folder": Path(rest).name}.get(kind, rest)
    return own or kind


def _sample(keys: jax.Array, images: jax.Array) -> jax.Array:
    # Drawn flat: threefry over four axes compiles slowly.
    probs = jnp.asarray(images, jnp.float32).reshape(images.shape[0], -1) / 255
    return jax.vmap(jax.random.bernoulli)(keys, probs).astype(jnp.float32).reshape(images.shape)


def _check_name(name: str) -> None:
    if isinstance(name, str) and (name in ("digits", *TFDS_NAMES) or re.match("(idx|npz|folder):.", name)):
        return
    if isinstance(name, str) and re.match("tfds:.", name):
        if not re.fullmatch(r"tfds:\w+(/[\w.+-]+)*", name):
            raise data_error(name, "NAME of tfds:NAME is TFDS's own, or NAME/CONFIG, without a version")
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
    if isinstance(split.images, FolderImages) and not is_streamed:
        return Split(np.asarray(split.images), split.labels)
    if isinstance(split.images, np.ndarray) and is_streamed:
        return Split(HostArray(split.images), split.labels)
    if isinstance(split.images, np.ndarray):
        return Split(stored.aligned(split.images), split.labels)
    return split


def _read_digits(_: DataConfig) -> Source:
    from sklearn.datasets import load_digits  # a second and 75 MiB that no other data set needs

    images, labels = load_digits(return_X_y=True)
    images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    # scikit-learn ships no split: this one belongs to the data set, so its seed is fixed.
    train, test = _set_aside(Split(images, labels.astype(np.int32)), 360, seed=0)
    return Source({"train": train, "test": test})


def _read_idx(config: DataConfig) -> Source:
    return to_source(config.name, *idx_files.read(config.name))


def _read_npz(config: DataConfig) -> Source:
    return to_source(config.name, *npz_files.read(config.name))


def _open_folder(config: DataConfig) -> Source:
    return folder_files.open_splits(config.name, config.side, config.num_workers)


def _open_prepared(config: DataConfig) -> Source:
    return Source(*prepared.open_splits(config.name, config.data_dir, config.num_workers))
