"""What an evaluation leaves in a run folder, metrics.json and pictures.npz, and the run folders below one."""

import csv
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.evaluation import metrics, settings
from hvae_jax.evaluation.applications import Evaluation
from hvae_jax.evaluation.choices import Scored
from hvae_jax.evaluation.detection import Detection
from hvae_jax.evaluation.metrics import Metrics, RunEvaluation
from hvae_jax.evaluation.plain import from_plain, to_plain
from hvae_jax.evaluation.settings import Settings
from hvae_jax.files.arrays import read_arrays, write_arrays
from hvae_jax.groups import Groups
from hvae_jax.models.config import ModelConfig
from hvae_jax.objective_config import ObjectiveConfig
from hvae_jax.run_config import build_group, with_tuples
from hvae_jax.training.checkpoints import latest_step

METRICS_FILE, PICTURES_FILE = "metrics.json", "pictures.npz"


class Evaluated(NamedTuple):
    """One evaluated model.

    Attributes:
      name: of its folder in a grid, "run" for a run of its own.
      folder: its run folder; only a name for a model that was read from a table.
      betas: β_1 … β_L; layers of a group have the same.
      seed: of its training.
      metrics: content of metrics.json; with `detection`, also its numbers in `applications`.
      detection: content of ood.json, where images from elsewhere are looked at.
      made_with: `settings.digest` of what decided the numbers; empty where a table does not say.
      network: which conditioned one it is, the checksum of its checkpoint; "" of one of these betas alone.
    """

    name: str
    folder: pathlib.Path
    betas: tuple[float, ...]
    seed: int
    metrics: Metrics
    detection: Detection | None = None
    made_with: str = ""
    network: str = ""

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.betas)

    @property
    def rates_nats(self) -> tuple[float, ...]:
        """R_1 … R_L, on the test split."""
        return self.metrics.rates.test.rates_nats.value

    @property
    def scored(self) -> Scored:
        """What guidance is to know of it."""
        metrics, sets = self.metrics, self.detection.sets if self.detection else ()
        return Scored(
            self.name, self.betas, self.seed, self.rates_nats, metrics.applications,
            metrics.generation.test.pixels, metrics.left_out, metrics.rates.test.active_units,
            tuple(of.name for of in sets), self.network,
        )  # fmt: skip

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


def find_runs(folder: str | os.PathLike[str], flag: str = "workdir") -> Runs:
    """The run in `folder`, or the models of the grid in it.

    Args:
      folder: of a run or of a grid.
      flag: that named it, for errors.

    Raises:
      RunError: neither is there, or files that are damaged.
    """
    folder = pathlib.Path(folder)
    models = folder / records.MODELS_FOLDER
    if models.is_dir():
        diverged = _diverged(folder / records.GRID_FILE)
        present = sorted(entry for entry in models.iterdir() if entry.is_dir())
        ready = [f for f in present if f.name not in diverged and latest_step(f) is not None]
        if not ready:
            raise RunError(f"--{flag}={folder} is a grid without a finished model; train it first")
        runs = Runs(ready, True, len(present) - len(ready))
    elif not (folder / records.CONFIG_FILE).is_file():
        raise RunError(
            f"--{flag}={folder} holds neither a run ({records.CONFIG_FILE}) nor a grid "
            f"({records.MODELS_FOLDER}/)"
        )
    elif latest_step(folder) is None:
        raise RunError(f"--{flag}={folder} has no checkpoint yet; train it first")
    else:
        runs = Runs([folder], False, 0)
    layers = {num_layers(read_config(run)) for run in runs.folders}
    if len(layers) > 1:
        raise RunError(f"--{flag}={folder} holds models of {sorted(layers)} layers, which are not compared")
    return runs


def read_config(folder: pathlib.Path) -> dict[str, Any]:
    """The config of a run.

    Raises:
      RunError: absent, damaged, or something else.
    """
    file = folder / records.CONFIG_FILE
    config = records.read_json(file)
    groups = ("data", "model", "objective", "training")
    if isinstance(config, dict) and "objective" in config and not {"data", "model"} & set(config):
        raise RunError(
            f"{file} has neither data nor model: the run is of networks of your own (hvae_jax.own), which "
            "only your program can build; use hvae_jax.evaluation from there"
        )
    if not isinstance(config, dict) or not all(isinstance(config.get(group), dict) for group in groups):
        raise RunError(f"{file} is not the config of a run; restore it or use another folder")
    return config


