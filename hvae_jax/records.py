"""The run folder: config.json, versions.json, data.json, and what a program may find in it."""

import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Collection, Mapping
from typing import Any

import jax

from hvae_jax.errors import RunError
from hvae_jax.files import read_json, read_text, write_json, write_text
from hvae_jax.files.rate_log import RATES_FILE, RateLog, load, rate_row
from hvae_jax.files.tensorboard import TensorBoard
from hvae_jax.run_config import unknown_fields, with_defaults
from hvae_jax.training import checkpoints
from hvae_jax.training.checkpoints import CHECKPOINTS_FOLDER

__all__ = [
    "CHECKPOINTS_FOLDER",
    "CONFIG_FILE",
    "DATA_FILE",
    "EVALUATION_FILE",
    "FIGURES_FOLDER",
    "GRID_FILE",
    "INIT_FILE",
    "MODELS_FOLDER",
    "RATES_FILE",
    "RUN_LOCK",
    "VERSIONS_FILE",
    "RateLog",
    "TensorBoard",
    "check_data",
    "check_run",
    "config_of",
    "data_of",
    "differences",
    "load",
    "open_run",
    "rate_row",
    "read_json",
    "read_text",
    "write_json",
    "write_text",
]

CONFIG_FILE, VERSIONS_FILE, DATA_FILE = "config.json", "versions.json", "data.json"
EVALUATION_FILE = "evaluation.json"
# In the folder of a model that was not trained: the conditioned run that it is of.
FROM_MODEL_FILE = "from_model.json"
# Of another run that this one started from; held by the process that trains.
INIT_FILE, RUN_LOCK = "init_from.json", "run.lock"
FIGURES_FOLDER = "figures"
# In the folder of a grid: its table, and the folders of its models.
GRID_FILE, MODELS_FOLDER = "grid.csv", "models"
# Fields that change neither what a model is trained on nor how: they may differ from command to command.
NOT_TRAINING = (
    "data.data_dir",
    "data.num_workers",
    "data.streaming",
    "data.check_values",
    "training.num_checkpoints",
)
# Fields that change what a run writes while it trains, and not what it learns: a run that goes on keeps them,
# models that are set beside each other may have others.
ON_ITS_WAY = ("training.log_every_steps", "training.eval_every_steps", "training.checkpoint_every_steps")
_PACKAGES = ("hvae_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "chex", "numpy")


def open_run(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
    may_change: Collection[str] = (),
    may_replace: bool = False,
) -> pathlib.Path:
    """Makes the folder of a run or grid, or opens one that holds the same config and is of the same data.

    Fields that this version added take their defaults where the folder is older, and those that do not
    change training may differ: config.json then holds the new ones.

    Args:
      folder: created with its parents where absent.
      config: nested groups of plain values, written to config.json.
      data: `Dataset.describe()`, written to data.json, which a folder of 0.1.0 lacks.
      may_change: further fields that may differ, "training.num_epochs", or groups, "evaluation".
      may_replace: whether another config takes the place of one that has come to no checkpoint.

    Raises:
      RunError: the folder holds another config or is of other data, is a file, or cannot be written.
    """
    folder = pathlib.Path(folder)
    config = json.loads(json.dumps(config))
    is_new = check_run(folder, config, data, may_change, may_replace)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if is_new:
            for name in (DATA_FILE, RATES_FILE, INIT_FILE, EVALUATION_FILE):
                (folder / name).unlink(missing_ok=True)
            write_json(folder / VERSIONS_FILE, _versions())
        elif not _is_json(folder / VERSIONS_FILE):
            write_json(folder / VERSIONS_FILE, {**_versions(), "note": "written again after it was lost"})
        if data is not None and not (folder / DATA_FILE).exists():
            write_json(folder / DATA_FILE, data)
        if is_new or read_json(folder / CONFIG_FILE) != config:
            write_json(folder / CONFIG_FILE, config)  # last: a folder that has it is complete
    except (FileExistsError, NotADirectoryError) as error:
        raise RunError(f"--workdir={folder} must be a folder, but {error.filename} is a file") from error
    except OSError as error:
        raise RunError(f"--workdir={folder} cannot be used: {error.strerror}: {error.filename}") from error
    return folder


def check_run(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
    may_change: Collection[str] = (),
    may_replace: bool = False,
) -> bool:
    """What `open_run` would raise; changes nothing.

    Returns:
      whether `open_run` would begin a run there, instead of opening the one that is there.
    """
    folder = pathlib.Path(folder)
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise RunError(f"--workdir={folder} must be a folder, but {path} is a file")
    has_checkpoint = checkpoints.latest_step(folder) is not None
    if not (folder / CONFIG_FILE).exists():
        if has_checkpoint:
            raise RunError(
                f"{folder} holds checkpoints but no {CONFIG_FILE}, which says what they are of; restore it, "
                "or give another --workdir"
            )
        return True
    old = _read_config(folder)
    changed = differences(old, config, (*NOT_TRAINING, *may_change))
    same_data = data is not None and (folder / DATA_FILE).exists() and not _data_differences(folder, data)
    if same_data:  # the same images under another name: they were moved
        changed.pop("data.name", None)
    if changed and may_replace and not has_checkpoint:
        return True
    if changed:
        shown = "; ".join(
            f"config.{name} is {was} there and {now} here" for name, (was, now) in changed.items()
        )
        raise RunError(
            f"--workdir={folder} already holds a run with another config: {shown}. Give another --workdir, "
            "or the same config to resume it"
        )
    if data is not None:
        check_data(folder, data)
    return False


def check_data(folder: str | os.PathLike[str], described: Mapping[str, Any]) -> None:
    """That a folder is of these data; nothing is known of a folder of 0.1.0.

    Args:
      folder: of a run or grid.
      described: `Dataset.describe()` of the data at hand.

    Raises:
      RunError: a split differs in its images or labels.
    """
    if problems := _data_differences(folder, described):
        raise RunError(
            f"config.data.name={described['name']!r} is not the data that {folder} is of: "
            f"{'; '.join(problems)}; put the former data back, or give another folder"
        )


def data_of(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What the data of a run or grid were, as `Dataset.describe()` says it; None for a folder of 0.1.0.

    Raises:
      RunError: data.json is damaged.
    """
    file = pathlib.Path(folder) / DATA_FILE
    if not file.exists():
        return None
    kept = read_json(file)
    try:
        shape = kept["image_shape"]
        sizes = [split["num_images"] for split in kept["splits"].values()]
        prints = [split["fingerprint"] for split in kept["splits"].values()]
        is_whole = {"train", "valid", "test"} <= set(kept["splits"])
        if not is_whole or not all(isinstance(n, int) for n in (*shape, *sizes)):
            raise ValueError("a split or a size is missing")
        if not all(isinstance(fingerprint, str) for fingerprint in prints):
            raise ValueError("a fingerprint is missing")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(
            f"{file} does not say what the data were ({error}); restore it, or delete it if the data are the "
            "same: it is then written again"
        ) from error
    return kept


def config_of(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The config of a run or grid as JSON holds it, with the defaults of fields that are newer than it.

    Raises:
      RunError: there is none, it is damaged, or a newer version wrote it.
    """
    return with_defaults(_read_config(pathlib.Path(folder)))


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], may_change: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Fields that differ, "training.seed" → (old, new); a field that one lacks has its default.

    Args:
      old, new: configs.
      may_change: fields, or groups, that are left out.
    """
    old, new = (_flatten(with_defaults(json.loads(json.dumps(config)))) for config in (old, new))
    absent = "absent"
    return {
        name: (old.get(name, absent), new.get(name, absent))
        for name in sorted({*old, *new})
        if old.get(name, absent) != new.get(name, absent)
        and not any(name == field or name.startswith(f"{field}.") for field in may_change)
    }


def _read_config(folder: pathlib.Path) -> dict[str, Any]:
    file = folder / CONFIG_FILE
    config = read_json(file)
    if not isinstance(config, dict):
        raise RunError(f"{file} is not the config of a run; restore it or use another folder")
    if unknown := unknown_fields(config):
        raise RunError(
            f"{file} has config.{', config.'.join(unknown)}, which this version of hvae_jax "
            f"({_version('hvae_jax')}) does not know: a newer one wrote it; use that one, or another folder"
        )
    return config


def _data_differences(folder: str | os.PathLike[str], described: Mapping[str, Any]) -> list[str]:
    kept = data_of(folder)
    problems = []
    for name, now in described["splits"].items():
        was = (kept or described)["splits"][name]
        if any(was[field] != now[field] for field in ("num_images", "fingerprint")):
            problems.append(
                f"its {name} split had {was['num_images']} images of fingerprint {was['fingerprint'][:12]}, "
                f"now it has {now['num_images']} of {now['fingerprint'][:12]}"
            )
    return problems


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flatten(value, f"{prefix}.{name}" if prefix else name))
    return flat


def _is_json(file: pathlib.Path) -> bool:
    try:
        return isinstance(read_json(file), dict)
    except RunError:
        return False


def _versions() -> dict[str, Any]:
    versions: dict[str, Any] = {"python": platform.python_version()}
    versions |= {package: _version(package) for package in _PACKAGES}
    versions["platform"] = jax.default_backend()
    versions["devices"] = [device.device_kind for device in jax.devices()]
    return versions


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return None
