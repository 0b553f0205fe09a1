"""A folder of PNG and JPEG files: a folder for each split, and in it one for each class, or none.

The order of the images is that of their names, class by class, wherever the folder lies.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hvae_jax.cores import num_cores
from hvae_jax.data import stored
from hvae_jax.data.arrays import Source
from hvae_jax.data.labels import listed
from hvae_jax.data.npz_files import SPLITS
from hvae_jax.data.paths import find
from hvae_jax.data.picture_files import SUFFIXES, Header, UnreadableError, read_header, read_pixels
from hvae_jax.data.stored import FileMarks, Split, StoredArray
from hvae_jax.errors import RunError, data_error

# Pillow decodes without Python's lock. A thread takes so many files at a time, by headers and by pixels.
NUM_THREADS = min(16, num_cores())
HEADER_CHUNK, PIXEL_CHUNK = 256, 16
# What systems leave in folders, beside names that start with a dot.
IGNORED = ("thumbs.db", "desktop.ini")
WANTED = (
    "it must hold train/, test/ and perhaps valid/, each with PNG and JPEG files or a folder for each class"
)
# Columns of `read_headers`.
HEADERS = np.dtype(
    [(name, np.int64 if kind is int else np.bool_) for name, kind in Header.__annotations__.items()]
)


class Entry(NamedTuple):
    """What is in a folder under a name; a link is what it leads to, and a file where it leads nowhere."""

    name: str
    path: str
    is_folder: bool


class Listing(NamedTuple):
    """The files of a split.

    Attributes:
      folder: of the split.
      files: names below it, CLASS/FILE or FILE, sorted.
      classes: folders of the classes, sorted; empty where there are none.
      labels: of each file, the place of its class; 0 without classes.
    """

    folder: str
    files: list[str]
    classes: tuple[str, ...]
    labels: np.ndarray

    @property
    def paths(self) -> list[str]:
        """Of the files."""
        return [os.path.join(self.folder, file) for file in self.files]


class FolderImages(StoredArray):
    """The images of a split, uint8 `[N, H, W, C]`, decoded when they are read."""

    def __init__(
        self,
        name: str,
        paths: list[str],
        image_shape: tuple[int, int, int],
        side: int | None,
        num_workers: int,
        index: np.ndarray | None = None,
    ) -> None:
        """Of files that have this shape, or with a `side` any; `name` is that of the config, for errors."""
        super().__init__((len(paths), *image_shape), np.uint8, num_workers, index)
        self._name, self._paths, self._side = name, paths, side

    def read(self, places: np.ndarray) -> np.ndarray:
        """See `StoredArray`.

        Raises:
          RunError: a file is damaged, or is no longer what it was.
        """
        images = stored.empty((len(places), *self.shape[1:]), self.dtype)

        def decode(start: int) -> None:
            for i, place in enumerate(places[start : start + PIXEL_CHUNK].tolist(), start=start):
                path = self._paths[place]
                try:
                    pixels = read_pixels(path, self.shape[3], self._side)
                except UnreadableError as error:
                    raise _cannot_read(self._name, path, error) from error
                if pixels.shape != self.shape[1:]:
                    raise _cannot_read(self._name, path, f"it has {list(pixels.shape[:2])} pixels now")
                images[i] = pixels

        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for _ in pool.map(decode, range(0, len(places), PIXEL_CHUNK)):
                pass  # here the first error is raised
        return images

    def select(self, index: np.ndarray) -> "FolderImages":
        """See `StoredArray`."""
        shape = self.shape[1:]
        image_shape = (shape[0], shape[1], shape[2])
        return FolderImages(
            self._name, self._paths, image_shape, self._side, self.num_workers, self._index[index]
        )


def open_splits(name: str, side: int | None, num_workers: int) -> Source:
    """The splits `train`, `test` and perhaps `valid`: every file's header is read, and no pixels.

    Args:
      name: `folder:PATH`.
      side: of the squares that all images become; None keeps them as they are.
      num_workers: processes to read images with where they are streamed.

    Raises:
      RunError: a folder or file that does not belong there, is empty or damaged, or differs from the others.
    """
    listings = list_splits(name)
    headers = {split: read_headers(name, listing.paths) for split, listing in listings.items()}
    if side is None:
        _check_sizes(name, listings, headers)
    is_grey = all(np.all(found["is_grey"]) for found in headers.values())
    height, width = (side, side) if side else headers["train"][["height", "width"]][0].item()
    splits, marks = {}, {}
    for split, listing in listings.items():
        image_shape = (height, width, 1 if is_grey else 3)
        images = FolderImages(name, listing.paths, image_shape, side, num_workers)
        splits[split] = Split(images, listing.labels)
        marks[split] = FileMarks(_digest(listing.files), _digest(headers[split]["num_bytes"].tolist()))
    classes = listings["train"].classes
    notices = [f"class folders {listed(list(map(repr, classes)))} became 0 to {len(classes) - 1}"]
    notices = notices if classes else []
    notices += _notices(listings, headers, is_grey, side)
    return Source(splits, classes, tuple(notices), marks)


def list_splits(name: str) -> dict[str, Listing]:
    """The files of each split; nothing is opened.

    Raises:
      RunError: what is there is not such a folder.
    """
    root = find(name, "folder", f"name a folder of images: {WANTED}")
    folders: dict[str, str] = {}
    for entry in _entries(name, root):
        if not entry.is_folder:
            if Path(entry.name).suffix.lower() in SUFFIXES:
                raise data_error(name, f"{entry.path} is in no split; {WANTED}")
            continue  # a licence, a table of where the images are from
        split = SPLITS.get(entry.name.lower())
        if split is None or split in folders:
            problem = f"is a second {split} split" if split else "is no split"
            raise data_error(name, f"{entry.path} {problem}; {WANTED}")
        folders[split] = entry.path
    for split in ("train", "test"):
        if split not in folders:
            raise data_error(name, f"{root} has no {split}/; {WANTED}")
    listings = {s: _list_split(name, folders[s]) for s in ("train", "valid", "test") if s in folders}
    trained = listings["train"]
    for listing in listings.values():
        if bool(listing.classes) != bool(trained.classes):
            has, other = (listing, trained) if listing.classes else (trained, listing)
            problem = f"{has.folder} has class folders and {other.folder} has none"
            raise data_error(name, f"{problem}; sort the images of all splits by class, or of none")
        if unknown := [label for label in listing.classes if label not in trained.classes]:
            where = os.path.join(listing.folder, unknown[0])
            problem = f"{where} is a class that {trained.folder} lacks"
            raise data_error(
                name, f"{problem}, which has {listed(trained.classes)}; add it there, or move it away"
            )
    # Numbered as in training, whatever classes the other splits lack.
    number = {label: place for place, label in enumerate(trained.classes)}
    for split, listing in listings.items():
        if listing.classes:
            numbers = np.array([number[label] for label in listing.classes], np.int32)
            listings[split] = listing._replace(labels=numbers[listing.labels])
    return listings


def read_headers(name: str, paths: Sequence[str]) -> np.ndarray:
    """Of every file, `[N]` of `HEADERS`.

    Raises:
      RunError: the first file that cannot be read.
    """

    def read(start: int) -> np.ndarray:
        found = []
        for path in paths[start : start + HEADER_CHUNK]:
            try:
                found.append(tuple(read_header(path)))
            except UnreadableError as error:
                raise _cannot_read(name, path, error) from error
        return np.array(found, HEADERS)

    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return np.concatenate(list(pool.map(read, range(0, len(paths), HEADER_CHUNK))))


def _list_split(name: str, folder: str) -> Listing:
    files, classes = _sort_out(name, folder)
    if not files and not classes:
        raise data_error(name, f"{folder} is empty; {WANTED}")
    if files and classes:
        problem = f"holds the file {files[0]} beside the folder {classes[0]}"
        raise data_error(name, f"{folder} {problem}; sort all images by class, or none")
    if not classes:
        return Listing(folder, files, (), np.zeros(len(files), np.int32))
    labels = []
    for place, label in enumerate(classes):
        own = os.path.join(folder, label)
        found, deeper = _sort_out(name, own)
        if deeper:
            problem = f"{os.path.join(own, deeper[0])} is a folder in that of a class"
            raise data_error(name, f"{problem}; images must lie in {own} itself")
        if not found:
            raise data_error(name, f"{own} is empty; put the images of the class there, or remove it")
        files += [f"{label}/{file}" for file in found]
        labels += [place] * len(found)
    return Listing(folder, files, tuple(classes), np.array(labels, np.int32))


def _sort_out(name: str, folder: str) -> tuple[list[str], list[str]]:
    """Names of images and of folders in a folder, each sorted."""
    files, folders = [], []
    for entry in _entries(name, folder):
        if entry.is_folder:
            folders.append(entry.name)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            files.append(entry.name)
        else:
            problem = f"{entry.path} does not end in {', '.join(SUFFIXES)}"
            raise data_error(name, f"{problem}; convert it to PNG, or move it away")
    return files, folders


def _entries(name: str, folder: str | Path) -> list[Entry]:
    """What is in a folder by name, without what systems leave there."""
    try:
        with os.scandir(folder) as found:
            kept = [e for e in found if not e.name.startswith(".") and e.name.lower() not in IGNORED]
        return sorted(Entry(entry.name, entry.path, entry.is_dir()) for entry in kept)
    except OSError as error:
        where = error.filename or folder
        raise data_error(name, f"cannot read {where} ({error.strerror}); make it readable") from error


def _check_sizes(name: str, listings: Mapping[str, Listing], headers: Mapping[str, np.ndarray]) -> None:
    first = headers["train"][0]
    for split, found in headers.items():
        differs = (found["height"] != first["height"]) | (found["width"] != first["width"])
        if differs.any():
            place = int(differs.argmax())
            path, other = listings[split].paths[place], listings["train"].paths[0]
            problem = f"{path} has {_size(found[place])} pixels, {other} has {_size(first)} (height × width)"
            what = "--config.data.side=N cuts out the square in the middle of each and scales it to N × N"
            raise data_error(name, f"{problem}; {what}")


def _notices(
    listings: Mapping[str, Listing], headers: Mapping[str, np.ndarray], is_grey: bool, side: int | None
) -> list[str]:
    """What becomes of some of the files, one line each."""
    rules: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
        ("16 bits a channel: the upper 8 are kept", lambda found: found["is_wide"]),
        ("transparency: laid over white", lambda found: found["has_alpha"]),
        ("printing colours (CMYK): converted without their profile", lambda found: found["is_cmyk"]),
        ("EXIF data that turn them: turned", lambda found: found["is_turned"]),
    ]
    if not is_grey:
        text = "grey values among colour: three equal channels"
        rules.append((text, lambda found: found["is_grey"]))
    if side:
        text = f"a side of fewer than config.data.side={side} pixels: made larger"
        rules.append((text, lambda found: np.minimum(found["height"], found["width"]) < side))
    notices = []
    for text, rule in rules:
        chosen = {split: np.flatnonzero(rule(found)) for split, found in headers.items()}
        if count := sum(map(len, chosen.values())):
            split = next(split for split, places in chosen.items() if len(places))
            path = listings[split].paths[chosen[split][0]]
            notices.append(f"{count} file{'s' * (count > 1)} ({path}{', …' * (count > 1)}) with {text}")
    return notices


def _size(header: np.ndarray) -> str:
    return f"{header['height']} × {header['width']}"


def _cannot_read(name: str, path: str, why: object) -> RunError:
    return data_error(name, f"cannot read {path} ({why}); get the file again, or move it away")


def _digest(entries: Sequence[object]) -> str:
    text = "\0".join(map(str, entries))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
