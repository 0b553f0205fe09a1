"""Trains and evaluates the models of a grid, a chunk at a time, so that a killed grid resumes.

A chunk is a packed stack. Its folder under chunks/ lists its models and holds the stack's newest
checkpoint; it goes when the run folders of its models are complete. What remains to be done is read
off the disk, so the same command continues wherever it was stopped. Deciding it writes and deletes
nothing; who trains a chunk holds its lock, and that of each of its models' folders.
"""

import contextlib
import pathlib
import resource
import shutil
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hvae_jax import experiment, records
from hvae_jax.errors import RunError, Stopped
from hvae_jax.evaluation.plain import to_plain
from hvae_jax.experiment import Experiment
from hvae_jax.files import claims
from hvae_jax.grid import table as grid_table
from hvae_jax.grid.folders import is_complete
from hvae_jax.grid.members import CHUNKS_FOLDER, Member, chunk_name, lock_file
from hvae_jax.grid.packed import Evaluate, PackedTrainer, init_stack, make_evaluate
from hvae_jax.training import TrainState, loop, stacks
from hvae_jax.training.checkpoints import Checkpoints, latest_step
from hvae_jax.training.stacks import Stack

CHUNK_FILE = "models.json"


class Progress(NamedTuple):
    """Attributes:
    done: models that are complete.
    model_steps_left: updates of all models that are still to be done.
    last: what the running chunk did last.
    """

    done: int
    model_steps_left: int
    last: loop.Progress


def plan_chunks(folder: pathlib.Path, members: Sequence[Member], chunk_size: int) -> list[list[Member]]:
    """What is left to do: chunks that were begun as they were begun, then the other models.

    Models that are trained and only lack their evaluation are apart from those that are not.

    Raises:
      RunError: the list of a chunk's models is damaged.
    """
    todo = {member.number: member for member in members if not is_complete(folder, member)}
    begun = []
    for chunk_folder in sorted((folder / CHUNKS_FOLDER).glob("*")):
        chunk = _read_chunk(chunk_folder, members)
        if any(member.number in todo for member in chunk):
            begun.append(chunk)
            for member in chunk:
                todo.pop(member.number, None)
    by_step: dict[int | None, list[Member]] = {}
    for member in todo.values():
        by_step.setdefault(latest_step(member.folder(folder)), []).append(member)
    return begun + [
        alike[i : i + chunk_size] for alike in by_step.values() for i in range(0, len(alike), chunk_size)
    ]


