"""The run folder: config.json, versions.json, rates.jsonl, and what evaluation adds to them."""

import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping
from typing import Any, SupportsFloat

import jax
import numpy as np
from numpy.typing import ArrayLike

from hvae_jax.errors import RunError
from hvae_jax.objective import bits_per_dim

CONFIG_FILE, VERSIONS_FILE, RATES_FILE = "config.json", "versions.json", "rates.jsonl"
EVALUATION_FILE = "evaluation.json"
DATA_FILE = "data.json"
CHECKPOINTS_FOLDER, FIGURES_FOLDER = "checkpoints", "figures"
_PACKAGES = ("hvae_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy")


def open_run(folder: str | os.PathLike[str], config: Mapping[str, Any]) -> pathlib.Path:
    """Makes the run folder, or opens one that holds the same config.

    Args:
      folder: created with its parents where absent.
      config: nested groups of plain values, written to config.json.

    Raises:
      RunError: the folder holds another config, is a file, or cannot be written.
    """
    folder = pathlib.Path(folder)
    config = json.loads(json.dumps(config))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / CONFIG_FILE
        if file.exists():
            _refuse_other_config(folder, read_json(file), config)
        else:
            write_json(folder / VERSIONS_FILE, _versions())
            write_json(file, config)  # last: a folder that has it is complete
    except (FileExistsError, NotADirectoryError) as error:
        raise RunError(f"--workdir={folder} must be a folder, but {error.filename} is a file") from error
    except OSError as error:
        raise RunError(f"--workdir={folder} cannot be used: {error.strerror}: {error.filename}") from error
    return folder


def check_data(folder: str | os.PathLike[str], described: Mapping[str, Any]) -> None:
    """Compares what data.json says of the data under a folder with what they are now.

    Args:
      folder: of a run; one without data.json, of version 0.1.0, is not checked.
      described: `Dataset.describe()`.

    Raises:
      RunError: they differ.
    """
    file = pathlib.Path(folder) / DATA_FILE
    if not file.exists():
        return
    stored = read_json(file)["splits"]
    for name, split in described["splits"].items():
        if stored[name] != split:
            raise RunError(
                f"the data of {folder} changed: the {name} split had {stored[name]['num_images']} images "
                f"({stored[name]['fingerprint']}), now it has {split['num_images']} ({split['fingerprint']})"
            )


def read_json(file: pathlib.Path) -> Any:
    """The file's content.

    Raises:
      RunError: absent, or not JSON.
    """
    try:
        return json.loads(file.read_text())
    except FileNotFoundError as error:
        raise RunError(f"{file} does not exist") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{file} is damaged ({error}); restore it or use another folder") from error


def write_json(file: pathlib.Path, content: Any) -> None:
    """Writes the whole file or nothing: an interrupted write leaves the old content."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def write_text(file: pathlib.Path, text: str) -> None:
    """Writes the whole file or nothing.

    Raises:
      RunError: no space, or no permission.
    """
    partial = file.with_name(file.name + ".partial")
    try:
        partial.write_text(text)
        os.replace(partial, file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(
            f"{file} cannot be written: {error.strerror}; what was there before is kept"
        ) from error


def rate_row(
    *,
    step: int,
    split: str,
    loss: SupportsFloat,
    distortion: SupportsFloat,
    rates: ArrayLike,
    betas: ArrayLike,
    num_dims: int,
    epoch: float | None = None,
    grad_norm: float | None = None,
    images_per_s: float | None = None,
) -> dict[str, Any]:
    """One line of rates.jsonl: means over an interval of training, or over a whole split.

    Args:
      step: optimiser steps done.
      split: "train", "valid" or "test".
      loss: D + Σ β_l R_l, nats.
      distortion: D, nats.
      rates: R_1 … R_L, nats.
      betas: β_1 … β_L in force at the end of the interval.
      num_dims: H · W · C, for `bits_per_dim`, which is always at β = 1.
      epoch: passes over the training split done; None where a project does not count them.
      grad_norm: global norm before clipping; None where it is not known, as for a split that is not
        trained on.
      images_per_s: throughput; None where it is not measured.

    Raises:
      ValueError: not one beta for each rate.

    Example:
      >>> means = {"loss": 9.0, "distortion": 5.0, "rates": [1.0, 1.5], "betas": [1.0, 2.0]}
      >>> row = rate_row(step=10, split="train", num_dims=64, **means)
      >>> row["rates_nats"], round(row["bits_per_dim"], 4)
      ([1.0, 1.5], 0.1691)
    """
    rates, betas = np.asarray(rates), np.asarray(betas)
    if rates.ndim != 1 or rates.shape != betas.shape:
        raise ValueError(f"rates and betas must both be [L], got {rates.shape} and {betas.shape}")
    return {
        "step": int(step),
        "epoch": None if epoch is None else round(epoch, 6),
        "split": split,
        "loss_nats": float(loss),
        "distortion_nats": float(distortion),
        "rates_nats": [float(rate) for rate in rates],
        "betas": [float(beta) for beta in betas],
        "bits_per_dim": float(bits_per_dim(float(distortion) + float(rates.sum()), num_dims)),
        "grad_norm": None if grad_norm is None else float(grad_norm),
        "images_per_s": None if images_per_s is None else round(images_per_s, 1),
    }


class RateLog:
    """Appends rows to a folder's rates.jsonl; it needs nothing else of a run folder.

    Example:
      >>> import tempfile
      >>> folder = tempfile.mkdtemp()
      >>> log = RateLog(folder)
      >>> means = {"loss": 6.0, "distortion": 5.0, "rates": [1.0], "betas": [1.0]}
      >>> for step in (10, 20):
      ...     log.append(rate_row(step=step, split="train", num_dims=64, **means))
      >>> load(folder)["step"].tolist()
      [10, 20]
    """

    def __init__(self, folder: str | os.PathLike[str], resume_step: int | None = None) -> None:
        """Opens or begins the log.

        Args:
          folder: created with its parents where absent.
          resume_step: rows past it are dropped, the resumed run writes them again; None keeps all.

        Raises:
          RunError: the folder cannot be made, or its log is damaged.
        """
        self._file = pathlib.Path(folder) / RATES_FILE
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder} cannot be used: {error.strerror}: {error.filename}") from error
        if self._file.exists():
            rows = _read_rows(self._file)
            kept = [json.dumps(row) for row in rows if resume_step is None or row["step"] <= resume_step]
            write_text(self._file, "".join(line + "\n" for line in kept))

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row, at once.

        Raises:
          RunError: no space, or no permission.
        """
        try:
            with self._file.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunError(
                f"{self._file} cannot be written: {error.strerror}; make room and run the same command "
                "again: it resumes from the last checkpoint"
            ) from error


