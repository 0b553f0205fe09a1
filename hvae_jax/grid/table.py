"""A grid's results as tables: grid.csv, timing.csv, and both as arrays shaped by the grid."""

import csv
import io
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.evaluation.metrics import Rates, Reached, RunEvaluation
from hvae_jax.grid import folders
from hvae_jax.grid.members import Member
from hvae_jax.groups import Groups
from hvae_jax.objective_config import ObjectiveConfig

TIMING_FILE = "timing.csv"
# In each model's folder: processes that train other models at the same time do not write the same file.
MODEL_TIMING_FILE = "timing.json"
SPLITS = ("valid", "test")
OK, DIVERGED = "ok", "diverged"
# The control whose target is no rate.
DISTORTION = "target_distortion"


def write(folder: pathlib.Path, members: Sequence[Member], num_dims: int) -> None:
    """Writes grid.csv: one row for every model that is complete, from its evaluation.json; and timing.csv.

    Where targets were asked for, they are in nats per layer whatever the config says them in (a total rate
    is split, a layer without a target has none), or the distortion; the betas are those found. Where layers
    share betas, betas, targets and rates of the training split are those of the groups.

    Times are not in the first: the table of a grid that was killed and resumed is the same, byte for byte.

    Args:
      folder: of the grid.
      members: all of its models, with the numbers of their folders.
      num_dims: H · W · C, for targets in bits per dimension.
    """
    columns = _columns(members[0].objective, members[0].groups)
    found = ((member, folders.read_evaluation(folder, member)) for member in members)
    rows = [_row(folder, member, one, num_dims) for member, one in found if one is not None]
    cells = ([cell(row) for cell in columns.values()] for row in rows)
    _write_csv(folder / records.GRID_FILE, list(columns), cells)
    times = []
    for member in members:
        seconds = (folders.read_whole(member.folder(folder) / MODEL_TIMING_FILE) or {}).get("wall_s")
        if isinstance(seconds, int | float):  # a damaged one is left out
            times.append((member.number, f"{seconds:.3f}"))
    _write_csv(folder / TIMING_FILE, ["model", "wall_s"], times)


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
      `model` (the number of its folder), `seed`, `status`, `distortion_nats`, `elbo_nats`, `bits_per_dim`
      and `wall_s`, each `[n_1, …, n_L, S]`: values of β_1 … β_L, then seeds; for a list of points `[P, S]`.
      `betas` and `rates_nats` have one more axis, the layers, z_1 first. Numbers of models that diverged or
      are not there yet are NaN, their status "diverged" or "". Where layers share betas, `betas`, all of
      targets and `train_rates_nats` have the axis of the groups instead, G for L, and so has
      `group_rates_nats`.

      Where the grid solves for the betas, `betas` are those found, and `start_betas` those that the control
      started from. With them come, of target rates, `targets_nats` (a layer's share of a total rate; NaN
      without a target), `target_status` (words of `evaluation.targets.target_status`, "" where there is no
      number yet) and `train_rates_nats`, the rates that the targets are about, each with the axis of the
      layers; of target distortions `target_distortion_nats`, `target_distortion_status` and
      `train_distortion_nats` without it.

    Raises:
      RunError: no grid there, a damaged one, or no such split.
    """
    folder = pathlib.Path(folder)
    if split not in SPLITS:
        raise RunError(f"a grid has the splits {SPLITS}, not {split!r}")
    grid, members = folders.read(folder)
    if not (folder / records.GRID_FILE).exists():
        raise RunError(f"{folder / records.GRID_FILE} does not exist: no model of the grid is complete")
    rows = {int(row["model"]): row for row in read_csv(folder / records.GRID_FILE)}
    timing_file = folder / TIMING_FILE
    times = (
        {int(row["model"]): row["wall_s"] for row in read_csv(timing_file)} if timing_file.exists() else {}
    )
    numbers = [member.number for member in members]

    def numeric(values: Sequence[str | float | None]) -> np.ndarray:
        try:
            return np.asarray([value or np.nan for value in values], np.float64).reshape(grid.shape)
        except ValueError as error:
            raise _damaged(folder / records.GRID_FILE) from error

    def column(name: str) -> np.ndarray:
        return numeric([rows.get(n, {}).get(name) for n in numbers])

    def words(name: str) -> np.ndarray:
        return np.asarray([rows.get(n, {}).get(name) or "" for n in numbers]).reshape(grid.shape)

    objective, groups = members[0].objective, members[0].groups
    num_betas = len(groups)

    def layers(name: str, values: Callable[[str], np.ndarray] = column, num: int = num_betas) -> np.ndarray:
        return np.stack([values(layer) for layer in _numbered(name, num)], axis=-1)

    betas = np.asarray([member.betas for member in members], np.float64).reshape(*grid.shape, num_betas)
    asked = {"betas": betas}
    if objective.control != "constant":
        asked = {"betas": layers("beta_{}"), "start_betas": betas}
    if objective.control == DISTORTION:
        asked["target_distortion_nats"] = _targets(members, grid.shape, [column("target_distortion_nats")])[
            ..., 0
        ]
        asked["target_distortion_status"] = words("target_distortion_status")
        asked["train_distortion_nats"] = column("train_distortion_nats")
    elif objective.control != "constant":
        of_layers = [column(name) for name in _numbered("target_{}_nats", num_betas)]
        asked["targets_nats"] = _targets(members, grid.shape, of_layers)
        asked["target_status"] = layers("target_{}_status", words)
        asked["train_rates_nats"] = layers("train_rate_{}_nats")
    rates = layers(f"{split}_rate_{{}}_nats", num=groups.num_layers)
    return {
        "model": np.asarray(numbers).reshape(grid.shape),
        **asked,
        "seed": np.broadcast_to(np.asarray(grid.seeds), grid.shape),
        "status": words("status"),
        "distortion_nats": column(f"{split}_distortion_nats"),
        "rates_nats": rates,
        **({} if groups.are_layers else {"group_rates_nats": groups.sum(rates)}),
        "elbo_nats": column(f"{split}_elbo_nats"),
        "bits_per_dim": column(f"{split}_bits_per_dim"),
        "wall_s": numeric([times.get(n) for n in numbers]),
    }


class _Row(NamedTuple):
    """A complete model in grid.csv; what does not come of its evaluation is None, or has no entries."""

    member: Member
    status: str
    targets_nats: Sequence[float | None]
    target_status: Sequence[str]
    betas: Sequence[float]
    train: Reached | None
    splits: Mapping[str, Rates | None]

    @property
    def train_rates_nats(self) -> Sequence[float]:
        return self.train.rates_nats.value if self.train else ()


def _row(folder: pathlib.Path, member: Member, evaluation: RunEvaluation, num_dims: int) -> _Row:
    groups, targets, report = member.groups, _resolve(member.objective, num_dims), evaluation.targets
    splits = {split: getattr(evaluation, split) for split in SPLITS}
    row = _Row(
        member,
        evaluation.status or OK,  # `experiments.run` in a model's folder leaves none
        targets,
        report.target_status if report else (),
        report.betas if report else () if targets else member.betas,
        report.train if report else None,
        splits,
    )
    per_layer = [of_split.rates_nats.value for of_split in splits.values() if of_split]
    fits = (
        all(len(rates) == groups.num_layers for rates in per_layer)
        and all(len(numbers) in (0, len(groups)) for numbers in (row.betas, row.train_rates_nats))
        and len(row.target_status) in (0, len(targets))
    )
    if not fits:
        raise folders.not_of_this_grid(folder, member, f"it is not of {groups.num_layers} layers")
    return row


def _columns(objective: ObjectiveConfig, groups: Groups) -> dict[str, Callable[[_Row], Any]]:
    """The columns of grid.csv, and the cell of a row in each."""
    names, num_betas = _target_names(objective, len(groups)), len(groups)
    columns: dict[str, Callable[[_Row], Any]] = {"model": lambda row: row.member.number}
    columns |= _each([f"{name}_nats" for name in names], lambda row: row.targets_nats)
    columns |= _each(_numbered("beta_{}", num_betas), lambda row: row.betas)
    columns |= {"seed": lambda row: row.member.seed, "status": lambda row: row.status}
    columns |= _each([f"{name}_status" for name in names], lambda row: row.target_status)
    if objective.control == DISTORTION:
        columns["train_distortion_nats"] = lambda row: row.train and row.train.distortion_nats.value
    if names:
        columns |= _each(_numbered("train_rate_{}_nats", num_betas), lambda row: row.train_rates_nats)
    for split in SPLITS:
        columns |= _split_columns(split, groups.num_layers)
    return columns


def _split_columns(split: str, num_layers: int) -> dict[str, Callable[[_Row], Any]]:
    def cell(number: Callable[[Rates], float]) -> Callable[[_Row], float | None]:
        return lambda row: None if (rates := row.splits[split]) is None else number(rates)

    def rates_nats(row: _Row) -> Sequence[float]:
        rates = row.splits[split]
        return rates.rates_nats.value if rates else ()

    return {
        f"{split}_distortion_nats": cell(lambda rates: rates.distortion_nats.value),
        **_each(_numbered(f"{split}_rate_{{}}_nats", num_layers), rates_nats),
        f"{split}_elbo_nats": cell(lambda rates: -rates.negative_elbo_nats.value),
        f"{split}_bits_per_dim": cell(lambda rates: rates.bits_per_dim),
    }


def _each(names: Sequence[str], values: Callable[[_Row], Sequence[Any]]) -> dict[str, Callable[[_Row], Any]]:
    """Columns of as many values; their cells are empty where a row has none."""
    return {
        name: lambda row, place=place: values(row)[place] if values(row) else None
        for place, name in enumerate(names)
    }


def _target_names(objective: ObjectiveConfig, num_layers: int) -> list[str]:
    """What the columns of the targets are called, before `_nats` and `_status`."""
    if objective.control == "constant":
        return []
    return [DISTORTION] if objective.control == DISTORTION else _numbered("target_{}", num_layers)


def _resolve(objective: ObjectiveConfig, num_dims: int) -> list[float | None]:
    """The targets in nats; None for a layer without one."""
    targets = objective.resolve_targets(num_dims)
    if objective.control in ("constant", DISTORTION):
        return list(targets)
    return [
        None if kind == "free" else target for kind, target in zip(objective.kinds(), targets, strict=True)
    ]


def _targets(members: Sequence[Member], shape: Sequence[int], written: Sequence[np.ndarray]) -> np.ndarray:
    """Every model's targets, `[…, number of targets]`: as written, else from the model's config.

    In bits per dimension they are known only once there is a row: that was written by who knew the images.
    """
    values = np.stack(written, axis=-1).reshape(len(members), -1)
    for own, member in zip(values, members, strict=True):
        if not np.isfinite(own).any() and not member.objective.targets_bits_per_dim:
            own[:] = [np.nan if target is None else target for target in _resolve(member.objective, 1)]
    return values.reshape(*shape, -1)


def _numbered(name: str, num_layers: int) -> list[str]:
    return [name.format(layer) for layer in range(1, num_layers + 1)]


def _write_csv(file: pathlib.Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    records.write_text(file, text.getvalue())


def read_csv(file: pathlib.Path) -> list[dict[str, str]]:
    """Its rows.

    Raises:
      RunError: it was cut, or is something else.
    """
    try:
        text = file.read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text)))
        whole = text.endswith("\n") and text.startswith("model,")
        if not whole or not all(row["model"].isdigit() and None not in row.values() for row in rows):
            raise _damaged(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _damaged(file) from error
    return rows


def _damaged(file: pathlib.Path) -> RunError:
    return RunError(f"{file} is damaged; the command that trained the grid writes it anew from its models")