def run(
    folder: pathlib.Path,
    built: Experiment,
    members: Sequence[Member],
    chunk_size: int,
    report: Callable[[Progress], None],
    chunks: Sequence[Sequence[Member]] | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> None:
    """Trains and evaluates every model that is not complete, and writes the tables.

    Args:
      folder: the grid's, see `records.open_run`.
      built: the experiment that the models share; their betas and seeds are their own.
      members: all models of the grid.
      chunk_size: models that are trained at a time.
      report: called after every interval.
      chunks: what is left to do, where that was decided before; else `plan_chunks` decides.
      stop_requested: asked every second or so of training, see `loop.Trainer.train`.

    Raises:
      RunError: a folder that cannot be written, a checkpoint that is damaged, another process at work
        on the same models.
      Stopped: as `stop_requested` wished.
    """
    if chunks is None:
        chunks = plan_chunks(folder, members, chunk_size)
    if chunks:
        trainer = PackedTrainer(built, max(chunk_size, *map(len, chunks)))
        evaluate = make_evaluate(built, trainer)
        num_left = sum(map(len, chunks))
        for chunk in chunks:
            num_left -= len(chunk)

            def report_chunk(last: loop.Progress, size: int = len(chunk), later: int = num_left) -> None:
                left = (trainer.num_steps - last.step) * size + trainer.num_steps * later
                report(Progress(len(members) - later - size, left, last))

            _run_chunk(folder, built, chunk, trainer, evaluate, report_chunk, stop_requested)
            grid_table.write(folder, members, built.num_dims)
    clear_chunks(folder, members)
    grid_table.write(folder, members, built.num_dims)


def clear_chunks(folder: pathlib.Path, members: Sequence[Member]) -> None:
    """Removes what chunks whose models are all complete have left, unless someone is at work on them.

    In a grid that is complete nothing is left of chunks/ itself.
    """
    for chunk_folder in sorted((folder / CHUNKS_FOLDER).glob("*")):
        lock = lock_file(folder, chunk_folder.name)
        with contextlib.suppress(claims.Claimed), claims.claim(lock, f"chunk {chunk_folder.name}"):
            if all(is_complete(folder, member) for member in _read_chunk(chunk_folder, members)):
                _remove_chunk(chunk_folder)
    if all(is_complete(folder, member) for member in members):
        with contextlib.suppress(OSError):  # absent, or not empty
            (folder / CHUNKS_FOLDER).rmdir()


def run_chunk(
    folder: pathlib.Path,
    built: Experiment,
    members: Sequence[Member],
    capacity: int,
    report: Callable[[loop.Progress], None],
    stop_requested: Callable[[], bool],
    wait_seconds: float,
) -> None:
    """Trains and evaluates the models of one chunk; the tables are another's to write.

    Args:
      folder: of the grid.
      built: the experiment that the models share.
      members: of the chunk.
      capacity: models that a chunk can have; a program is compiled for so many.
      report: called after every interval.
      stop_requested: see `loop.Trainer.train`.
      wait_seconds: for another process that is at work on the chunk.

    Raises:
      RunError, Stopped: as `run`.
    """
    trainer = PackedTrainer(built, capacity)
    evaluate = make_evaluate(built, trainer)
    _run_chunk(folder, built, members, trainer, evaluate, report, stop_requested, wait_seconds)


def _run_chunk(
    folder: pathlib.Path,
    built: Experiment,
    members: Sequence[Member],
    trainer: PackedTrainer,
    evaluate: Evaluate,
    report: Callable[[loop.Progress], None],
    stop_requested: Callable[[], bool],
    wait_seconds: float = 0.0,
) -> None:
    name = chunk_name([member.number for member in members])
    with contextlib.ExitStack() as locks:
        lock = lock_file(folder, name)
        locks.enter_context(claims.claim(lock, f"chunk {name} of {folder}", wait_seconds))
        members = _left(folder, members)  # another process may have been here since it was decided
        if not members:
            return
        _allow_files(len(members))
        for member in members:
            lock, what = member.folder(folder) / records.RUN_LOCK, f"model {member.number:04d} of {folder}"
            locks.enter_context(claims.claim(lock, what, wait_seconds))
        stack = _train_chunk(folder, built, members, trainer, report, stop_requested)
        if float(stack.seconds):
            grid_table.write_timing(folder, members, float(stack.seconds) / len(members))
        for i, (member, evaluation) in enumerate(zip(members, evaluate(stack, members), strict=True)):
            _save_state(member.folder(folder), stacks.entry(stack.states, i))
            # Last: it says that the model is complete.
            records.write_json(member.folder(folder) / records.EVALUATION_FILE, to_plain(evaluation))
        _remove_chunk(folder / CHUNKS_FOLDER / chunk_name([member.number for member in members]))


def _left(folder: pathlib.Path, members: Sequence[Member]) -> Sequence[Member]:
    """What is left of a chunk: all of one that was begun, else its models that are not complete."""
    left = [member for member in members if not is_complete(folder, member)]
    for some in (members, left) if left else ():
        chunk_folder = folder / CHUNKS_FOLDER / chunk_name([member.number for member in some])
        if begun := _read_chunk(chunk_folder, members):
            return begun
    return left


def _train_chunk(
    folder: pathlib.Path,
    built: Experiment,
    members: Sequence[Member],
    trainer: PackedTrainer,
    report: Callable[[loop.Progress], None],
    stop_requested: Callable[[], bool],
) -> Stack:
    """The models after their last step, from the newest checkpoint on."""
    numbers, data = [member.number for member in members], built.dataset.describe()
    records.check_data(folder, data)
    chunk_folder = folder / CHUNKS_FOLDER / chunk_name(numbers)
    try:
        chunk_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{chunk_folder} cannot be made: {error.strerror}") from error
    records.write_json(chunk_folder / CHUNK_FILE, numbers)
    checkpoints = Checkpoints(chunk_folder / records.CHECKPOINTS_FOLDER, 1)
    try:
        if checkpoints.latest_step() is not None:
            stack = checkpoints.restore(init_stack(built, members))
        elif all(latest_step(member.folder(folder)) == trainer.num_steps for member in members):
            stack = _trained_stack(folder, built, members, trainer.num_steps)
        else:
            stack = init_stack(built, members)
        folders = [records.open_run(member.folder(folder), member.config, data) for member in members]
        stack = trainer.train(
            stack,
            [records.RateLog(model_folder, resume_step=int(stack.logged)) for model_folder in folders],
            members,
            save=checkpoints.save,
            report=report,
            stop_requested=stop_requested,
        )
        checkpoints.wait()
    except Stopped:
        checkpoints.wait()
        raise
    finally:
        checkpoints.close()
    return stack


def _trained_stack(
    folder: pathlib.Path, built: Experiment, members: Sequence[Member], num_steps: int
) -> Stack:
    """Models that are trained, from the checkpoints in their folders; it took no time."""
    stack = stacks.new_stack([experiment.restore(built, member.folder(folder)) for member in members])
    step = np.array(num_steps, stack.step.dtype)
    return stack._replace(step=step, logged=step)


def _read_chunk(chunk_folder: pathlib.Path, members: Sequence[Member]) -> list[Member]:
    """The models of a chunk that was begun; none where it was not."""
    file = chunk_folder / CHUNK_FILE
    if not file.exists():
        if latest_step(chunk_folder) is not None:
            raise RunError(
                f"{file} does not exist, but {chunk_folder} holds a checkpoint of the models that it listed; "
                "restore it, or delete the folder to train them anew"
            )
        return []
    numbers, by_number = records.read_json(file), {member.number: member for member in members}
    is_list = isinstance(numbers, list) and numbers and all(type(number) is int for number in numbers)
    if not is_list or not set(numbers) <= set(by_number):
        raise RunError(
            f"{file} is damaged: it must list models of the grid; restore it, or delete {chunk_folder} to "
            "train its models anew"
        )
    return [by_number[number] for number in numbers]


def _remove_chunk(chunk_folder: pathlib.Path) -> None:
    # The list last: without it, a checkpoint would be nobody's.
    with contextlib.suppress(OSError):
        shutil.rmtree(chunk_folder / records.CHECKPOINTS_FOLDER, ignore_errors=True)
        if not (chunk_folder / records.CHECKPOINTS_FOLDER).exists():
            shutil.rmtree(chunk_folder, ignore_errors=True)


def _allow_files(num: int) -> None:
    """Lets this process hold so many locks beside the files that it has open otherwise."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _save_state(folder: pathlib.Path, state: TrainState) -> None:
    checkpoints, step = Checkpoints(folder / records.CHECKPOINTS_FOLDER, 1), int(state.step)
    latest = checkpoints.latest_step()
    if latest is None or latest < step:
        checkpoints.save(step, state)
        checkpoints.wait()
    checkpoints.close()
