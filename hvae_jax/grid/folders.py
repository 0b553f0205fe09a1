"""Which model of a grid is in which folder, what is complete, and how a finished grid takes more models.

Models are found by what they are, their betas or targets and their seed, so a grid can grow: models.json
says what is in the folder of each number. It is written before config.json, and what it says can be read
off the configs in models/: without it (grids of 0.1.0 have none) the models that are there keep their
numbers, and the others, in the order of the grid, take the smallest that are free.
"""

import itertools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from hvae_jax import experiment, records
from hvae_jax.errors import RunError
from hvae_jax.evaluation.metrics import RunEvaluation
from hvae_jax.evaluation.plain import from_plain
from hvae_jax.grid import members as grid_members
from hvae_jax.grid.members import (
    CHUNKS_FOLDER,
    LISTS,
    PRODUCTS,
    TASKS_FOLDER,
    GridConfig,
    Member,
)
from hvae_jax.values import shorten

MODELS_FILE = "models.json"
# Fields that say which models a grid has, and fields on which no model's numbers depend.
_POINTS = {f"grid.{name}" for name in (*PRODUCTS, *LISTS, "seeds")}
_HARMLESS = {"grid.chunk_size", "grid.memory_gib", *records.NOT_TRAINING}


def read(folder: pathlib.Path) -> tuple[GridConfig, list[Member]]:
    """The grid in a folder, its models with the numbers of their folders, in the order of the grid.

    Raises:
      RunError: no grid there, or a damaged one.
    """
    grid, members = grid_members.read_config(_stored(folder))
    return grid, number(folder, members)


def number(folder: pathlib.Path, members: Sequence[Member]) -> list[Member]:
    """The models with the numbers of the folders that they have, or are to have; nothing is written.

    Raises:
      RunError: models.json is damaged.
    """
    known = _known(folder, members)
    taken = set(known.values())
    free = (number for number in itertools.count() if number not in taken)
    numbers = [known[m.identity] if m.identity in known else next(free) for m in members]
    return [member._replace(number=own) for member, own in zip(members, numbers, strict=True)]


def check(
    folder: pathlib.Path,
    config: Mapping[str, Any],
    members: Sequence[Member],
    data: Mapping[str, Any] | None = None,
) -> None:
    """Whether the folder can hold the grid; nothing is written.

    Args:
      folder: it may be there or not.
      config: of the grid.
      members: its models.
      data: `Dataset.describe()`, where it is known.

    Raises:
      RunError: a single run is there, a grid whose models were trained otherwise, of other data, or that has
        models which this one lacks, or, where this one has more, a grid that is not finished; a file where
        a folder is needed.
    """
    for path in (folder, *(folder / name for name in _FOLDERS)):
        if path.exists() and not path.is_dir():
            raise RunError(f"--workdir={folder}: {path} must be a folder, but it is a file; move it away")
    if not (folder / records.CONFIG_FILE).exists():
        models = folder / records.MODELS_FOLDER
        if models.exists() and any(models.iterdir()):
            raise RunError(
                f"{folder / records.CONFIG_FILE} does not exist, but {models} holds models "
                "of a grid; restore it, or give another --workdir"
            )
        return
    if data is not None:
        records.check_data(folder, data)
    stored = _stored(folder)
    changed = records.differences(stored, config)
    if data is not None and (folder / records.DATA_FILE).exists():
        changed.pop("data.name", None)  # the same images, moved
    if not changed:
        return
    _, old_members = grid_members.read_config(stored)
    own = set(old_members[0].overrides)
    ignored = _HARMLESS | _POINTS | (own if own == set(members[0].overrides) else set())
    if others := {name: values for name, values in changed.items() if name not in ignored}:
        _refuse_change(folder, others)
    there, here = ({member.identity for member in some} for some in (old_members, members))
    if there - here:
        shown = _shown({name: values for name, values in changed.items() if name in _POINTS})
        raise RunError(
            f"--workdir={folder} already holds a grid with {len(there - here)} models that this one lacks: "
            f"{shown}. Give another --workdir, or a config with all of its models, and more if you like"
        )
    if more := len(here - there):
        left = sum(not is_complete(folder, member) for member in number(folder, old_members))
        if left:
            raise RunError(
                f"--workdir={folder} holds a grid of {len(there)} models, {left} of which are not complete: "
                f"finish it first with the same command as before, then add these {more} models"
            )


def check_models(folder: pathlib.Path, members: Sequence[Member]) -> None:
    """Whether what complete models have left, and what cannot be made again, is whole; nothing is written.

    Checkpoints are not read: who restores one sees whether it is whole.

    Raises:
      RunError: a config of another model, or a log that was cut or is gone.
    """
    for member in members:
        evaluation = read_evaluation(folder, member)
        if evaluation is None:
            continue
        file = member.folder(folder) / records.CONFIG_FILE
        config = read_whole(file)  # one that is damaged is written again
        if config is not None and set(records.differences(config, member.config)) & set(member.overrides):
            raise RunError(
                f"{file} is of another model than {folder / MODELS_FILE} says; put the folder back that was "
                "there, or delete it to train the model anew"
            )
        log = member.folder(folder) / records.RATES_FILE
        if evaluation.status in ("ok", None) and (last := _last_step(log)) != evaluation.step:
            raise RunError(
                f"{log} is damaged: it ends at step {last} of {evaluation.step}; restore it, or delete "
                f"{log.parent} to train the model anew"
            )


