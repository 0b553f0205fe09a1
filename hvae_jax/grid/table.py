"""A grid's results as tables: grid.csv, timing.csv, and both as arrays shaped by the grid."""

import csv
import io
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.grid import folders
from hvae_jax.grid.members import Member
from hvae_jax.objective_config import ObjectiveConfig

GRID_FILE, TIMING_FILE = "grid.csv", "timing.csv"
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
    groups, objective = members[0].groups, members[0].objective
    targets = _target_names(objective, len(groups))
    columns = ["model", *(f"{name}_nats" for name in targets), *_numbered("beta_{}", len(groups))]
    columns += ["seed", "status", *(f"{name}_status" for name in targets)]
    columns += ["train_distortion_nats"] if objective.control == DISTORTION else []
    columns += _numbered("train_rate_{}_nats", len(groups) if targets else 0)
    columns += [f"{split}_{name}" for split in SPLITS for name in _metrics(groups.num_layers)]
    rows = []
    for member in members:
        evaluation = folders.read_evaluation(folder, member)
        if evaluation is not None:
            rows.append(_row(folder, member, evaluation, num_dims))
    _write_csv(folder / GRID_FILE, columns, rows)
    rows = []
    for member in members:
        seconds = (folders.read_whole(member.folder(folder) / MODEL_TIMING_FILE) or {}).get("wall_s")
        if isinstance(seconds, int | float):  # a damaged one is left out
            rows.append({"model": member.number, "wall_s": f"{seconds:.3f}"})
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
    if not (folder / GRID_FILE).exists():
        raise RunError(f"{folder / GRID_FILE} does not exist: no model of the grid is complete")
    rows = {int(row["model"]): row for row in _read_csv(folder / GRID_FILE)}
    timing_file = folder / TIMING_FILE
    times = (
        {int(row["model"]): row["wall_s"] for row in _read_csv(timing_file)} if timing_file.exists() else {}
    )
    numbers = [member.number for member in members]

    def numeric(values: Sequence[str | float | None]) -> np.ndarray:
        try:
            return np.asarray([value or np.nan for value in values], np.float64).reshape(grid.shape)
        except ValueError as error:
            raise _damaged(folder / GRID_FILE) from error

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


def _row(
    folder: pathlib.Path, member: Member, evaluation: Mapping[str, Any], num_dims: int
) -> dict[str, Any]:
    objective = member.objective
    names = _target_names(objective, len(member.betas))
    # `experiments.run` in a model's folder leaves an evaluation without a status.
    row = {"model": member.number, "seed": member.seed, "status": evaluation.get("status", OK)}
    try:
        row.update(_by_layer("beta_{}", evaluation.get("betas", () if names else member.betas)))
        targets = _resolve(objective, num_dims)
        row.update({f"{name}_nats": target for name, target in zip(names, targets, strict=True)})
        status = evaluation.get("target_status", [None] * len(names))
        row.update({f"{name}_status": word for name, word in zip(names, status, strict=True)})
        row.update(_by_layer("train_rate_{}_nats", evaluation.get("train_rates_nats", ())))
        if objective.control == DISTORTION:
            row["train_distortion_nats"] = evaluation.get("train_distortion_nats")
        for split in SPLITS:
            summary = evaluation.get(split)
            if not summary:
                continue
            row[f"{split}_distortion_nats"] = summary["distortion_nats"]
            row.update(_by_layer(f"{split}_rate_{{}}_nats", summary["rates_nats"]))
            row[f"{split}_elbo_nats"] = -summary["negative_elbo_nats"]
            row[f"{split}_bits_per_dim"] = summary["bits_per_dim"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        file = member.folder(folder) / records.EVALUATION_FILE
        raise RunError(
            f"{file} is not the evaluation of a model of this grid ({error!r}); delete it: the same command "
            "evaluates the model again"
        ) from error
    return row


def _target_names(objective: ObjectiveConfig, num_layers: int) -> list[str]:
    """What the columns of the targets are called, before `_nats` and `_status`."""
    if objective.control == "constant":
        return []
    return ["target_distortion"] if objective.control == DISTORTION else _numbered("target_{}", num_layers)


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
