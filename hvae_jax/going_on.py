"""What a run may start from: its own end, with more epochs, or the parameters of another run."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from hvae_jax import experiment, records, training
from hvae_jax.errors import RunError
from hvae_jax.experiment import Experiment
from hvae_jax.training import Params, TrainState, checkpoints


class Start(NamedTuple):
    """Attributes:
    folder: of the run that the parameters are of.
    step: of its checkpoint.
    checksum: of that checkpoint, see `checkpoints.checksum`; of the restored state where it has none.
    """

    folder: str
    step: int
    checksum: str


def check_epochs(folder: str | os.PathLike[str], built: Experiment, config: Mapping[str, Any]) -> None:
    """That the run in a folder can be one of `config.training.num_epochs`, whatever it was planned for.

    Args:
      folder: of the run; it need not be there.
      built: from `config`.
      config: as given now.

    Raises:
      RunError: it has done more, or its steps so far would have been others.
    """
    folder = pathlib.Path(folder)
    done = checkpoints.latest_step(folder)
    if done is None or not (folder / records.CONFIG_FILE).exists():
        return
    old = records.config_of(folder)
    was, now = old["training"]["num_epochs"], config["training"]["num_epochs"]
    if was == now:
        return
    if done > built.num_steps:
        raise RunError(
            f"config.training.num_epochs={now} is {built.num_steps} steps, and the run in {folder} has done "
            f"{done}; give more epochs, or another --workdir"
        )
    paces = {
        "config.training.learning_rate_decay_fraction": built.training.learning_rate_decay_fraction,
        "config.objective.warmup_fraction": built.objective.warmup_fraction,
    }
    for name, share in paces.items():
        if share:
            raise RunError(
                f"config.training.num_epochs is {was} in {folder} and {now} here: with {name}={share} a run "
                "of another length is another from its first step. Give another --workdir, and --init_from="
                f"{folder} to start from its parameters"
            )


def has_begun(folder: str | os.PathLike[str]) -> bool:
    """Whether the run in a folder has a checkpoint; without one it starts from its first step."""
    return bool(checkpoints.latest_step(folder))


def find_start(folder: str | os.PathLike[str], init_from: str | os.PathLike[str] | None) -> Start | None:
    """What a run starts from: what `--init_from` names, or its folder remembers; None for a fresh start.

    Args:
      folder: of the run; it need not be there.
      init_from: folder of another run, or None.

    Raises:
      RunError: the run has started from something else, or there is no checkpoint.
    """
    folder = pathlib.Path(folder)
    known = _read_start(folder / records.INIT_FILE)
    if init_from is None:
        return known
    source = pathlib.Path(init_from).expanduser().resolve()
    if source == folder.resolve():
        raise RunError(
            f"--init_from={init_from} is the --workdir itself; the same command resumes without it"
        )
    if known is not None and known.folder == str(source):
        return known
    if has_begun(folder):
        other = f"from {known.folder}" if known else "without --init_from"
        raise RunError(
            f"--init_from={init_from}: the run in {folder} started {other}; give another --workdir, or leave "
            "the flag out to resume it"
        )
    step = checkpoints.latest_step(source)
    if step is None:
        raise RunError(f"--init_from={init_from} must be the folder of a run with a checkpoint")
    _, state = _restore(str(source), step)
    return Start(str(source), step, _checksum(str(source), step, state))


def init_state(built: Experiment, start: Start) -> TrainState:
    """The state before the first step, with the other run's parameters: the averaged ones where it has any.

    Raises:
      RunError: they are of another network, or no longer what they were.
    """
    source, state = _restore(start.folder, start.step)
    if _checksum(start.folder, start.step, state) != start.checksum:
        raise RunError(
            f"checkpoint {start.step} of {start.folder} is not the one that this run started from "
            f"({records.INIT_FILE}); give another --workdir"
        )
    params = state.eval_params
    _check_network(built, source, params, start.folder)
    return training.init_state(params, built.objective.betas, built.make_control(), built.training)


def _restore(folder: str, step: int) -> tuple[Experiment, TrainState]:
    try:
        source = experiment.from_folder(folder)
        return source, experiment.restore(source, folder, step)
    except RunError as error:
        raise RunError(f"--init_from={folder}: {error}") from error


def _checksum(folder: str, step: int, state: TrainState) -> str:
    # The saved one where there is one: a state that an earlier version saved is another tree once restored.
    return checkpoints.checksum(folder, step) or checkpoints.sum_state(state)


def _check_network(built: Experiment, source: Experiment, params: Params, folder: str) -> None:
    wanted = jax.eval_shape(lambda: built.init_params(0))
    there, here = (
        {
            jax.tree_util.keystr(path): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }
        for tree in (params, wanted)
    )
    if there == here:
        return
    configs = ({"model": vars(one.model.config)} for one in (source, built))
    changed = [
        f"config.{name} is {was} there and {now} here"
        for name, (was, now) in records.differences(*configs).items()
    ]
    shapes = source.source.image_shape, built.source.image_shape
    if shapes[0] != shapes[1]:
        changed.append(f"images are {shapes[0]} there and {shapes[1]} here")
    raise RunError(f"--init_from={folder} is of another network: {'; '.join(changed)}")


def _read_start(file: pathlib.Path) -> Start | None:
    if not file.exists():
        return None
    content = records.read_json(file)
    try:
        start = Start(**content)
    except TypeError as error:
        raise RunError(f"{file} is damaged; it holds {content}") from error
    if not isinstance(start.folder, str) or not isinstance(start.step, int):
        raise RunError(f"{file} is damaged; it holds {content}")
    return start
