"""What a look at images from elsewhere leaves: ood.json and ood.npz in a run folder, ood.csv above them."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.evaluation import settings
from hvae_jax.evaluation.detection import Detection, DetectionSizes, Found
from hvae_jax.evaluation.plain import flatten, from_plain, to_plain
from hvae_jax.evaluation.results import Evaluated
from hvae_jax.evaluation.settings import Settings
from hvae_jax.files.arrays import read_arrays, write_arrays
from hvae_jax.files.text import write_rows

OOD_FILE, SCORES_FILE, TABLE_FILE = "ood.json", "ood.npz", "ood.csv"


@dataclasses.dataclass(frozen=True)
class DetectionSettings:
    """What decides the numbers of ood.json, and is kept in it.

    Attributes:
      version, data, config, step, checksum: see `settings.Settings`.
      sizes: how much was drawn and scored.
      outside: of each set, by split the number of images and their fingerprint.
    """

    version: str | None
    sizes: DetectionSizes
    data: dict[str, Any]
    config: str
    step: int
    checksum: str | None
    outside: dict[str, Any]


def settings_of(of_run: Settings, sizes: DetectionSizes, outside: dict[str, Any]) -> DetectionSettings:
    """Those of a run that is evaluated with `of_run`."""
    return DetectionSettings(
        of_run.version, sizes, of_run.data, of_run.config, of_run.step, of_run.checksum, outside
    )


def why_stale(folder: pathlib.Path, wanted: DetectionSettings) -> str | None:
    """Why a run must be measured (again); None where its ood.json was made with these settings."""
    file = folder / OOD_FILE
    if not file.exists():
        return f"it has no {OOD_FILE} yet"
    try:
        content = records.read_json(file)
        if difference := settings.difference(content.get("settings"), to_plain(wanted)):
            return difference
        detection = _read(content, file)
    except (RunError, AttributeError):
        return f"{OOD_FILE} is damaged"
    try:
        scores = load_scores(folder)
        is_whole = {"inside_test", f"outside_{len(detection.sets)}_test"} <= scores.keys()
    except RunError:
        is_whole = False
    return None if is_whole else f"{SCORES_FILE} is absent or damaged"


def save(folder: pathlib.Path, found: Found, made_with: DetectionSettings) -> None:
    """Writes ood.npz, then ood.json: a folder that has the second is complete.

    Raises:
      RunError: no space, or no permission.
    """
    write_arrays(folder / SCORES_FILE, found.scores)
    records.write_json(folder / OOD_FILE, {"settings": to_plain(made_with), **to_plain(found.detection)})


def load(folder: pathlib.Path) -> Detection:
    """Content of a run's ood.json.

    Raises:
      RunError: absent or damaged.
    """
    file = folder / OOD_FILE
    return _read(records.read_json(file), file)


def load_scores(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Content of a run's ood.npz, see `detection.Found`.

    Raises:
      RunError: absent or damaged.
    """
    return read_arrays(folder / SCORES_FILE)


def write_table(folder: pathlib.Path, models: Sequence[Evaluated]) -> None:
    """Writes ood.csv: a row for each model, set and score."""
    rows = [
        {
            "model": model.name,
            **{f"beta_{layer}": beta for layer, beta in enumerate(model.betas, start=1)},
            "seed": model.seed,
            **{f"rate_{layer}_nats": rate for layer, rate in enumerate(model.rates_nats, start=1)},
            "set": of_set.name,
            "is_chosen": int(entry.score == model.detection.chosen),
            **flatten(to_plain(entry)),
        }
        for model in models
        if model.detection is not None
        for of_set in model.detection.sets
        for entry in of_set.scores
    ]
    write_rows(folder / TABLE_FILE, rows)


def _read(content: Any, file: pathlib.Path) -> Detection:
    if not isinstance(content, dict):
        raise RunError(f"{file} is damaged; evaluate again")
    return from_plain(Detection, {n: entry for n, entry in content.items() if n != "settings"}, file)
