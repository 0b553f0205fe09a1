r"""Train a whole grid of betas, or of target rates, as one program, and evaluate every model at β = 1.

    python -m experiments.grid --config=experiments/digits_grid.py
    python -m experiments.grid --config=experiments/cifar_grid.py --dry_run

The folder then holds grid.csv, one row a model, figures/, and in models/ a run folder for every model.
The same command resumes a grid that was stopped. Other launchers train chunks of the models as tasks of
their own, in processes of this machine or in Slurm:

    python -m experiments.grid --config=experiments/digits_grid.py --launcher=local --tasks=8
    python -m experiments.grid --config=experiments/cifar_grid.py --launcher=slurm --tasks=21 \
        --partition=gpu --gpus_per_task=1 --cpus_per_task=8 --time=4:00:00
"""

import dataclasses
import pathlib
import sys
import time

import jax
from absl import flags
from ml_collections import config_flags

from experiments import grid_launch, grid_results, program
from hvae_jax import experiment, records
from hvae_jax.errors import RunError
from hvae_jax.grid import members as grid_members
from hvae_jax.grid import plan as grid_plan
from hvae_jax.grid import run as grid_run
from hvae_jax.grid import size as grid_size
from hvae_jax.grid import slurm
from hvae_jax.stopping import StopSignals

_CONFIG = config_flags.DEFINE_config_file("config", None, "One of experiments/*_grid.py.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "The grid's folder; runs/NAME_OF_CONFIG by default.")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Say how many models, chunks, how much memory and time.")
_CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices", None, "Devices to split a CPU into; one per core by default.", lower_bound=1
)
_BASELINE = flags.DEFINE_string("baseline", None, "Folder of a grid with L = 1, to draw beside this one.")
_LAUNCHER = flags.DEFINE_enum(
    "launcher", "here", ["here", "local", "slurm"],
    "Who trains: this process, several processes of this machine, or tasks of Slurm.",
)  # fmt: skip
_TASKS = flags.DEFINE_integer(
    "tasks", None, "Tasks to divide the grid into, unless config.grid.chunk_size does.", lower_bound=1
)
_PARALLEL_TASKS = flags.DEFINE_integer(
    "parallel_tasks", None, "At most so many at a time; locally by default one per cpus_per_task cores.",
    lower_bound=1,
)  # fmt: skip
_GPUS_PER_TASK = flags.DEFINE_integer("gpus_per_task", 0, "GPUs of each task.", lower_bound=0)
_CPUS_PER_TASK = flags.DEFINE_integer("cpus_per_task", None, "Cores of each task.", lower_bound=1)
_PARTITION = flags.DEFINE_string("partition", None, "Slurm's; its default partition by default.")
_TIME = flags.DEFINE_string("time", None, "Limit of each task as sbatch writes it; a task at it is requeued.")
_MEM_GIB = flags.DEFINE_float("mem_gib", None, "Memory of each task in Slurm.", lower_bound=0.1)
_SIGNAL_S = flags.DEFINE_integer(
    "signal_s", 90, "Seconds before the time limit when a task of Slurm saves and ends.", lower_bound=30
)
_SBATCH = flags.DEFINE_multi_string("sbatch", [], "A further option of sbatch, as account=NAME.")
_SETUP = flags.DEFINE_multi_string("setup", [], "A shell line to run before a task of Slurm.")
flags.mark_flag_as_required("config")

SECONDS_PER_LINE = 10.0


def main(arguments: list[str]) -> None:
    """Reads the flags, trains, evaluates, draws."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    name, config = program.read_config(_CONFIG)
    given = {flag for flag in grid_launch.LAUNCHERS["slurm"] if flags.FLAGS[flag].present}
    grid_launch.check_flags(_LAUNCHER.value, given)
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{name}")
    grid_config, members = grid_members.read_config(config)
    baseline = grid_results.load_baseline(_BASELINE.value) if _BASELINE.value else None
    if _LAUNCHER.value != "here":
        # The accelerators of this machine, if it has any, are for the tasks.
        jax.config.update("jax_platforms", "cpu")
        built = experiment.from_config(members[0].config, num_devices=1)
        program.show_notices(built.dataset)
        num_steps = built.num_steps
        grid_launch.launch(workdir, config, grid_config, members, task_options(), num_steps, _DRY_RUN.value)
        return
    program.split_cpu(_CPU_DEVICES.value or program.num_cores())
    built = experiment.from_config(members[0].config, num_devices=1)
    program.show_notices(built.dataset)
    plan = grid_plan.read(workdir)
    if plan is not None:  # tasks began it
        grid_config = dataclasses.replace(grid_config, chunk_size=plan.chunk_size)
    size = grid_size.choose_size(grid_config, built, members)
    print(describe(size, len(members), built.num_steps), flush=True)
    if _DRY_RUN.value:
        speed = grid_size.model_steps_per_second(built, members, size.chunk_size)
        hours = len(members) * built.num_steps / speed / 3600
        print(f"{speed:,.1f} model-steps/s here and now: about {hours:.2f} hours of training")
        return
    folder = records.open_run(workdir, config)
    chunks = None
    if plan is not None:
        state = grid_launch.survey(folder, members, plan)
        if state.alive:
            tasks = "; ".join(f"chunk {name} is {what}" for name, what in state.alive.items())
            raise RunError(f"the grid in {folder} is at work: {tasks}; nothing was started")
        chunks = [[members[number] for number in plan.names[name]] for name in state.unfinished]
    with Progress(len(members)) as progress, StopSignals(program.stop_now) as signals:
        grid_run.run(
            folder,
            built,
            members,
            size.chunk_size,
            progress.report,
            chunks=chunks,
            stop_requested=signals.requested,
        )
    grid_results.write(folder, built, grid_config, members, baseline)
    print(grid_results.describe(folder))
    print(f"The most memory in use was {grid_size.peak_bytes() / grid_size.GIB:.2f} GiB")


def task_options() -> grid_launch.Options:
    """How to start tasks, from the flags."""
    return grid_launch.Options(
        launcher=_LAUNCHER.value,
        num_tasks=_TASKS.value,
        num_cpu_devices=_CPU_DEVICES.value or _CPUS_PER_TASK.value or 1,
        baseline=_BASELINE.value,
        slurm=slurm.Options(
            time=_TIME.value or "",
            partition=_PARTITION.value,
            gpus_per_task=_GPUS_PER_TASK.value,
            cpus_per_task=_CPUS_PER_TASK.value,
            mem_gib=_MEM_GIB.value,
            parallel_tasks=_PARALLEL_TASKS.value,
            signal_s=_SIGNAL_S.value,
            extra=tuple(_SBATCH.value),
            setup=tuple(_SETUP.value),
        ),
    )


def describe(size: grid_size.Size, num_models: int, num_steps: int) -> str:
    """Models, chunks and memory in words."""
    gib = [
        f"{number / grid_size.GIB:.2f}" for number in (size.peak_bytes, size.budget_bytes, size.fixed_bytes)
    ]
    return (
        f"{num_models} models of {num_steps} steps in {-(-num_models // size.chunk_size)} chunks of at most "
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


if __name__ == "__main__":
    program.run(main)
