"""Trains a grid in this process: what is left of it, a chunk at a time, then its table and figures."""

import dataclasses
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import grid_launch, grid_results, program
from hvae_jax.errors import RunError
from hvae_jax.experiment import Experiment
from hvae_jax.files import claims
from hvae_jax.grid import folders
from hvae_jax.grid import plan as grid_plan
from hvae_jax.grid import run as grid_run
from hvae_jax.grid import size as grid_size
from hvae_jax.grid.members import GridConfig, Member
from hvae_jax.training.stopping import StopSignals

SECONDS_PER_LINE = 10.0


class Work(NamedTuple):
    """What is left of a grid.

    Attributes:
      members: all models, with the numbers of their folders.
      num_left: models that are not complete.
      size: models at a time, and memory; None where none is left.
      plan: of the tasks that began it, if any.
    """

    members: list[Member]
    num_left: int
    size: grid_size.Size | None
    plan: grid_plan.Plan | None


def find_work(folder: pathlib.Path, config: GridConfig, built: Experiment, members: Sequence[Member]) -> Work:
    """What is left to do; nothing is written.

    Args:
      folder: of the grid; it may be there or not.
      config, members: what it describes.
      built: the experiment that the models share.

    Raises:
      RunError: too little memory, or a damaged file.
    """
    members = folders.number(folder, members)
    folders.check_models(folder, members)
    plan = grid_plan.current(folder, members)
    num_left = sum(not folders.is_complete(folder, member) for member in members)
    if plan is not None:  # tasks began it
        config = dataclasses.replace(config, chunk_size=plan.chunk_size)
    size = grid_size.choose_size(config, built, members) if num_left else None
    return Work(members, num_left, size, plan)


def find_chunks(folder: pathlib.Path, work: Work) -> list[list[Member]]:
    """How what is left is divided; nothing is written.

    Raises:
      RunError: a task is at work on it.
    """
    if work.plan is None:
        return grid_run.plan_chunks(folder, work.members, work.size.chunk_size if work.size else 1)
    state = grid_launch.survey(folder, work.members, work.plan)
    if state.alive:
        tasks = "; ".join(f"chunk {name} is {what}" for name, what in state.alive.items())
        raise RunError(f"the grid in {folder} is at work: {tasks}; nothing was started")
    named = grid_plan.chunks(folder, work.members, work.plan)
    return [named[name] for name in state.unfinished]


def dry_run(folder: pathlib.Path, config: GridConfig, built: Experiment, members: Sequence[Member]) -> None:
    """Says how many models and chunks there are, and what they take; nothing is written."""
    work = find_work(folder, config, built, members)
    print(describe(work, find_chunks(folder, work), built.num_steps), flush=True)
    if work.size is not None:
        speed = grid_size.model_steps_per_second(built, work.members, work.size.chunk_size)
        hours = work.num_left * built.num_steps / speed / 3600
        print(f"{speed:,.1f} model-steps/s here and now: about {hours:.2f} hours of training")


def train(
    folder: pathlib.Path,
    config: Mapping[str, Any],
    grid_config: GridConfig,
    built: Experiment,
    members: Sequence[Member],
    baseline: dict[str, np.ndarray] | None,
) -> None:
    """Trains what is left of a grid, and writes its table and figures.

    Args:
      folder: of the grid; it may be there or not.
      config: of the grid.
      grid_config, members: what it describes.
      built: the experiment that the models share.
      baseline: table of a grid with one layer, for a figure, or None.

    Raises:
      RunError: a folder that holds something else, or in which another process or a task is at work.
      Stopped: by a signal.
    """
    data = built.dataset.describe()
    folders.check(folder, config, members, data)
    work = find_work(folder, grid_config, built, members)
    find_chunks(folder, work)  # what it refuses, it refuses before anything is written
    with claims.claim(grid_plan.launch_lock(folder), f"the grid in {folder}"):
        members = folders.open_grid(folder, config, members, data)
        if members != work.members or grid_plan.current(folder, members) != work.plan:
            raise RunError(
                f"another process divided the grid in {folder} just now; run the same command again"
            )
        chunks = find_chunks(folder, work)
        print(describe(work, chunks, built.num_steps), flush=True)
        with Progress(len(members)) as progress, StopSignals(program.stop_now) as signals:
            grid_run.run(
                folder,
                built,
                members,
                work.size.chunk_size if work.size else 1,
                progress.report,
                chunks=chunks,
                stop_requested=signals.requested,
            )
        grid_results.write(folder, built, grid_config, members, baseline)


def describe(work: Work, chunks: Sequence[Sequence[Member]], num_steps: int) -> str:
    """Models, chunks and memory in words."""
    size, num_models = work.size, len(work.members)
    if size is None:
        return f"{num_models} models of {num_steps} steps, all complete"
    complete = (
        "" if work.num_left == num_models else f", {num_models - work.num_left} complete, {work.num_left}"
    )
    gib = [
        f"{number / grid_size.GIB:.2f}" for number in (size.peak_bytes, size.budget_bytes, size.fixed_bytes)
    ]
    return (
        f"{num_models} models of {num_steps} steps{complete} in {len(chunks)} chunks of at most "
        f"{size.chunk_size}, over {jax.local_device_count()} {jax.default_backend()} devices\n"
        f"Memory: at most about {gib[0]} of {gib[1]} GiB: {gib[2]} for the program, compiling, the "
        f"images and one gradient a device, {size.model_bytes / 2**20:.2f} MiB for each model of a chunk"
    )


class Progress:
    """A line with models done, speed and time left: in place on a terminal, else now and then."""

    def __init__(self, num_models: int) -> None:
        self._num_models = num_models
        self._last_line = -SECONDS_PER_LINE
        self._model_steps, self._seconds = 0, 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def report(self, progress: grid_run.Progress) -> None:
        """Shows the newest state."""
        self._model_steps += progress.last.model_steps
        self._seconds += progress.last.seconds
        on_terminal, now = sys.stderr.isatty(), time.monotonic()
        if not on_terminal and now - self._last_line < SECONDS_PER_LINE:
            return
        self._last_line = now
        speed = self._model_steps / self._seconds
        left = progress.model_steps_left / speed if speed else 0.0
        text = (
            f"{progress.done}/{self._num_models} models done, step {progress.last.step}, "
            f"{speed:,.0f} model-steps/s, {left / 60:.1f} min left"
        )
        print(f"\r{text}\033[K" if on_terminal else text, end="" if on_terminal else "\n", file=sys.stderr)
