"""The rate log of a run, rates.jsonl: one row per logged interval, and per pass over the validation split."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
from numpy.typing import ArrayLike

from hvae_jax.errors import RunError
from hvae_jax.files import read_text, write_text
from hvae_jax.objective import bits_per_dim

RATES_FILE = "rates.jsonl"


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
    num_skipped: int | None = None,
    monte_carlo_rates: Sequence[int] = (),
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
      num_skipped: steps of the run so far that were left out for their gradient's norm; None leaves out the
        field, where no step may be.
      monte_carlo_rates: layers whose rate is a Monte Carlo estimate, not an analytic KL; where there are none
        there is no such field.

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
    row = {
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
    if num_skipped is not None:
        row["num_skipped"] = num_skipped
    return {**row, "monte_carlo_rates": [*monte_carlo_rates]} if monte_carlo_rates else row


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

    def __init__(
        self,
        folder: str | os.PathLike[str],
        resume_step: int | None = None,
        keep: Callable[[Mapping[str, Any]], bool] = lambda row: True,
        is_complete: bool = False,
    ) -> None:
        """Opens or begins the log.

        Args:
          folder: created with its parents where absent.
          resume_step: rows past it are dropped, the resumed run writes them again; None keeps all.
          keep: rows of which it says no are dropped, too.
          is_complete: whether there must be a row of `resume_step`: that of a run that logged up to it.

        Raises:
          RunError: the folder cannot be made, or its log is damaged or lacks rows.
        """
        self._file = pathlib.Path(folder) / RATES_FILE
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{folder} cannot be used: {error.strerror}: {error.filename}") from error
        rows = _read_rows(self._file) if self._file.exists() else []
        if is_complete and not any(row["step"] == resume_step and row["split"] == "train" for row in rows):
            last = max((row["step"] for row in rows), default=None)
            found = "has no rows" if last is None else f"ends at step {last}"
            raise RunError(
                f"{self._file} {found}, but the run had logged step {resume_step}: rows are missing; restore "
                f"the file, or delete {self._file.parent / 'checkpoints'} to train again"
            )
        kept = [
            json.dumps(row)
            for row in rows
            if (resume_step is None or row["step"] <= resume_step) and keep(row)
        ]
        text = "".join(line + "\n" for line in kept)
        if self._file.exists() and text != read_text(self._file):
            write_text(self._file, text)

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one row, at once.

        Raises:
          RunError: no space, or no permission.
        """
        try:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise RunError(
                f"{self._file} cannot be written: {error.strerror}; make room and run the same command "
                "again: it resumes from the last checkpoint"
            ) from error


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
        if not all(name in row for row in rows):
            raise RunError(f"{file} has rows of split {split!r} without {name!r}: it is not one rate log")
        values = [row[name] for row in rows]
        columns[name] = np.asarray([np.nan if value is None else value for value in values])
    return columns


def _read_rows(file: pathlib.Path) -> list[dict[str, Any]]:
    rows = []
    lines = read_text(file).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break  # the process was killed while it wrote this row
            raise RunError(f"{file} is damaged in line {number}: {error}") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int) or "split" not in row:
            raise RunError(
                f"{file} is not a rate log: line {number} has no step and split; move the file away"
            )
        rows.append(row)
    return rows
