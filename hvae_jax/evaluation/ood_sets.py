"""Images from elsewhere: of another data set, or made here; in the shape of a run's own.

Each set has two samples without an image in common, as the run's own data have: one to choose by, which
stands beside the validation split, and one to report on, beside the test split.
"""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hvae_jax import data
from hvae_jax.data import DataConfig, Dataset, Split, fingerprints, stored
from hvae_jax.errors import RunError
from hvae_jax.evaluation import metrics
from hvae_jax.training.memory import machine_bytes

NOISE, CONSTANT, INVERTED = BUILT_IN = ("noise", "constant", "inverted")
# A rank statistic and its error need two.
MIN_IMAGES = 2
# Of the built-in sets' images; copies of a sample that are held at a time.
_SEED, _COPIES = 0, 3


class Outside(NamedTuple):
    """A set of images from elsewhere.

    Attributes:
      name: as reports and figures say it.
      images: to choose by and to report on, uint8 `[N, H, W, C]`, as stored: the model's own preprocessing
        comes after. `valid` is None where the run has no validation split.
      are_pairs: whether image n is made from image n of the run's own sample.
    """

    name: str
    images: metrics.PerSplit[np.ndarray]
    are_pairs: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """Data that are not the run's, read: at most so many images of the training and of the test split."""

    name: str
    title: str
    images: metrics.PerSplit[np.ndarray]


def parse(text: str) -> tuple[str, ...]:
    """The names in `--ood=NAME,NAME`.

    Raises:
      RunError: none, an empty one, no name of data, or two that reports would call alike.
    """
    names = tuple(name.strip() for name in text.split(","))
    titles: dict[str, str] = {}
    for name in names:
        if not name:
            raise RunError(
                f"--ood={text} must be names of data or {', '.join(BUILT_IN)}, with commas between"
            )
        title = name if name in BUILT_IN else data.title_of(name)
        if title in titles:
            raise RunError(f"--ood={text} has two sets that are called {title}: {titles[title]} and {name}")
        titles[title] = name
        if name not in BUILT_IN:
            _config(name, "", True)
    return names


def read(
    names: Sequence[str],
    data_dir: str,
    check_values: bool,
    most: int,
    report: Callable[[str], None] = lambda line: None,
) -> list[str | Source]:
    """Reads what is not built in, once for all models.

    Images to choose by are drawn from a set's training split and those to report on from its test split, by
    a fixed seed.

    Args:
      names: of `parse`.
      data_dir: where TFDS data sets lie, see `DataConfig`.
      check_values: see `DataConfig`.
      most: images of each sample.
      report: called with what became of the data.

    Raises:
      RunError: data that are not there, damaged, or of fewer than two images.
    """
    return [name if name in BUILT_IN else _read(name, data_dir, check_values, most, report) for name in names]


def inside(dataset: Dataset, most: int) -> metrics.PerSplit[np.ndarray]:
    """The run's own images, uint8: a random subset of each split, of a fixed seed, but all if so few.

    Raises:
      RunError: the test split has fewer than two images. Of a validation split as small there is none.
    """
    if len(dataset.test.images) < MIN_IMAGES:
        raise RunError(f"--ood needs {MIN_IMAGES} images in the test split, {dataset.name} has one")
    valid = _sample(dataset.valid, most) if len(dataset.valid.images) >= MIN_IMAGES else None
    return metrics.PerSplit(valid=valid, test=_sample(dataset.test, most))


def make(source: str | Source, own: metrics.PerSplit[np.ndarray]) -> Outside:
    """A set in the shape of the run's own images; one that is built in has as many of them.

    Args:
      source: read, or a built-in kind: `noise` has a random value in every pixel and channel, `constant`
        one random value for each channel of an image, `inverted` the run's own images, 255 minus each.
      own: the run's own images, of `inside`.

    Raises:
      RunError: images of another shape, see `fit`.
    """
    has_valid = own.valid is not None
    if isinstance(source, Source):
        shape = own.test.shape[1:]
        valid = fit(source.name, source.images.valid, shape) if has_valid else None
        return Outside(
            source.title, metrics.PerSplit(valid=valid, test=fit(source.name, source.images.test, shape))
        )
    made = {
        split: _make(source, split, images)
        for split, images in (("valid", own.valid), ("test", own.test))
        if images is not None
    }
    return Outside(
        source, metrics.PerSplit(valid=made.get("valid"), test=made["test"]), are_pairs=source == INVERTED
    )


