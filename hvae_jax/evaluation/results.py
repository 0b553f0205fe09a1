"""What an evaluation leaves on disk: metrics.json and pictures.npz per run, one table for a grid."""

import csv
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.evaluation.applications import Evaluation

METRICS_FILE, PICTURES_FILE = "metrics.json", "pictures.npz"
TABLE_FILE, GRID_FILE, MODELS_FOLDER = "evaluation.csv", "grid.csv", "models"


class Evaluated(NamedTuple):
    """One evaluated model.

    Attributes:
      name: of its folder in a grid, "run" for a run of its own.
      folder: its run folder.
      betas: β_1 … β_L.
      seed: of its training.
      metrics: content of metrics.json.
    """

    name: str
    folder: pathlib.Path
    betas: tuple[float, ...]
    seed: int
    metrics: dict[str, Any]

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.betas)

    def rates(self, split: str = "test") -> np.ndarray:
        """R_1 … R_L, nats."""
        return np.asarray(self.metrics["rates"][split]["rates_nats"])

    def value(self, application: str, split: str = "test") -> float:
        """The number that stands for an application."""
        return self.metrics["applications"][split][application]["value"]

    def pictures(self) -> dict[str, np.ndarray]:
        """Content of pictures.npz."""
        with np.load(self.folder / PICTURES_FILE) as arrays:
            return dict(arrays)


class Runs(NamedTuple):
    """The run folders below a folder.

    Attributes:
      folders: those that can be evaluated, in order.
      is_grid: whether they are the models of a grid.
      num_left_out: models of the grid that diverged or are not trained yet.
    """

    folders: list[pathlib.Path]
    is_grid: bool
    num_left_out: int


def find_runs(folder: str | os.PathLike[str]) -> Runs:
    """The run in `folder`, or the models of the grid in it.

    Raises:
      RunError: neither is there.
    """
    folder = pathlib.Path(folder)
    models = folder / MODELS_FOLDER
    if models.is_dir():
        diverged = _diverged(folder / GRID_FILE)
        present = sorted(entry for entry in models.iterdir() if entry.is_dir())
        ready = [f for f in present if f.name not in diverged and latest_step(f) is not None]
        if not ready:
            raise RunError(f"--workdir={folder} is a grid without a finished model; train it first")
        return Runs(ready, True, len(present) - len(ready))
    if not (folder / records.CONFIG_FILE).is_file():
        raise RunError(
            f"--workdir={folder} holds neither a run ({records.CONFIG_FILE}) nor a grid ({MODELS_FOLDER}/)"
        )
    if latest_step(folder) is None:
        raise RunError(f"--workdir={folder} has no checkpoint yet; train it first")
    return Runs([folder], False, 0)


def latest_step(folder: pathlib.Path) -> int | None:
    """The newest step that a run saved, by the names of its checkpoints; None where there is none."""
    checkpoints = folder / records.CHECKPOINTS_FOLDER
    names = [entry.name for entry in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=None)


def load(folder: pathlib.Path, is_grid: bool) -> Evaluated:
    """An evaluated run.

    Raises:
      RunError: it was not evaluated, or its files are damaged.
    """
    config = records.read_json(folder / records.CONFIG_FILE)
    metrics = records.read_json(folder / METRICS_FILE)
    name = folder.name if is_grid else "run"
    evaluation = folder / records.EVALUATION_FILE
    found = records.read_json(evaluation).get("betas") if evaluation.exists() else None  # asked for by rates
    betas = tuple(map(float, found or config["objective"]["betas"]))
    return Evaluated(name, folder, betas, int(config["training"]["seed"]), metrics)


def is_current(folder: pathlib.Path, settings: Mapping[str, Any]) -> bool:
    """Whether a run was already evaluated with these settings, among them its newest step."""
    file = folder / METRICS_FILE
    return file.exists() and records.read_json(file).get("settings") == dict(settings)


def save(folder: pathlib.Path, evaluation: Evaluation, settings: Mapping[str, Any]) -> None:
    """Writes pictures.npz, then metrics.json: a folder that has the second is complete.

    Raises:
      RunError: no space, or no permission.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **evaluation.pictures)  # type: ignore[arg-type]
    file = folder / PICTURES_FILE
    partial = file.with_name(file.name + ".partial")
    try:
        partial.write_bytes(buffer.getvalue())
        os.replace(partial, file)
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error.strerror}") from error
    records.write_json(folder / METRICS_FILE, {"settings": dict(settings), **evaluation.metrics})


def write_table(folder: pathlib.Path, models: Sequence[Evaluated]) -> None:
    """Writes evaluation.csv: one row per model, every metric a column named by its place in metrics.json."""
    rows = [
        {
            "model": model.name,
            **{f"beta_{layer}": beta for layer, beta in enumerate(model.betas, start=1)},
            "seed": model.seed,
            **flatten({name: value for name, value in model.metrics.items() if name != "settings"}),
        }
        for model in models
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    records.write_text(folder / TABLE_FILE, text.getvalue())


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists to one level, names joined by dots; entries of lists count from 1."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree, start=1)
    else:
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, value in items:
        flat.update(flatten(value, f"{prefix}.{name}" if prefix else str(name)))
    return flat


def _diverged(table: pathlib.Path) -> set[str]:
    if not table.exists():
        return set()
    with table.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.get("status") == "diverged"]
    return {row["model"].zfill(4) for row in rows}  # the table counts, folders have four digits