def num_layers(config: Mapping[str, Any]) -> int:
    """L, by a run's config."""
    return len(config["model"]["latent_shapes"])


def load(folder: pathlib.Path, is_grid: bool) -> Evaluated:
    """An evaluated run.

    Raises:
      RunError: it was not evaluated, or its files are damaged.
    """
    config, file = read_config(folder), folder / METRICS_FILE
    name, betas = folder.name if is_grid else "run", betas_of(folder, config)
    content = records.read_json(file)
    found, made_with = metrics.read(content, file), settings.digest(content.get("settings"))
    network = ""
    if config["model"].get("conditioning", "none") != "none":
        # A model of `experiments.grid --from_model` has the checkpoint of its run.
        network = str((content.get("settings") or {}).get("checksum", ""))
    seed = int(config["training"]["seed"])
    return Evaluated(name, folder, betas, seed, found, made_with=made_with, network=network)


def betas_of(folder: pathlib.Path, config: Mapping[str, Any]) -> tuple[float, ...]:
    """Those of a run's objective, or where rates were asked for those that were found; one per layer.

    Raises:
      RunError: evaluation.json is damaged.
    """
    file = folder / records.EVALUATION_FILE
    betas = tuple(map(float, config["objective"]["betas"]))
    if file.exists():
        evaluation = from_plain(RunEvaluation, records.read_json(file), file)
        betas = evaluation.targets.betas if evaluation.targets else betas
    groups = beta_groups_of(config)
    if len(betas) != len(groups):
        of_what = "layers" if groups.are_layers else "groups of layers"
        raise RunError(f"{file} has {len(betas)} betas for {len(groups)} {of_what}; delete it")
    return tuple(groups.expand(np.asarray(betas)).tolist())


def beta_groups_of(config: Mapping[str, Any]) -> Groups:
    """The layers of each beta, by a run's config.

    Raises:
      RunError: of a model or an objective that cannot be.
    """
    config = with_tuples(dict(config))
    if not config["objective"].get("beta_groups"):
        return Groups.of_layers(num_layers(config))
    model = build_group("model", ModelConfig, config)
    objective = build_group("objective", ObjectiveConfig, config)
    return objective.groups(num_layers(config), model.groups)


def why_stale(folder: pathlib.Path, wanted: Settings) -> str | None:
    """Why a run must be evaluated (again); None where its metrics.json was made with these settings."""
    file = folder / METRICS_FILE
    if not file.exists():
        return "it was not evaluated yet"
    try:
        content = records.read_json(file)
        if difference := settings.difference(content.get("settings"), to_plain(wanted)):
            return difference
        metrics.read(content, file)
    except (RunError, AttributeError):
        return f"{METRICS_FILE} is damaged"
    try:
        is_whole = {"images", "samples"} <= read_arrays(folder / PICTURES_FILE).keys()
    except RunError:
        is_whole = False
    return None if is_whole else f"{PICTURES_FILE} is absent or damaged"


def save(folder: pathlib.Path, evaluation: Evaluation, made_with: Settings) -> None:
    """Writes pictures.npz, then metrics.json: a folder that has the second is complete.

    Raises:
      RunError: no space, or no permission.
    """
    write_arrays(folder / PICTURES_FILE, evaluation.pictures)
    content = {"settings": to_plain(made_with), **to_plain(evaluation.metrics)}
    records.write_json(folder / METRICS_FILE, content)


def _diverged(table: pathlib.Path) -> set[str]:
    if not table.exists():
        return set()
    try:
        with table.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row.get("status") == "diverged"]
        return {row["model"].zfill(4) for row in rows}  # the table counts, folders have four digits
    except (OSError, UnicodeDecodeError, csv.Error, KeyError, AttributeError) as error:
        raise RunError(f"{table} is damaged; run experiments.grid again to write it") from error
