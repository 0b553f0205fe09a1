"""The rows that experiments.targets_table writes: read back, checked, and asked what made them."""

import dataclasses
import importlib.metadata
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.evaluation import settings, targets
from hvae_jax.evaluation.plain import Estimates, from_plain, to_plain
from hvae_jax.figures import targets as figures

# Controls that train anew with betas that were found.
REFITS = ("found_betas", "found_betas_same_seed")
# How near the rates of a model have to be, by its control; on the test split two standard errors more.
WITHIN = {"target_rates": targets.TOLERANCE, "pi": targets.TOLERANCE, **dict.fromkeys(REFITS, 0.03)}
# What the table sets itself, and what decides no number.
_SET = {
    "model": ("inference", "latent_shapes"),
    "objective": ("betas", "control", "targets_nats", "pi_gains"),
    "training": ("seed", "order_seed", "num_checkpoints", "num_workers"),
    "data": ("data_dir", "streaming", "num_workers"),
}


class Setting(NamedTuple):
    """What the models that train side by side have in common."""

    inference: str
    num_layers: int
    control: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A model: what was asked for, in nats, and what came of it; `plain` says how it is written.

    Attributes:
      settled_at_step: see `targets_table.settled_at`.
      pi_gains: of the control "pi".
      made_by: see `made_by`; 0.1.0 did not write it.
    """

    inference: str
    num_layers: int
    control: str
    seed: int
    targets_nats: tuple[float, ...]
    betas: tuple[float, ...]
    test_rates_nats: Estimates
    test_distortion_nats: float
    train_rates_nats: Estimates
    train_distortion_nats: float
    target_status: tuple[str, ...] | None = None
    settled_at_step: int | None
    num_steps: int
    pi_gains: tuple[float, ...] | None = None
    made_by: dict[str, str] | None = None

    @property
    def setting(self) -> Setting:
        """It was trained in."""
        return Setting(self.inference, self.num_layers, self.control)

    def is_per_layer(self) -> bool:
        """Whether it has a number of every layer."""
        rates = (*self.test_rates_nats, *self.train_rates_nats)
        return all(len(numbers) == self.num_layers for numbers in (*rates, self.targets_nats, self.betas))


def read(file: pathlib.Path) -> list[Row]:
    """The rows in a file; none where there is no file.

    Raises:
      RunError: it holds something else.
    """
    if not file.exists():
        return []
    content = records.read_json(file)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise RunError(f"--out={file} holds other JSON than the rows of this program; give another file")
    rows = []
    for number, plain in enumerate(content, start=1):
        rows.append(row := from_plain(Row, plain, f"--out={file}: row {number}"))
        if not row.is_per_layer() or row.control not in WITHIN:
            raise RunError(
                f"--out={file}: row {number} has not one number per layer, or an unknown control; restore "
                "the file"
            )
    return rows


def betas_found(
    rows: Sequence[Row], setting: Setting, wanted: tuple[float, ...], seed: int
) -> tuple[float, ...] | None:
    """Those that `target_rates` found where the same was asked for; None where it did not."""
    asked = setting._replace(control="target_rates"), wanted, seed
    return next((row.betas for row in rows if (row.setting, row.targets_nats, row.seed) == asked), None)


def write(file: pathlib.Path, rows: Sequence[Row]) -> None:
    """JSON with one row per line; the whole file or nothing."""
    records.write_text(file, "[\n" + ",\n".join(json.dumps(to_plain(row)) for row in rows) + "\n]\n")


def made_by(config: Mapping[str, Mapping[str, Any]], described: Mapping[str, Any]) -> dict[str, str]:
    """What makes the rows of a config: hashes of the data and of all that the table does not set.

    Args:
      config: of the program.
      described: `Dataset.describe()` of its data.
    """
    shapes = config["model"]["latent_shapes"]
    rest = {
        group: {name: value for name, value in fields.items() if name not in _SET.get(group, ())}
        for group, fields in config.items()
    }
    try:
        version = importlib.metadata.version("hvae_jax")
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        version = "not installed"
    return {
        "config": settings.digest([rest, shapes[0], shapes[-1]]),
        "data": settings.digest(settings.data_fingerprints(described)),
        "version": version,
    }


def check_made_by(
    file: pathlib.Path,
    rows: Sequence[Row],
    config: Mapping[str, Mapping[str, Any]],
    described: Mapping[str, Any],
    controls: Sequence[str],
) -> None:
    """That rows in a file are what this config, these data and this version would make.

    Args:
      file: to name.
      rows: in it.
      config, described: as for `made_by`.
      controls: that are asked for; the gains of `pi` matter to nobody else.

    Raises:
      RunError: other rows, or old ones that do not say what made them.
    """
    advice = "give another --out, or --only_print to print what is there"
    wanted = made_by(config, described)
    for number, row in enumerate(rows, start=1):
        made = row.made_by
        if made is None:
            raise RunError(
                f"--out={file}: row {number} does not say what config made it (0.1.0 did not write that), so "
                f"it cannot be continued; {advice}"
            )
        if made != wanted:
            name = next((name for name in wanted if made.get(name) != wanted[name]), "version")
            what = {
                "config": "another config",
                "data": "other data",
                "version": "another version of hvae_jax",
            }
            raise RunError(
                f"--out={file}: row {number} was made by {what[name]} ({made.get(name)} there, "
                f"{wanted[name]} here); {advice}"
            )
        gains = tuple(config["objective"]["pi_gains"])
        if row.control == "pi" and "pi" in controls and row.pi_gains != gains:
            raise RunError(
                f"--out={file}: row {number} was made with config.objective.pi_gains={row.pi_gains}, not "
                f"{gains}; {advice}"
            )


def describe(rows: Sequence[Row]) -> str:
    """One line per setting: how many runs have every layer near its target, errors, time to settle."""
    header = ("inference", "L", "control", "runs", "within", "train", "test", "worst", "median", "settled")
    lines = ["{:<21} {}  {:<21} {:>4}  {:>6}  {:>5}  {:>4}  {:>7}  {:>7}  {}".format(*header)]
    for setting in dict.fromkeys(row.setting for row in rows):
        own = [row for row in rows if row.setting == setting]
        within = WITHIN[setting.control]
        reference = np.asarray([row.targets_nats for row in own])
        train = np.abs(np.asarray([row.train_rates_nats.value for row in own]) / reference - 1.0)
        test = np.abs(np.asarray([row.test_rates_nats.value for row in own]) / reference - 1.0)
        slack = 2.0 * np.asarray([row.test_rates_nats.standard_error for row in own]) / reference
        steps = [row.settled_at_step for row in own if row.settled_at_step is not None]
        settled = f"{len(steps)}/{len(own)}" + (f", median step {np.median(steps):.0f}" if steps else "")
        at_bound = sum(any("bound" in status for status in row.target_status or ()) for row in own)
        lines.append(
            f"{setting.inference:<21} {setting.num_layers}  {setting.control:<21} {len(own):>4}"
            f"  {100 * within:4.0f} %"
            f"  {(train < within).all(1).sum():>5}  {(test < within + slack).all(1).sum():>4}"
            f"  {100 * train.max():5.2f} %  {100 * np.median(train):5.2f} %  {settled}"
            + (f"; {at_bound} with a beta at its bound" if at_bound else "")
        )
    return "\n".join(lines)


def draw_frontier(rows: Sequence[Row], total: float, file: pathlib.Path) -> None:
    """The distortion along the line of constant total rate, mean and spread over seeds.

    Args:
      rows: of which those are drawn that ask for the total.
      total: rate of both layers, nats.
      file: PNG to write.

    Raises:
      RunError: none asks for it.
    """
    lines = {}
    rows = [
        r
        for r in rows
        if r.control == "target_rates"
        and r.num_layers == 2
        and math.isclose(sum(r.targets_nats), total, rel_tol=1e-6)
    ]
    if not rows:
        raise RunError(f"no row of target_rates has two layers and a total of {total:g} nats to draw")
    for inference in dict.fromkeys(row.inference for row in rows):
        own = [r for r in rows if r.inference == inference]
        vectors = sorted({r.targets_nats for r in own}, key=lambda vector: vector[-1])
        groups = [[r for r in own if r.targets_nats == vector] for vector in vectors]
        rates = [[r.test_rates_nats.value for r in group] for group in groups]
        shares = [np.mean([of_layers[-1] / sum(of_layers) for of_layers in group]) for group in rates]
        distortions = [[r.test_distortion_nats for r in group] for group in groups]
        lines[inference.replace("_", " ")] = (
            np.asarray(shares),
            np.asarray([np.mean(d) for d in distortions]),
            np.asarray([np.std(d, ddof=1) if len(d) > 1 else 0.0 for d in distortions]),
        )
    figures.trade_frontier(lines, f"Total rate held at {total:g} nats", file)
