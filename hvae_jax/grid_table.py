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
from hvae_jax.grid import GridConfig, Member

GRID_FILE, TIMING_FILE = "grid.csv", "timing.csv"
SPLITS = ("valid", "test")
OK, DIVERGED = "ok", "diverged"


def write(folder: pathlib.Path, members: Sequence[Member]) -> None:
    """Writes grid.csv: one row for every model that is complete, from its evaluation.json.

    Times are not in it: the table of a grid that was killed and resumed is the same, byte for byte.
    """
    num_layers = len(members[0].betas)
    columns = ["model", *_numbered("beta_{}", num_layers), "seed", "status"]
    columns += [f"{split}_{name}" for split in SPLITS for name in _metrics(num_layers)]
    rows = []
    for member in members:
        file = member.folder(folder) / records.EVALUATION_FILE
        if file.exists():
            rows.append(_row(member, records.read_json(file)))
    _write_csv(folder / GRID_FILE, columns, rows)


def write_timing(folder: pathlib.Path, numbers: Sequence[int], seconds_per_model: float) -> None:
    """Adds to timing.csv what each of these models took; its rows of an earlier try are replaced."""
    file = folder / TIMING_FILE
    rows = {row["model"]: row for row in _read_csv(file)} if file.exists() else {}
    rows.update({str(n): {"model": str(n), "wall_s": f"{seconds_per_model:.3f}"} for n in numbers})
    _write_csv(file, ["model", "wall_s"], sorted(rows.values(), key=lambda row: int(row["model"])))


def load(folder: str | os.PathLike[str], split: str = "test") -> dict[str, np.ndarray]:
    """A grid's results as arrays over the grid.

    Args:
      folder: the grid's.
      split: "valid" or "test".

    Returns:
      `model`, `seed`, `status`, `distortion_nats`, `elbo_nats`, `bits_per_dim` and `wall_s`, each
      `[n_1, …, n_L, S]`: values of β_1 … β_L, then seeds; for a list of points `[P, S]`. `betas` and
      `rates_nats` have one more axis, the layers, z_1 first. Numbers of models that diverged or are
      not there yet are NaN, their status "diverged" or "".

    Raises:
      RunError: no grid there, or no such split.
    """
    folder = pathlib.Path(folder)
    if split not in SPLITS:
        raise RunError(f"a grid has the splits {SPLITS}, not {split!r}")
    config = records.read_json(folder / records.CONFIG_FILE)
    if "grid" not in config:
        raise RunError(f"{folder} holds a single run, not a grid")
    grid = experiment.build_group("grid", GridConfig, {"grid": _to_tuples(config["grid"])})
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

    num_layers = len(grid.betas) or len(grid.points[0])
    status = [rows.get(n, {}).get("status", "") for n in numbers]
    return {
        "model": np.asarray(numbers).reshape(grid.shape),
        "betas": np.broadcast_to(_betas(grid)[..., None, :], (*grid.shape, num_layers)),
        "seed": np.broadcast_to(np.asarray(grid.seeds), grid.shape),
        "status": np.asarray(status).reshape(grid.shape),
        "distortion_nats": column(f"{split}_distortion_nats"),
        "rates_nats": np.stack(
            [column(f"{split}_{name}") for name in _numbered("rate_{}_nats", num_layers)], axis=-1
        ),
        "elbo_nats": column(f"{split}_elbo_nats"),
        "bits_per_dim": column(f"{split}_bits_per_dim"),
        "wall_s": np.asarray([times.get(n, np.nan) for n in numbers], np.float64).reshape(grid.shape),
    }


def _betas(grid: GridConfig) -> np.ndarray:
    """`[n_1, …, n_L, L]`, or `[P, L]` for a list of points."""
    if grid.points:
        return np.asarray(grid.points, np.float64)
    return np.stack(np.meshgrid(*map(np.asarray, grid.betas), indexing="ij"), axis=-1)


def _row(member: Member, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    row = {"model": member.number, "seed": member.seed, "status": evaluation["status"]}
    row.update({f"beta_{layer}": beta for layer, beta in enumerate(member.betas, start=1)})
    for split in SPLITS:
        summary = evaluation.get(split)
        if not summary:
            continue
        row[f"{split}_distortion_nats"] = summary["distortion_nats"]
        for layer, rate in enumerate(summary["rates_nats"], start=1):
            row[f"{split}_rate_{layer}_nats"] = rate
        row[f"{split}_elbo_nats"] = -summary["negative_elbo_nats"]
        row[f"{split}_bits_per_dim"] = summary["bits_per_dim"]
    return row


def _metrics(num_layers: int) -> list[str]:
    return ["distortion_nats", *_numbered("rate_{}_nats", num_layers), "elbo_nats", "bits_per_dim"]


def _numbered(name: str, num_layers: int) -> list[str]:
    return [name.format(layer) for layer in range(1, num_layers + 1)]


def _write_csv(file: pathlib.Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    records.write_text(file, text.getvalue())


def _read_csv(file: pathlib.Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def _to_tuples(value: Any) -> Any:
    """JSON's lists as the tuples that a config has."""
    if isinstance(value, dict):
        return {name: _to_tuples(entry) for name, entry in value.items()}
    return tuple(map(_to_tuples, value)) if isinstance(value, list) else value
