"""Which images an evaluation reads, and which of them it fits on, scores and shows.

Whatever is not all of a split is drawn from it once, by a fixed seed: files are often sorted by class, so
the first images are no sample of the others.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from hvae_jax import data
from hvae_jax.data import Dataset, Split, stored
from hvae_jax.data.stored import HostArray, StoredArray
from hvae_jax.evaluation.sizes import NUM_COMPARED, NUM_PICTURES, NUM_POINTS, Sizes

Name = TypeVar("Name", bound=str)
# Training images that samples are compared with: of more than this, a part.
MAX_TRAIN_BYTES = 2**30


class Classes(NamedTuple):
    """The classes that occur, numbered from 0; label ids may be sparse or huge.

    Attributes:
      ids: label of class number n, those of the training split first.
      num_trained: classes of the training split.
    """

    ids: np.ndarray
    num_trained: int

    @property
    def can_be_told_apart(self) -> bool:
        """Whether there is a class to read: two or more to train on. Data without labels have one, 0."""
        return self.num_trained >= 2

    def number(self, labels: Any) -> np.ndarray:
        """Labels to class numbers, int32."""
        order = np.argsort(self.ids)
        return order[np.searchsorted(self.ids[order], np.asarray(labels))].astype(np.int32)


class Part(NamedTuple):
    """Images of a split that are measured.

    Attributes:
      images: uint8 `[N, H, W, C]`.
      labels: class numbers `[N]`.
      scored: places of those that probes, information, precision and recall read, sorted.
      points: places of those whose latents are drawn as points.
      shown: places of those shown in pictures, all classes among them where there are enough, by class.
      compared: places of those whose nearest training images samples are compared with.
      read: places of those whose latents are kept, sorted: all of the above, or every image of what probes
        are fitted on.
    """

    images: np.ndarray
    labels: np.ndarray
    scored: np.ndarray
    points: np.ndarray
    shown: np.ndarray
    compared: np.ndarray
    read: np.ndarray

    def among_read(self, places: np.ndarray) -> np.ndarray:
        """Where these places stand in `read`."""
        return np.searchsorted(self.read, places)


def find_classes(dataset: Dataset) -> Classes:
    """Those of the training split in the order of their labels, then what else the other splits hold."""
    trained = np.unique(np.asarray(dataset.train.labels))
    others = np.concatenate([np.asarray(split.labels) for split in (dataset.valid, dataset.test)])
    return Classes(np.concatenate([trained, np.setdiff1d(others, trained)]), len(trained))


def make_parts(dataset: Dataset, classes: Classes, sizes: Sizes) -> dict[str, Part]:
    """`train` (what probes are fitted on), `valid` where there is one, `test`, read into memory."""
    train = data.subset(len(dataset.train.images), sizes.max_fit_images)
    parts = {"train": _make_part(dataset.train, train, classes, sizes, is_fitted_on=True)}
    for name, split in (("valid", dataset.valid), ("test", dataset.test)):
        if len(split.images):
            parts[name] = _make_part(split, None, classes, sizes)
    return parts


def join(images: Iterable[np.ndarray], is_streamed: bool) -> Any:
    """In one array, which stays on the host where the data are streamed."""
    several = list(images)
    joined = several[0] if len(several) == 1 else stored.concatenate(several)
    return HostArray(joined) if is_streamed else joined


def share(parts: Mapping[Name, Part], joined: np.ndarray) -> dict[Name, Part]:
    """Those whose images stand in `joined`, one part after the other, as views of it: one copy is enough."""
    shared, start = {}, 0
    for name, part in parts.items():
        shared[name] = part._replace(images=joined[start : start + len(part.images)])
        start += len(part.images)
    return shared


def is_streamed(dataset: Dataset) -> bool:
    """Whether some split comes to the devices batch by batch."""
    splits = (dataset.train, dataset.valid, dataset.test)
    return any(isinstance(split.images, StoredArray) for split in splits)


def training_images(dataset: Dataset) -> Any:
    """Those that samples are compared with: all, or where they are too many a subset of a fixed seed."""
    images = dataset.train.images
    most = max(1, MAX_TRAIN_BYTES // math.prod(images.shape[1:]))
    return images if len(images) <= most else stored.select(images, data.subset(len(images), most))


def _make_part(
    split: Split, places: np.ndarray | None, classes: Classes, sizes: Sizes, is_fitted_on: bool = False
) -> Part:
    """Of the images at `places`, or of all, which are not copied."""
    images, labels = (np.asarray(rows if places is None else stored.select(rows, places)) for rows in split)
    numbers, num = classes.number(labels), len(images)
    chosen = (
        data.subset(num, sizes.max_scored_images),
        data.subset(num, NUM_POINTS),
        data.spread(numbers, NUM_PICTURES),
        data.subset(num, min(sizes.num_samples, NUM_COMPARED)),
    )
    read = np.arange(num) if is_fitted_on else np.unique(np.concatenate(chosen))
    return Part(images, numbers, *chosen, read)