def open_grid(
    folder: pathlib.Path,
    config: Mapping[str, Any],
    members: Sequence[Member],
    data: Mapping[str, Any] | None = None,
) -> list[Member]:
    """Makes the folder of a grid, or opens the one that is there, which may take more models (`check`).

    Args:
      folder: to be held by the caller, see `plan.launch_lock`.
      config: of the grid.
      members: its models.
      data: `Dataset.describe()`, see `records.open_run`.

    Returns:
      the models, with the numbers of their folders.

    Raises:
      RunError: as `check`, `check_models` and `records.open_run`.
    """
    check(folder, config, members, data)
    members = number(folder, members)
    check_models(folder, members)
    known = {own: json.loads(identity) for identity, own in _known(folder, members).items()}
    known.update({member.number: member.overrides for member in members})
    content = json.loads(json.dumps({f"{own:04d}": known[own] for own in sorted(known)}))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"--workdir={folder} cannot be used: {error.strerror}: {error.filename}") from error
    if not (folder / MODELS_FILE).exists() or records.read_json(folder / MODELS_FILE) != content:
        records.write_json(folder / MODELS_FILE, content)
    records.open_run(folder, config, data, (*_HARMLESS, *_POINTS, *members[0].overrides))
    for member in members:
        file = member.folder(folder) / records.CONFIG_FILE
        if is_complete(folder, member) and read_whole(file) is None:
            records.write_json(file, member.config)
    return members


def is_complete(folder: pathlib.Path, member: Member) -> bool:
    """Whether a model is trained and evaluated. An evaluation.json that is damaged is to be made anew."""
    # Listing the folder makes network file systems look; they may remember that a file was absent.
    model_folder = member.folder(folder)
    if not (model_folder.is_dir() and records.EVALUATION_FILE in os.listdir(model_folder)):
        return False
    return read_whole(model_folder / records.EVALUATION_FILE) is not None


def read_evaluation(folder: pathlib.Path, member: Member) -> RunEvaluation | None:
    """A model's evaluation.json; None where it is absent or damaged.

    Raises:
      RunError: it is something else.
    """
    content = read_whole(member.folder(folder) / records.EVALUATION_FILE)
    try:
        return None if content is None else from_plain(RunEvaluation, content, "it")
    except RunError as error:
        raise not_of_this_grid(folder, member, str(error)) from error


def not_of_this_grid(folder: pathlib.Path, member: Member, why: str) -> RunError:
    """What to say of an evaluation.json that is something else."""
    file = member.folder(folder) / records.EVALUATION_FILE
    return RunError(
        f"{file} is not the evaluation of a model of this grid ({why}); delete it: the same command "
        "evaluates the model again"
    )


def read_whole(file: pathlib.Path) -> dict[str, Any] | None:
    """A JSON object out of a file that can be made again; None where it is absent or damaged."""
    try:
        content = records.read_json(file)
    except RunError:
        return None
    return content if isinstance(content, dict) else None


_FOLDERS = (records.MODELS_FOLDER, CHUNKS_FOLDER, TASKS_FOLDER, records.FIGURES_FOLDER)


def _stored(folder: pathlib.Path) -> dict[str, Any]:
    """The grid's config.json."""
    config = records.config_of(folder)
    if not all(isinstance(group, dict) for group in config.values()) or not config:
        file = folder / records.CONFIG_FILE
        raise RunError(f"{file} is damaged: it is not the config of a grid; restore it or use another folder")
    if "grid" not in config:
        raise RunError(f"{folder} holds a single run, not a grid; give the folder of a grid, or a new one")
    return experiment.with_tuples(config)


def _known(folder: pathlib.Path, members: Sequence[Member]) -> dict[str, int]:
    """Numbers of the models that have one, by their identity."""
    file = folder / MODELS_FILE
    if not file.exists():
        return _found(folder, members)
    content = records.read_json(file)
    if not (
        isinstance(content, dict)
        and all(name.isdigit() and isinstance(overrides, dict) for name, overrides in content.items())
    ):
        raise RunError(f"{file} is damaged; delete it: the same command makes it anew, from models/")
    return {grid_members.identity(overrides): int(name) for name, overrides in content.items()}


def _found(folder: pathlib.Path, members: Sequence[Member]) -> dict[str, int]:
    """`_known` from the configs in models/."""
    known: dict[str, int] = {}
    names = [field.split(".") for field in members[0].overrides]
    for entry in sorted((folder / records.MODELS_FOLDER).glob("*")):
        config = read_whole(entry / records.CONFIG_FILE) if entry.name.isdigit() else None
        if config is not None and all(name in config.get(group, {}) for group, name in names):
            overrides = {f"{group}.{name}": config[group][name] for group, name in names}
            known[grid_members.identity(overrides)] = int(entry.name)
    return known


def _refuse_change(folder: pathlib.Path, changed: Mapping[str, tuple[Any, Any]]) -> None:
    advice = "Give another --workdir, or the same config to resume it"
    if set(changed) == {"training.num_epochs"}:
        advice = "A grid does not go on for more epochs, a single run does; give another --workdir"
    elif all(field.startswith("evaluation.") for field in changed):
        advice = "Models of one grid are evaluated alike; give the same config, or another --workdir"
    raise RunError(
        f"--workdir={folder} already holds a grid with another config: {_shown(changed)}. {advice}"
    )


def _shown(changed: Mapping[str, tuple[Any, Any]]) -> str:
    return "; ".join(
        f"config.{field} is {shorten(was)} there and {shorten(now)} here"
        for field, (was, now) in changed.items()
    )


def _last_step(log: pathlib.Path) -> int:
    """Of the last row of a rate log; 0 where there is none, or it is not a log."""
    try:
        return int(json.loads(records.read_text(log).splitlines()[-1])["step"])
    except (RunError, ValueError, TypeError, KeyError, IndexError):
        return 0
