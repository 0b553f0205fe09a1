"""Trains and evaluates the models of a grid, a chunk at a time, so that a killed grid resumes.

A chunk is a packed stack. Its folder under chunks/ lists its models and holds the stack's newest
checkpoint; it goes when the run folders of its models are complete. What remains to be done is read
off the disk, so the same command continues wherever it was stopped. Deciding it writes and deletes
nothing; who trains a chunk holds its lock, and that of each of its models' folders.
"""

import contextlib
import dataclasses
import functools
import pathlib
import resource
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hvae_jax import experiment, records, training
from hvae_jax.errors import RunError, Stopped
from hvae_jax.evaluation import rates, targets
from hvae_jax.evaluation.metrics import RunEvaluation
from hvae_jax.evaluation.plain import to_plain
from hvae_jax.experiment import Experiment
from hvae_jax.files import claims
from hvae_jax.grid import table as grid_table
from hvae_jax.grid.folders import is_complete, latest_step
from hvae_jax.grid.members import CHUNKS_FOLDER, Member, chunk_name, lock_file
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import TrainState, packing
from hvae_jax.training.checkpoints import Checkpoints
from hvae_jax.training.packing import Stack, Trainer

CHUNK_FILE = "models.json"


Evaluate = Callable[[Stack, Sequence[Member]], list[dict[str, Any]]]


class Progress(NamedTuple):
    """Attributes:
    done: models that are complete.
    model_steps_left: updates of all models that are still to be done.
    last: what the running chunk did last.
    """

    done: int
    model_steps_left: int
    last: packing.Progress


def make_trainer(built: Experiment, capacity: int) -> Trainer:
    """The packed trainer of an experiment."""
    return Trainer(
        built.terms_fn,
        built.dataset.train.images,
        valid_images=built.dataset.valid.images,
        preprocess_fn=built.preprocess_fn,
        control=built.make_control(),
        config=built.training,
        capacity=capacity,
    )


def init_stack(built: Experiment, members: Sequence[Member]) -> Stack:
    """The models before their first step, each as it would start alone."""
    params = {seed: jax.device_get(built.init_params(seed)) for seed in {m.seed for m in members}}
    states = []
    for member in members:
        config = dataclasses.replace(built.training, seed=member.seed)
        control = built._replace(objective=member.objective).make_control()
        states.append(training.init_state(params[member.seed], member.betas, control, config))
    return packing.new_stack(states)


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
      stop_requested: asked every second or so of training, see `Trainer.train`.

    Raises:
      RunError: a folder that cannot be written, a checkpoint that is damaged, another process at work
        on the same models.
      Stopped: as `stop_requested` wished.
    """
    if chunks is None:
        chunks = plan_chunks(folder, members, chunk_size)
    if chunks:
        trainer = make_trainer(built, max(chunk_size, *map(len, chunks)))
        evaluate = make_evaluate(built, trainer)
        num_left = sum(map(len, chunks))
        for chunk in chunks:
            num_left -= len(chunk)

            def report_chunk(last: packing.Progress, size: int = len(chunk), later: int = num_left) -> None:
                left = (trainer.num_steps - last.step) * size + trainer.num_steps * later
                report(Progress(len(members) - later - size, left, last))

            _run_chunk(folder, built, chunk, trainer, evaluate, report_chunk, stop_requested)
            grid_table.write(folder, members, built.num_dims)
    clear_chunks(folder, members)
    grid_table.write(folder, members, built.num_dims)


def clear_chunks(folder: pathlib.Path, members: Sequence[Member]) -> None:
    """Removes what chunks whose models are all complete have left, unless someone is at work on them."""
    for chunk_folder in sorted((folder / CHUNKS_FOLDER).glob("*")):
        lock = lock_file(folder, chunk_folder.name)
        with contextlib.suppress(claims.Claimed), claims.claim(lock, f"chunk {chunk_folder.name}"):
            if all(is_complete(folder, member) for member in _read_chunk(chunk_folder, members)):
                _remove_chunk(chunk_folder)


def run_chunk(
    folder: pathlib.Path,
    built: Experiment,
    members: Sequence[Member],
    capacity: int,
    report: Callable[[packing.Progress], None],
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
      stop_requested: see `Trainer.train`.
      wait_seconds: for another process that is at work on the chunk.

    Raises:
      RunError, Stopped: as `run`.
    """
    trainer = make_trainer(built, capacity)
    evaluate = make_evaluate(built, trainer)
    _run_chunk(folder, built, members, trainer, evaluate, report, stop_requested, wait_seconds)