def fit(name: str, images: np.ndarray | None, shape: Sequence[int]) -> np.ndarray:
    """Images as the model takes them: grey ones are repeated over its channels.

    Args:
      name: of the data, for the error.
      images: `[N, H, W, C]`.
      shape: (H, W, C) of the run's own.

    Raises:
      RunError: another height or width, or channels that are not one.
    """
    assert images is not None
    found, wanted = images.shape[1:], tuple(shape)
    if found[:2] == wanted[:2] and found[2] == 1:
        images = np.repeat(images, wanted[2], axis=3)
    if images.shape[1:] != wanted:
        found, wanted = ("×".join(map(str, sides)) for sides in (found, wanted))
        raise RunError(
            f"--ood={name} has images of {found} (height × width × channels), the run's own are {wanted}: "
            "give images of that height and width, and of as many channels or of one"
        )
    return images


def check(sources: Sequence[str | Source], shape: Sequence[int]) -> None:
    """Raises RunError where a set's images cannot have this shape, before any work; see `fit`."""
    for source in sources:
        if isinstance(source, Source):
            fit(source.name, source.images.test[:1], shape)


def fingerprint(images: np.ndarray) -> str:
    """16 hexadecimal digits that another image or another order would change."""
    return fingerprints.fingerprint(images, np.zeros(0, np.int32))


def _config(name: str, data_dir: str, check_values: bool) -> DataConfig:
    try:
        return DataConfig(
            name=name, data_dir=data_dir, binarize="none", num_valid=0, split_seed=0, streaming="auto",
            num_workers=0, check_values=check_values,
        )  # fmt: skip
    except RunError as error:
        raise _named(name, error) from error


def _read(name: str, data_dir: str, check_values: bool, most: int, report: Callable[[str], None]) -> Source:
    config = _config(name, data_dir, check_values)
    try:
        dataset = data.load(config)
        splits = (dataset.train, dataset.test)
        if min(len(split.images) for split in splits) < MIN_IMAGES:
            raise RunError(f"a split has fewer than {MIN_IMAGES} images")
        train, test = (_sample(split, most) for split in splits)
    except RunError as error:
        raise _named(name, error) from error
    for notice in dataset.notices:
        report(f"note: {notice}")
    return Source(name, dataset.title, metrics.PerSplit(valid=train, test=test))


def _named(name: str, error: RunError) -> RunError:
    hint = "" if ":" in name else f"; built in are {', '.join(BUILT_IN)}"
    return RunError(f"--ood={name}: {error}{hint}")


def _sample(split: Split, most: int) -> np.ndarray:
    images, places = split.images, data.subset(len(split.images), most)
    needed, available = images.nbytes // len(images) * len(places), machine_bytes()
    if needed * _COPIES > available:
        raise RunError(
            f"--max_ood_images={most} needs {needed * _COPIES / 2**30:,.1f} GiB of memory, this machine has "
            f"{available / 2**30:,.1f}; ask for fewer"
        )
    return np.asarray(stored.select(images, places))


def _make(kind: str, split: str, own: np.ndarray) -> np.ndarray:
    if kind == INVERTED:
        return 255 - own
    generator = np.random.default_rng([_SEED, zlib.crc32(f"{kind}.{split}".encode())])
    num, height, width, channels = own.shape
    shape = (num, height, width, channels) if kind == NOISE else (num, 1, 1, channels)
    values = generator.integers(256, size=shape, dtype=np.uint8)
    return np.ascontiguousarray(np.broadcast_to(values, own.shape))
