"""Train a whole grid of betas as one program, and evaluate every model at β = 1.

    python -m experiments.grid --config=experiments/digits_grid.py
    python -m experiments.grid --config=experiments/cifar_grid.py --dry_run

The folder then holds grid.csv, one row a model, figures/, and in models/ a run folder for every model.
The same command resumes a grid that was stopped.
"""

import os
import pathlib
import sys
import time

import jax
from absl import flags
from ml_collections import config_flags

from experiments import program
from hvae_jax import experiment, grid, grid_run, records
from hvae_jax.errors import RunError

_CONFIG = config_flags.DEFINE_config_file("config", None, "One of experiments/*_grid.py.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "The grid's folder; runs/NAME_OF_CONFIG by default.")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Say how many models, chunks, how much memory and time.")
_CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices", None, "Devices to split a CPU into; one per core by default.", lower_bound=1
)
flags.mark_flag_as_required("config")

SECONDS_PER_LINE = 10.0


def main(arguments: list[str]) -> None:
    """Reads the flags, trains, evaluates, draws."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    name, config = program.read_config(_CONFIG)
    jax.config.update("jax_num_cpu_devices", _CPU_DEVICES.value or len(os.sched_getaffinity(0)))
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{name}")
    grid_config, members = grid.read_config(config)
    built = experiment.from_config(members[0].config, num_devices=1)
    folder = records.open_run(workdir, config)
    chunk_size = grid_config.chunk_size or 64
    grid_run.run(folder, built, members, chunk_size, Progress(len(members)).report)
    print(f"Everything is in {folder}")


class Progress:
    """A line with models done, speed and time left: in place on a terminal, else now and then."""

    def __init__(self, num_models: int) -> None:
        self._num_models = num_models
        self._last_line = -SECONDS_PER_LINE

    def report(self, progress: grid_run.Progress) -> None:
        """Shows the newest state."""
        on_terminal, now = sys.stderr.isatty(), time.monotonic()
        if not on_terminal and now - self._last_line < SECONDS_PER_LINE:
            return
        self._last_line = now
        speed = progress.last.model_steps / progress.last.seconds
        left = progress.model_steps_left / speed if speed else 0.0
        text = (
            f"{progress.done}/{self._num_models} models done, step {progress.last.step}, "
            f"{speed:,.0f} model-steps/s, {left / 60:.1f} min left"
        )
        print(f"\r{text}\033[K" if on_terminal else text, end="" if on_terminal else "\n", file=sys.stderr)


if __name__ == "__main__":
    program.run(main)
