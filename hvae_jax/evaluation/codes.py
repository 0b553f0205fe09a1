"""codes.npz: what a model knows of every image, as arrays for others to read.

The arrays go to disk batch by batch, so that a split may be larger than memory, and are packed at the end.
"""

import dataclasses
import json
import math
import os
import pathlib
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from hvae_jax import data
from hvae_jax.data import Dataset, stored
from hvae_jax.errors import RunError
from hvae_jax.evaluation.encoding import Encoder
from hvae_jax.evaluation.plain import to_plain
from hvae_jax.evaluation.settings import Settings
from hvae_jax.keys import make_key
from hvae_jax.models.config import CATEGORICAL, ModelConfig
from hvae_jax.training import Params

CODES_FILE, PARTIAL = "codes.npz", "codes.partial"
SPLITS = ("train", "valid", "test")
_FLOAT = np.dtype(np.float32)


class Parts(NamedTuple):
    """What one codes.npz holds.

    Attributes:
      places: of each split that has images which of them are encoded, `[N]`, rising.
      shapes: of each array of a layer by name, NAME_LAYER without the split, of one image.
    """

    places: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]

    @property
    def num_bytes(self) -> int:
        """Of the file while it is written: all arrays, and the largest of them once more."""
        sizes = [
            len(places) * math.prod(shape) * _FLOAT.itemsize
            for places in self.places.values()
            for shape in self.shapes.values()
        ]
        return sum(sizes) + max(sizes)


def plan(config: ModelConfig, dataset: Dataset, most: int | None) -> Parts:
    """What will be written.

    Args:
      config: of the model.
      dataset: its data.
      most: images of each split, drawn by a fixed seed; None takes all.
    """
    places = {
        name: data.subset(len(split.images), len(split.images) if most is None else most)
        for name, split in dataset.splits.items()
        if len(split.images)
    }
    shapes = {}
    for layer, (kind, shape) in enumerate(zip(config.kinds, config.latent_shapes, strict=True), start=1):
        names = ("probs", "samples") if kind == CATEGORICAL else ("means", "stds", "samples")
        shapes |= {f"{name}_{layer}": tuple(shape) for name in names}
    return Parts(places, shapes)


def check_space(folder: pathlib.Path, parts: Parts, num_files: int = 1) -> None:
    """Refuses what the disk cannot hold, before it is tried.

    Raises:
      RunError: it needs more than there is.
    """
    needed, free = num_files * parts.num_bytes, shutil.disk_usage(folder).free
    if needed > free:
        most = max(map(len, parts.places.values()))
        raise RunError(
            f"--codes needs about {needed / 2**30:,.1f} GiB of disk in {folder}, where "
            f"{free / 2**30:,.1f} GiB are free; ask for fewer images of each split, below {most}, "
            "with --max_codes"
        )


def settings_of(made_with: Settings, most: int | None) -> str:
    """What decides the arrays, as the file keeps it."""
    kept = {**dataclasses.asdict(made_with), "max_codes": most}
    del kept["sizes"], kept["classifier"]
    return json.dumps(to_plain(kept), sort_keys=True)


def are_written(folder: pathlib.Path, settings: str) -> bool:
    """Whether the run's codes.npz is there, whole, and was made with these settings."""
    try:
        with np.load(folder / CODES_FILE) as arrays:
            return str(arrays["settings"]) == settings
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return False


def write(
    folder: pathlib.Path,
    encoder: Encoder,
    params: Params,
    dataset: Dataset,
    parts: Parts,
    settings: str,
) -> None:
    """Writes codes.npz whole, or leaves what was there.

    Args:
      folder: of the run.
      encoder: of its network, with samples.
      params: of the model.
      dataset: its data.
      parts: of `plan`.
      settings: of `settings_of`.

    Raises:
      RunError: no space, or no permission.
    """
    partial, target = folder / PARTIAL, folder / CODES_FILE
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
        partial.mkdir()
        for split, places in parts.places.items():
            key = make_key(SPLITS.index(split))  # so that a split's draws do not depend on the others
            _write_split(partial, encoder, params, dataset.splits[split], places, key, split, parts.shapes)
        whole = {"settings": np.array(settings)}
        if dataset.class_names:
            whole["class_names"] = np.array(dataset.class_names)
        for split, places in parts.places.items():
            labels = stored.select(dataset.splits[split].labels, places)
            whole |= {f"{split}_index": places, f"{split}_labels": np.asarray(labels)}
        for name, array in whole.items():
            np.save(partial / f"{name}.npy", array, allow_pickle=False)
        _pack(partial, partial / "packed")
        os.replace(partial / "packed", target)
    except OSError as error:
        raise RunError(f"{target} cannot be written: {error.strerror}; what was there is kept") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_split(
    partial: pathlib.Path,
    encoder: Encoder,
    params: Params,
    split: data.Split,
    places: np.ndarray,
    key: Any,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for entry, shape in shapes.items():
            files[entry] = stack.enter_context((partial / f"{name}_{entry}.npy").open("wb"))
            header = {"descr": _FLOAT.str, "fortran_order": False, "shape": (len(places), *shape)}
            np.lib.format.write_array_header_1_0(files[entry], header)
        for batch in encoder.batches(stored.select(split.images, places), params, key):
            for layer, codes in enumerate(batch, start=1):
                for kind, array in codes.items():
                    files[f"{kind}_{layer}"].write(np.ascontiguousarray(array, _FLOAT).data)


def _pack(folder: pathlib.Path, target: pathlib.Path) -> None:
    """All arrays in one NPZ file, each removed once it is there."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for file in sorted(folder.glob("*.npy")):
            archive.write(file, file.name)
            file.unlink()
