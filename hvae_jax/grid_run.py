"""Trains and evaluates the models of a grid, a chunk at a time, so that a killed grid resumes.

A chunk is a packed stack. Its folder under chunks/ lists its models and holds the stack's newest
checkpoint; it goes when the run folders of its models are complete. What remains to be done is read
off the disk, so the same command continues wherever it was stopped.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hvae_jax import grid_table, packing, records, training
from hvae_jax.checkpoints import Checkpoints
from hvae_jax.evaluation import rates
from hvae_jax.experiment import Experiment
from hvae_jax.grid import CHUNKS_FOLDER, Member
from hvae_jax.packing import Stack, Trainer
from hvae_jax.training import TrainState

CHUNK_FILE = "models.json"


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
        states.append(training.init_state(params[member.seed], member.betas, built.make_control(), config))
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
) -> None:
    """Trains and evaluates every model that is not complete, and writes the tables.

    Args:
      folder: the grid's, see `records.open_run`.
      built: the experiment that the models share; their betas and seeds are their own.
      members: all models of the grid.
      chunk_size: models that are trained at a time.
      report: called after every interval.

    Raises:
      RunError: a folder that cannot be written, a checkpoint that is damaged.
    """
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

            _run_chunk(folder, built, chunk, trainer, evaluate, report_chunk)
            grid_table.write(folder, members)
    grid_table.write(folder, members)


def _run_chunk(
    folder: pathlib.Path,
    built: Experiment,
    members: Sequence[Member],
    trainer: Trainer,
    evaluate: Callable[[Stack, np.ndarray], list[dict[str, Any]]],
    report: Callable[[packing.Progress], None],
) -> None:
    chunk_folder = folder / CHUNKS_FOLDER / f"{members[0].number:04d}"
    chunk_folder.mkdir(parents=True, exist_ok=True)
    records.write_json(chunk_folder / CHUNK_FILE, [member.number for member in members])
    checkpoints = Checkpoints(chunk_folder / records.CHECKPOINTS_FOLDER, 1)
    stack = init_stack(built, members)
    if checkpoints.latest_step() is not None:
        stack = checkpoints.restore(stack)
    folders = [records.open_run(member.folder(folder), member.config) for member in members]
    seeds = np.asarray([member.seed for member in members])
    stack = trainer.train(
        stack,
        [records.RateLog(model_folder, resume_step=int(stack.step)) for model_folder in folders],
        seeds=seeds,
        order_seeds=np.asarray([member.order_seed for member in members]),
        save=checkpoints.save,
        report=report,
    )
    checkpoints.wait()
    checkpoints.close()
    grid_table.write_timing(folder, [m.number for m in members], float(stack.seconds) / len(members))
    evaluations = evaluate(stack, seeds)
    for i, model_folder in enumerate(folders):
        _save_state(model_folder, packing.entry(stack.states, i))
        records.write_json(model_folder / records.EVALUATION_FILE, evaluations[i])  # last: it is complete
    shutil.rmtree(chunk_folder)


def make_evaluate(built: Experiment, trainer: Trainer) -> Callable[[Stack, np.ndarray], list[dict[str, Any]]]:
    """(stack, seeds) → what each model's evaluation.json holds: validation and test splits at β = 1."""
    terms_fn = rates.make_repeated_terms(built.terms_fn, built.evaluation.num_samples)
    splits = {"valid": built.dataset.valid.images, "test": built.dataset.test.images}
    evaluators = {
        split: packing.Evaluator(images, built.preprocess_fn)
        for split, images in splits.items()
        if len(images)
    }
    num_dims = int(np.prod(built.dataset.image_shape))

    def evaluate(stack: Stack, seeds: np.ndarray) -> list[dict[str, Any]]:
        num_models = len(seeds)
        params = packing.lay_out(stack.states.eval_params, trainer.capacity)
        terms = {
            split: evaluator.map_images(terms_fn, params, seeds, num_models)
            for split, evaluator in evaluators.items()
        }
        return [
            _evaluation(stack, model, packing.entry(terms, model), num_dims) for model in range(num_models)
        ]

    return evaluate


def _evaluation(stack: Stack, model: int, terms: dict[str, Any], num_dims: int) -> dict[str, Any]:
    failed_at = int(stack.failed_at[model])
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(terms))
    if failed_at or not finite:
        return {"step": int(stack.states.step[model]), "status": grid_table.DIVERGED}
    summaries = {split: rates.summarize(of_split, num_dims) for split, of_split in terms.items()}
    return {"step": int(stack.step), "status": grid_table.OK, **summaries}


def _save_state(folder: pathlib.Path, state: TrainState) -> None:
    checkpoints = Checkpoints(folder / records.CHECKPOINTS_FOLDER, 1)
    if checkpoints.latest_step() is None:
        checkpoints.save(int(state.step), state)
        checkpoints.wait()
    checkpoints.close()
