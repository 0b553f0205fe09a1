"""A grid's results as tables: grid.csv, timing.csv, and both as arrays shaped by the grid."""

import csv
import io
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hvae_jax import experiment, records
from hvae_jax.errors import RunError
from hvae_jax.grid.members import GridConfig, Member

GRID_FILE, TIMING_FILE = "grid.csv", "timing.csv"
# In each model's folder: processes that train other models at the same time do not write the same file.
MODEL_TIMING_FILE = "timing.json"
SPLITS = ("valid", "test")
OK, DIVERGED = "ok", "diverged"


def write(folder: pathlib.Path, members: Sequence[Member]) -> None:
    """Writes grid.csv: one row for every model that is complete, from its evaluation.json; and timing.csv.

    Where targets were asked for, the betas are those found.

    Times are not in the first: the table of a grid that was killed and resumed is the same, byte for byte.
    """
    num_layers, num_targets = len(members[0].betas), len(members[0].targets)
    columns = ["model", *_numbered("target_{}_nats", num_targets), *_numbered("beta_{}", num_layers)]
    columns += ["seed", "status", *_numbered("target_{}_status", num_targets)]
    columns += _numbered("train_rate_{}_nats", num_layers if num_targets else 0)
    columns += [f"{split}_{name}" for split in SPLITS for name in _metrics(num_layers)]
    rows = []
    for member in members:
        file = member.folder(folder) / records.EVALUATION_FILE
        if file.exists():
            rows.append(_row(member, records.read_json(file)))
    _write_csv(folder / GRID_FILE, columns, rows)
    files = {member.number: member.folder(folder) / MODEL_TIMING_FILE for member in members}
    times = {number: records.read_json(file)["wall_s"] for number, file in files.items() if file.exists()}
    rows = [{"model": number, "wall_s": f"{seconds:.3f}"} for number, seconds in times.items()]
    _write_csv(folder / TIMING_FILE, ["model", "wall_s"], rows)


def write_timing(folder: pathlib.Path, members: Sequence[Member], seconds_per_model: float) -> None:
    """Notes in the models' folders what each took; `write` collects it."""
    for member in members:
        records.write_json(member.folder(folder) / MODEL_TIMING_FILE, {"wall_s": seconds_per_model})


def load(folder: str | os.PathLike[str], split: str = "test") -> dict[str, np.ndarray]:
    """A grid's results as arrays over the grid.

    Args:
      folder: the grid's.
      split: "valid" or "test".

    Returns:
      `model`, `seed`, `status`, `distortion_nats`, `elbo_nats`, `bits_per_dim` and `wall_s`, each
      `[n_1, …, n_L, S]`: values of β_1 … β_L, then seeds; for a list of points `[P, S]`. `betas` and
      `rates_nats` have one more axis, the layers, z_1 first. Numbers of models that diverged or are
      not there yet are NaN, their status "diverged" or "". A grid over targets has `targets_nats`, the
      betas found, and `train_rates_nats`, the rates that the targets are about.

    Raises:
      RunError: no grid there, or no such split.
    """
    folder = pathlib.Path(folder)
    if split not in SPLITS:
        raise RunError(f"a grid has the splits {SPLITS}, not {split!r}")
    config = records.read_json(folder / records.CONFIG_FILE)
    if "grid" not in config:
        raise RunError(f"{folder} holds a single run, not a grid")
    grid = experiment.build_group("grid", GridConfig, experiment.with_tuples(config))
    if not (folder / GRID_FILE).exists():
        raise RunError(f"{folder / GRID_FILE} does not exist: no model of the grid is complete")
    rows = {int(row["model"]): row for row in _read_csv(folder / GRID_FILE)}
    timing_file = folder / TIMING_FILE
    times = (
        {int(row["model"]): row["wall_s"] for row in _read_csv(timing_file)} if timing_file.exists() else {}
    )
    numbers = range(math.prod(grid.shape))

    def column(name: str) -> np.ndarray:
        values = [rows.get(n, {}).get(name) or np.nan for n in numbers]
        return np.asarray(values, np.float64).reshape(grid.shape)

    num_layers = len(config["model"]["latent_shapes"])
    vectors = np.asarray(grid.vectors).reshape(*grid.shape[:-1], 1, -1)
    vectors = np.broadcast_to(vectors, (*grid.shape, vectors.shape[-1]))

    def per_layer(name: str) -> np.ndarray:
        return np.stack([column(layer) for layer in _numbered(name, num_layers)], axis=-1)

    asked: dict[str, np.ndarray] = {"betas": vectors}
    if grid.has_targets:
        asked = {"targets_nats": vectors, "betas": per_layer("beta_{}")}
        asked["train_rates_nats"] = per_layer("train_rate_{}_nats")
    status = [rows.get(n, {}).get("status", "") for n in numbers]
    return {
        "model": np.asarray(numbers).reshape(grid.shape),
        **asked,
        "seed": np.broadcast_to(np.asarray(grid.seeds), grid.shape),
        "status": np.asarray(status).reshape(grid.shape),
        "distortion_nats": column(f"{split}_distortion_nats"),
        "rates_nats": per_layer(f"{split}_rate_{{}}_nats"),
        "elbo_nats": column(f"{split}_elbo_nats"),
        "bits_per_dim": column(f"{split}_bits_per_dim"),
        "wall_s": np.asarray([times.get(n, np.nan) for n in numbers], np.float64).reshape(grid.shape),
    }


def _row(member: Member, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    row = {"model": member.number, "seed": member.seed, "status": evaluation["status"]}
    betas = evaluation.get("betas", () if member.targets else member.betas)
    row.update(_by_layer("beta_{}", betas))
    row.update(_by_layer("target_{}_nats", member.targets))
    row.update(_by_layer("target_{}_status", evaluation.get("target_status", ())))
    row.update(_by_layer("train_rate_{}_nats", evaluation.get("train_rates_nats", ())))
    for split in SPLITS:
        summary = evaluation.get(split)
        if not summary:
            continue
        row[f"{split}_distortion_nats"] = summary["distortion_nats"]
        row.update(_by_layer(f"{split}_rate_{{}}_nats", summary["rates_nats"]))
        row[f"{split}_elbo_nats"] = -summary["negative_elbo_nats"]
        row[f"{split}_bits_per_dim"] = summary["bits_per_dim"]
    return row


def _metrics(num_layers: int) -> list[str]:
    return ["distortion_nats", *_numbered("rate_{}_nats", num_layers), "elbo_nats", "bits_per_dim"]


def _by_layer(name: str, values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(_numbered(name, len(values)), values, strict=True))


def _numbered(name: str, num_layers: int) -> list[str]:
    return [name.format(layer) for layer in range(1, num_layers + 1)]


def _write_csv(file: pathlib.Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    records.write_text(file, text.getvalue())


def _read_csv(file: pathlib.Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))
