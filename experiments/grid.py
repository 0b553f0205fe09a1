"""Train a whole grid of betas, or of target rates, as one program, and evaluate every model at β = 1.

    python -m experiments.grid --config=experiments/digits_grid.py
    python -m experiments.grid --config=experiments/cifar_grid.py --dry_run

The folder then holds grid.csv, one row a model, figures/, and in models/ a run folder for every model.
The same command resumes a grid that was stopped.
"""

import pathlib
import sys
import time

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from experiments import program
from hvae_jax import experiment, grid, grid_run, grid_size, grid_table, records
from hvae_jax.errors import RunError
from hvae_jax.experiment import Experiment
from hvae_jax.figures import grids as figures
from hvae_jax.figures import targets as target_figures

_CONFIG = config_flags.DEFINE_config_file("config", None, "One of experiments/*_grid.py.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "The grid's folder; runs/NAME_OF_CONFIG by default.")
_DRY_RUN = flags.DEFINE_boolean("dry_run", False, "Say how many models, chunks, how much memory and time.")
_CPU_DEVICES = flags.DEFINE_integer(
    "cpu_devices", None, "Devices to split a CPU into; one per core by default.", lower_bound=1
)
_BASELINE = flags.DEFINE_string("baseline", None, "Folder of a grid with L = 1, to draw beside this one.")
flags.mark_flag_as_required("config")

SECONDS_PER_LINE = 10.0


def main(arguments: list[str]) -> None:
    """Reads the flags, trains, evaluates, draws."""
    if arguments:
        raise RunError(f"{arguments[0]!r} is not a flag; flags start with --")
    name, config = program.read_config(_CONFIG)
    program.split_cpu(_CPU_DEVICES.value or program.num_cores())
    workdir = pathlib.Path(_WORKDIR.value or f"runs/{name}")
    grid_config, members = grid.read_config(config)
    built = experiment.from_config(members[0].config, num_devices=1)
    size = grid_size.choose_size(grid_config, built, members)
    print(describe(size, len(members), built.num_steps), flush=True)
    if _DRY_RUN.value:
        speed = grid_size.model_steps_per_second(built, members, size.chunk_size)
        hours = len(members) * built.num_steps / speed / 3600
        print(f"{speed:,.1f} model-steps/s here and now: about {hours:.2f} hours of training")
        return
    baseline = load_baseline(_BASELINE.value) if _BASELINE.value else None
    folder = records.open_run(workdir, config)
    with Progress(len(members)) as progress:
        grid_run.run(folder, built, members, size.chunk_size, progress.report)
    draw(built, grid_config, baseline, folder)
    table = grid_table.load(folder)
    num_diverged = int((table["status"] == grid_table.DIVERGED).sum())
    print(f"{len(members) - num_diverged} models trained, {num_diverged} diverged. Everything is in {folder}")
    print(f"The most memory in use was {grid_size.peak_bytes() / grid_size.GIB:.2f} GiB")


def load_baseline(folder: str) -> dict[str, np.ndarray]:
    """The table of a grid with one layer.

    Raises:
      RunError: no grid, or one of more layers.
    """
    baseline = grid_table.load(folder)
    num_layers = baseline["betas"].shape[-1]
    if num_layers != 1:
        raise RunError(f"--baseline={folder} is a grid of {num_layers} layers; give one of a single layer")
    return baseline


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


def draw(
    built: Experiment, config: grid.GridConfig, baseline: dict[str, np.ndarray] | None, folder: pathlib.Path
) -> None:
    """The grid's figures, of the test split."""
    table = grid_table.load(folder)
    if not (table["status"] == grid_table.OK).any():
        return  # no model has numbers to draw
    target = folder / records.FIGURES_FOLDER
    target.mkdir(exist_ok=True)
    model = built.model.config.inference.replace("_", " ")
    title = f"{built.dataset.name}, {model}, test split, {table['seed'].size} models"
    figures.rate_distortion(table, baseline, title, target / "rate_distortion.png")
    if config.has_targets:
        if built.model.num_layers == table["targets_nats"].shape[-1] > 1:
            target_figures.target_map(table, title.replace(", test split", ""), target / "target_map.png")
        return
    if built.model.num_layers > 1:
        figures.rate_space(table, title, target / "rate_space.png")
    if sum(len(values) > 1 for values in config.betas) > 1:
        figures.rate_maps(table, title, target / "rate_maps.png")


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
