"""Trains and evaluates the models of a grid, a chunk at a time, so that a killed grid resumes.

A chunk is a packed stack. Its folder under chunks/ lists its models and holds the stack's newest
checkpoint; it goes when the run folders of its models are complete. What remains to be done is read
off the disk, so the same command continues wherever it was stopped.
"""

import dataclasses
import functools
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hvae_jax import claims, packing, records, training
from hvae_jax.checkpoints import Checkpoints
from hvae_jax.errors import Stopped
from hvae_jax.evaluation import rates, targets
from hvae_jax.experiment import Experiment
from hvae_jax.grid import table as grid_table
from hvae_jax.grid.members import CHUNKS_FOLDER, Member, chunk_name, lock_file
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.packing import Stack, Trainer
from hvae_jax.training import TrainState

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
    """What is left to do: chunks that were begun as they were begun, then the other models."""
    todo = {m.number: m for m in members if not (m.folder(folder) / records.EVALUATION_FILE).exists()}
    begun = []
    for chunk_folder in sorted((folder / CHUNKS_FOLDER).glob("*")):
        file = chunk_folder / CHUNK_FILE
        chunk = [members[number] for number in records.read_json(file)] if file.exists() else []
        if any(member.number in todo for member in chunk):
            begun.append(chunk)
            for member in chunk:
                todo.pop(member.number, None)
        else:  # killed before it began, or after its last model while its folder was removed
            shutil.rmtree(chunk_folder)
    rest = list(todo.values())
    return begun + [rest[i : i + chunk_size] for i in range(0, len(rest), chunk_size)]


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
            grid_table.write(folder, members)
    grid_table.write(folder, members)


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
    with claims.claim(lock_file(folder, name), f"chunk {name} of {folder}", wait_seconds):
        stack = _train_chunk(folder, built, members, trainer, report, stop_requested)
        grid_table.write_timing(folder, members, float(stack.seconds) / len(members))
        for i, (member, evaluation) in enumerate(zip(members, evaluate(stack, members), strict=True)):
            _save_state(member.folder(folder), packing.entry(stack.states, i))
            # Last: it says that the model is complete.
            records.write_json(member.folder(folder) / records.EVALUATION_FILE, evaluation)
        shutil.rmtree(folder / CHUNKS_FOLDER / name)


def _train_chunk(
    folder: pathlib.Path,
    built: Experiment,
    members: Sequence[Member],
    trainer: Trainer,
    report: Callable[[packing.Progress], None],
    stop_requested: Callable[[], bool],
) -> Stack:
    """The models after their last step, from the newest checkpoint on."""
    numbers = [member.number for member in members]
    chunk_folder = folder / CHUNKS_FOLDER / chunk_name(numbers)
    chunk_folder.mkdir(parents=True, exist_ok=True)
    records.write_json(chunk_folder / CHUNK_FILE, numbers)
    checkpoints = Checkpoints(chunk_folder / records.CHECKPOINTS_FOLDER, 1)
    stack = init_stack(built, members)
    if checkpoints.latest_step() is not None:
        stack = checkpoints.restore(stack)
    folders = [records.open_run(member.folder(folder), member.config) for member in members]
    try:
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
    summaries = {split: rates.summarize(of_split, built.num_dims) for split, of_split in terms.items()}
    evaluation = {"step": int(stack.step), "status": grid_table.OK, **summaries}
    if fresh:
        splits = {split: rates.summarize(of_split, built.num_dims) for split, of_split in fresh.items()}
        splits["test"] = summaries["test"]
        betas = stack.states.beta_state.betas[model].tolist()
        evaluation |= targets.report_targets(built.objective, built.num_dims, betas, splits)
    return evaluation


def _save_state(folder: pathlib.Path, state: TrainState) -> None:
    checkpoints = Checkpoints(folder / records.CHECKPOINTS_FOLDER, 1)
    if checkpoints.latest_step() is None:
        checkpoints.save(int(state.step), state)
        checkpoints.wait()
    checkpoints.close()