class TensorBoard:
    """Writes rows to a folder as TensorBoard scalars, under the names of the rate log."""

    def __init__(self, folder: pathlib.Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise RunError('--tensorboard needs tensorboardX: pip install -e ".[tensorboard]"') from error
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def report(self, row: Mapping[str, Any]) -> None:
        """Writes one row; a list becomes one scalar per layer."""
        for name, value in row.items():
            if name in ("step", "epoch", "split") or value is None:
                continue
            if isinstance(value, list):
                for layer, entry in enumerate(value, start=1):
                    self._writer.add_scalar(f"{row['split']}/{name}_{layer}", entry, row["step"])
            else:
                self._writer.add_scalar(f"{row['split']}/{name}", value, row["step"])

    def close(self) -> None:
        """Writes what is still queued."""
        self._writer.close()


def load(folder: str | os.PathLike[str], split: str = "train") -> dict[str, np.ndarray]:
    """A run's rate log as arrays, one entry per logged interval.

    Args:
      folder: the run folder.
      split: "train", "valid" or "test".

    Returns:
      Each field of the log, `[T]`; `rates_nats` and `betas` are `[T, L]`, layer l in column l − 1.

    Raises:
      RunError: no log there, or no row of that split.
    """
    file = pathlib.Path(folder) / RATES_FILE
    if not file.exists():
        raise RunError(f"{file} does not exist: {folder} holds no rate log")
    rows = [row for row in _read_rows(file) if row["split"] == split]
    if not rows:
        raise RunError(f"{file} has no row of split {split!r}")
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        columns[name] = np.asarray([np.nan if value is None else value for value in values])
    return columns


def _read_rows(file: pathlib.Path) -> list[dict[str, Any]]:
    rows = []
    lines = file.read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break  # the process was killed while it wrote this row
            raise RunError(f"{file} is damaged in line {number}: {error}") from error
    return rows


def _refuse_other_config(folder: pathlib.Path, old: Any, new: Any) -> None:
    old, new = _flatten(old), _flatten(new)
    differences = [
        f"{name} is {old.get(name, 'absent')} there and {new.get(name, 'absent')} here"
        for name in sorted({*old, *new})
        if old.get(name, None) != new.get(name, None) or (name in old) != (name in new)
    ]
    if differences:
        raise RunError(
            f"--workdir={folder} already holds a run with another config: "
            f"config.{'; config.'.join(differences)}. Give another --workdir, or the same config to resume it"
        )


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flatten(value, f"{prefix}.{name}" if prefix else name))
    return flat


def _versions() -> dict[str, Any]:
    versions: dict[str, Any] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
            versions[package] = None
    versions["platform"] = jax.default_backend()
    versions["devices"] = [device.device_kind for device in jax.devices()]
    return versions
