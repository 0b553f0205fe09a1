"""MNIST's own file format: four files in a folder, under the names that they are passed on with."""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from hvae_jax.data.labels import Named
from hvae_jax.data.paths import find
from hvae_jax.errors import data_error

PREFIXES = {"train": ("train",), "test": ("t10k", "test")}
GZIP = b"\x1f\x8b"


def read(name: str) -> tuple[dict[str, Named], dict[str, Named]]:
    """Images `[N, H, W]` and labels `[N]`, uint8, of `train` and `test`.

    Args:
      name: `idx:FOLDER`.

    Raises:
      RunError: the folder or a file is not there, or damaged.
    """
    folder = find(name, "folder", "name the folder that holds the four IDX files")
    images, labels = {}, {}
    for split in PREFIXES:
        for kind, num_axes, found in (("images", 3, images), ("labels", 1, labels)):
            path = _find_file(name, folder, split, kind, num_axes)
            found[split] = Named(f"{split}_{kind}", _read_file(name, path, num_axes))
    return images, labels


def _find_file(name: str, folder: Path, split: str, kind: str, num_axes: int) -> Path:
    """The first that exists: with a hyphen or a dot in its name, gzipped or not, in a folder of its name."""
    names = [f"{prefix}-{kind}{mark}idx{num_axes}-ubyte" for prefix in PREFIXES[split] for mark in ("-", ".")]
    names = [f"{base}{ending}" for base in names for ending in ("", ".gz")]
    paths = [folder / base for base in names] + [folder / own / base for own in names for base in names]
    try:
        for path in paths:
            if path.is_file():
                return path
    except OSError as error:
        raise data_error(name, f"cannot read {folder} ({error.strerror}); get the file again") from error
    also = f"{names[2]} or a folder of that name would do, too; put one there"
    raise data_error(name, f"neither {paths[0]} nor {names[1]} exists; {also}")


def _read_file(name: str, path: Path, num_axes: int) -> np.ndarray:
    """The bytes 0, 0, 8 (uint8) and the number of axes, their sizes as big-endian uint32, the values."""
    try:
        content = path.read_bytes()
        if content.startswith(GZIP) or (path.suffix == ".gz" and not content.startswith(b"\0\0")):
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise data_error(name, f"cannot read {path} ({error}); get the file again") from error
    start = 4 + 4 * num_axes
    if content[:4] != bytes((0, 0, 8, num_axes)) or len(content) < start:
        found = f"it starts {content[:4].hex(' ')}" if content else "it is empty"
        problem = f"is not an IDX file of uint8 with {num_axes} axes ({found})"
        raise data_error(name, f"{path} {problem}; get the file again")
    shape = np.frombuffer(content, ">u4", count=num_axes, offset=4).tolist()
    if len(content) - start != math.prod(shape):
        problem = f"holds {len(content) - start} values where its header says {shape}"
        raise data_error(name, f"{path} {problem}; get the file again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
