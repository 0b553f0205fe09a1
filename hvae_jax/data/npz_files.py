"""A user's arrays in one file, under the names that such files commonly have."""

import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np

from hvae_jax.data.labels import Named
from hvae_jax.data.paths import find
from hvae_jax.errors import RunError, data_error

SPLITS = {"train": "train", "test": "test", "valid": "valid", "val": "valid", "validation": "valid"}
KINDS = {"images": "images", "x": "images", "labels": "labels", "y": "labels"}
# train_images, x_train and X_train are the same.
KEY = re.compile(rf"(?P<s1>{'|'.join(SPLITS)})_(?P<k1>images|labels)|(?P<k2>[xy])_(?P<s2>{'|'.join(SPLITS)})")
WANTED = (
    "train_images, test_images, perhaps valid_images, and _labels for all of these or none "
    "(or x_train, y_train, x_test, …; val or validation for valid)"
)


def read(name: str) -> tuple[dict[str, Named], dict[str, Named]]:
    """Images and labels by split, as they are in the file; no labels where it has none.

    Args:
      name: `npz:FILE`.

    Raises:
      RunError: the file is not there, damaged, or has other arrays.
    """
    hint = "name a file written by numpy.savez"
    path = find(name, "file", hint)
    try:
        with path.open("rb") as file:
            is_npz = zipfile.is_zipfile(file)
    except OSError as error:
        raise data_error(name, f"cannot read {path} ({error.strerror})") from error
    if not is_npz:
        found = "is empty" if not path.stat().st_size else "is no npz file"
        raise data_error(name, f"{path} {found}; {hint}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            keys = _places_of(name, path, archive.files)
            arrays = {place: Named(key, _read_array(name, archive, key)) for key, place in keys.items()}
    except RunError:
        raise
    except Exception as error:  # what is damaged raises anything, from OSError to tokenize.TokenError
        raise data_error(name, f"cannot read {path} ({error}); write it again with numpy.savez") from error
    images = {split: array for (kind, split), array in arrays.items() if kind == "images"}
    labels = {split: array for (kind, split), array in arrays.items() if kind == "labels"}
    return images, labels


def _places_of(name: str, path: Path, keys: list[str]) -> dict[str, tuple[str, str]]:
    """By key its kind and split; a misspelt name must not turn into labels of 0."""
    places = {}
    for key in keys:
        match = KEY.fullmatch(key.lower())
        if match:
            kind, split = match["k1"] or match["k2"], match["s1"] or match["s2"]
            places[key] = KINDS[kind], SPLITS[split]
    images = {split for kind, split in places.values() if kind == "images"}
    labels = {split for kind, split in places.values() if kind == "labels"}
    counts = Counter(places[key] for key in keys if key in places)
    twice = [place for place, count in counts.items() if count > 1]
    is_known = len(places) == len(keys) and {"train", "test"} <= images and labels in (set(), images)
    if is_known and not twice:
        return places
    have = f"{path} holds {sorted(keys)}, must hold {WANTED}"
    if twice:
        raise data_error(name, f"{have}; the {twice[0][0]} of {twice[0][1]} are there twice")
    missing = [f"{split}_images" for split in sorted(({"train", "test"} | labels) - images)]
    unknown = sorted(set(keys) - set(places))
    unlabelled = [f"{split}_labels" for split in sorted(images - labels)] if labels else []
    for what, found in (("not known", unknown), ("missing", missing or unlabelled)):
        if found:
            have += f"; {what}: {', '.join(found)}"
    raise data_error(name, have)


def _read_array(name: str, archive: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        array = archive[key]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        problem = f"{key} is an array of Python objects, must be numbers or strings (array.astype)"
        raise data_error(name, problem) from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{key} is not an array")
    return array