def _run_chunk(
    folder: pathlib.Path,
    built: Experiment,
    members: Sequence[Member],
    trainer: Trainer,
    evaluate: Evaluate,
    report: Callable[[packing.Progress], None],
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
            _save_state(member.folder(folder), packing.entry(stack.states, i))
            # Last: it says that the model is complete.
            records.write_json(member.folder(folder) / records.EVALUATION_FILE, evaluation)
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
    trainer: Trainer,
    report: Callable[[packing.Progress], None],
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
            seeds=np.asarray([member.seed for member in members]),
            order_seeds=np.asarray([member.order_seed for member in members]),
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
    stack = packing.new_stack([experiment.restore(built, member.folder(folder)) for member in members])
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


def make_evaluate(built: Experiment, trainer: Trainer) -> Evaluate:
    """(stack, members) → what each model's evaluation.json holds: validation and test splits at β = 1.

    Where the objective has targets, they and the rates of every split as well, as a run of its own
    would report them.
    """
    terms_fn = rates.make_repeated_terms(built.terms_fn, built.evaluation.num_samples)
    evaluators = _make_evaluators(built, ("valid", "test"))
    has_targets = built.objective.control != "constant"
    fresh_terms = make_fresh_terms(built, trainer, ("train", "valid") if has_targets else ())

    def evaluate(stack: Stack, members: Sequence[Member]) -> list[dict[str, Any]]:
        seeds, num_models = np.asarray([member.seed for member in members]), len(members)
        params = packing.lay_out(stack.states.eval_params, trainer.capacity)
        terms = {
            split: evaluator.map_images(terms_fn, params, seeds, num_models)
            for split, evaluator in evaluators.items()
        }
        fresh = fresh_terms(stack, seeds)
        return [
            _evaluation(
                built._replace(objective=member.objective),
                stack,
                model,
                packing.entry(terms, model),
                packing.entry(fresh, model),
            )
            for model, member in enumerate(members)
        ]

    return evaluate


def make_fresh_terms(
    built: Experiment, trainer: Trainer, splits: Sequence[str]
) -> Callable[[Stack, np.ndarray], dict[str, LayerwiseTerms]]:
    """(stack, seeds `[M]`) → per split the terms `[M, N, …]` of `evaluation.targets.mean_terms`."""
    evaluators = _make_evaluators(built, splits)

    def fresh_terms(stack: Stack, seeds: np.ndarray) -> dict[str, LayerwiseTerms]:
        params = packing.lay_out(stack.states.eval_params, trainer.capacity)

        def one_pass(evaluator: packing.Evaluator, number: int) -> LayerwiseTerms:
            folds = targets.FRESH_KEY, number
            return evaluator.map_images(built.terms_fn, params, seeds, len(seeds), folds)

        return {
            split: targets.mean_terms(functools.partial(one_pass, evaluator), built.evaluation.num_samples)
            for split, evaluator in evaluators.items()
        }

    return fresh_terms


def _make_evaluators(built: Experiment, splits: Sequence[str]) -> dict[str, packing.Evaluator]:
    images = {split: getattr(built.dataset, split).images for split in splits}
    return {
        split: packing.Evaluator(of_split, built.preprocess_fn)
        for split, of_split in images.items()
        if len(of_split)
    }


def _evaluation(
    built: Experiment,
    stack: Stack,
    model: int,
    terms: dict[str, LayerwiseTerms],
    fresh: dict[str, LayerwiseTerms],
) -> dict[str, Any]:
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((terms, fresh)))
    if int(stack.failed_at[model]) or not finite:
        return {"step": int(stack.states.step[model]), "status": grid_table.DIVERGED}
    of_split, of_fresh = (
        {split: rates.summarize(found, built.num_dims) for split, found in every.items()}
        for every in (terms, fresh)
    )
    report = None
    if fresh:
        betas = stack.states.beta_state.betas[model].tolist()
        report = targets.report_targets(
            built.objective, built.num_dims, betas, of_fresh["train"], of_fresh.get("valid"), of_split["test"]
        )
    step, status = int(stack.step), grid_table.OK
    return to_plain(RunEvaluation(step=step, status=status, **of_split, targets=report))


def _save_state(folder: pathlib.Path, state: TrainState) -> None:
    checkpoints, step = Checkpoints(folder / records.CHECKPOINTS_FOLDER, 1), int(state.step)
    latest = checkpoints.latest_step()
    if latest is None or latest < step:
        checkpoints.save(step, state)
        checkpoints.wait()
    checkpoints.close()
