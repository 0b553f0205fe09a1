"""One task of a grid: trains and evaluates one chunk of its models, in a process of its own.

`experiments.grid --launcher=local` and `--launcher=slurm` start it; by hand, for a chunk that the grid's
plan names:

    python -m experiments.grid_task runs/digits_grid 0032

Asked to stop (SIGTERM, SIGUSR1, SIGUSR2), it saves a checkpoint and ends within seconds: in Slurm it
puts itself back into the queue, elsewhere it ends with status 75. The task that completes the last chunk
writes the grid's table and figures.
"""

import contextlib
import os
import pathlib
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

import jax

from experiments import grid_results, program
from hvae_jax import experiment
from hvae_jax.errors import RunError, Stopped
from hvae_jax.files import claims
from hvae_jax.grid import folders, slurm
from hvae_jax.grid import members as grid_members
from hvae_jax.grid import plan as grid_plan
from hvae_jax.grid import run as grid_run
from hvae_jax.grid import size as grid_size
from hvae_jax.grid.plan import TaskRecord
from hvae_jax.training import loop
from hvae_jax.training.stopping import StopSignals

STOPPED_STATUS = os.EX_TEMPFAIL
# A task that takes over from one that died may find its lock held for a while, on network file systems.
CLAIM_SECONDS = 90.0
SECONDS_PER_LINE = 30.0


def run_in_slurm(folder: str, name: str) -> None:
    """What Slurm's tasks call."""
    _say(f"job {slurm.own_job()} on {socket.gethostname()}")
    program.compile_sooner()
    _run(pathlib.Path(folder), name, slurm.requeue)


def main() -> None:
    """What a process of its own does."""
    program.start(main)
    if len(sys.argv) != 3:
        print("error: give the grid's folder and the name of a chunk; see --help", file=sys.stderr)
        sys.exit(1)
    try:
        folder, name = program.folder_flag("FOLDER", sys.argv[1]), sys.argv[2]
        _read_plan(folder, name)
    except (RunError, OSError) as error:  # before anything is written there
        _exit(program.describe(error) or str(error))
    program.compile_sooner()
    _run(folder, name, lambda: None)


def _run(folder: pathlib.Path, name: str, requeue: Callable[[], None]) -> None:
    record = TaskRecord(folder, name)

    def stop() -> None:
        if not record.stop():
            print("error:", record.read()["error"], file=sys.stderr, flush=True)
            os._exit(1)
        requeue()

    def overdue() -> None:
        _say("asked to stop; ends as of the last checkpoint")
        try:
            stop()
        finally:
            os._exit(STOPPED_STATUS)

    def note(error: str) -> None:
        with contextlib.suppress(RunError):  # a full disk: then the log alone says why
            record.fail(error)

    with StopSignals(overdue) as signals:
        try:
            record.start()
            program.use_compile_cache()
            _train(folder, name, signals.requested)
        except Stopped as stopped:
            _say(f"asked to stop; saved at step {stopped.step}")
            stop()
            sys.exit(STOPPED_STATUS)
        except Exception as error:
            message = program.describe(error)
            if message is None:
                note(traceback.format_exception_only(error)[-1].strip().splitlines()[0])
                raise
            note(message)
            _exit(message)


def _read_plan(folder: pathlib.Path, name: str) -> grid_plan.Plan:
    plan = grid_plan.read(folder)
    if plan is None or name not in plan.names:
        raise RunError(
            f"{folder} has no plan with a chunk {name}; start tasks with experiments.grid --launcher"
        )
    return plan


def _train(folder: pathlib.Path, name: str, stop_requested: Callable[[], bool]) -> None:
    plan = _read_plan(folder, name)
    program.split_cpu(plan.num_cpu_devices)
    grid_config, members = folders.read(folder)
    chunk = grid_plan.chunks(folder, members, plan)[name]
    if not all(folders.is_complete(folder, member) for member in chunk):
        if plan.gpus_per_task and jax.default_backend() == "cpu":
            raise RunError(
                f"--gpus_per_task={plan.gpus_per_task}, but JAX sees no GPU on {socket.gethostname()}: is "
                "jax[cuda] installed there?"
            )
        built = experiment.from_config(members[0].config, num_devices=1)
        _say(
            f"chunk {name}: {len(chunk)} models of {built.num_steps} steps over {jax.local_device_count()} "
            f"{jax.default_backend()} devices"
        )
        last_line = -SECONDS_PER_LINE

        def report(progress: loop.Progress) -> None:
            nonlocal last_line
            if time.monotonic() - last_line >= SECONDS_PER_LINE:
                last_line = time.monotonic()
                speed = progress.model_steps / progress.seconds
                _say(f"step {progress.step}/{built.num_steps}, {speed:,.0f} model-steps/s")

        grid_run.run_chunk(folder, built, chunk, plan.chunk_size, report, stop_requested, CLAIM_SECONDS)
        gib = grid_size.peak_bytes() / grid_size.GIB
        _say(f"chunk {name} is complete; the most memory in use was {gib:.2f} GiB")
    merge(folder, plan, grid_config, members)


def merge(
    folder: pathlib.Path,
    plan: grid_plan.Plan,
    config: grid_members.GridConfig,
    members: list[grid_members.Member],
) -> bool:
    """Writes the grid's table and figures if its last model is complete; whether it is."""
    if grid_plan.unfinished(folder, members, plan):
        return False
    # Two tasks may both see the last model complete: one of them writes, the other has nothing to add.
    lock = folder / grid_members.TASKS_FOLDER / grid_plan.MERGE_LOCK
    try:
        with claims.claim(lock, f"the table of {folder}"):
            grid_run.clear_chunks(folder, members)
            built = experiment.from_config(members[0].config, num_devices=1)
            baseline = grid_results.load_baseline(plan.baseline) if plan.baseline else None
            grid_results.write(folder, built, config, members, baseline)
            _say(grid_results.describe(folder))
    except claims.Claimed:
        _say("another task writes the table")
    return True


def _exit(message: str) -> NoReturn:
    print("error:", " ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(1)


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, flush=True)


if __name__ == "__main__":
    main()
