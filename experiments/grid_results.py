"""What a finished grid leaves: its table and its figures."""

import pathlib
from collections.abc import Sequence

import numpy as np

from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.experiment import Experiment
from hvae_jax.grid import table as grid_table
from hvae_jax.grid.members import GridConfig, Member


def write(
    folder: pathlib.Path,
    built: Experiment,
    config: GridConfig,
    members: Sequence[Member],
    baseline: dict[str, np.ndarray] | None,
) -> None:
    """Writes the tables and draws the figures.

    Raises:
      RunError: they cannot be written, or a model's evaluation is none of this grid's.
    """
    grid_table.write(folder, members, built.num_dims)
    draw(grid_table.load(folder), built, config, baseline, folder)


def describe(folder: pathlib.Path, done: str = "trained") -> str:
    """How many models the table has, in words; `done` is what was done to them."""
    status = grid_table.load(folder)["status"]
    num = {name: int((status == name).sum()) for name in (grid_table.OK, grid_table.DIVERGED)}
    return (
        f"{num[grid_table.OK]} models {done}, {num[grid_table.DIVERGED]} diverged. Everything is in {folder}"
    )


def load_baseline(folder: str) -> dict[str, np.ndarray]:
    """The table of a grid with one layer.

    Raises:
      RunError: no grid, one of more layers, or one that is not finished.
    """
    try:
        baseline = grid_table.load(folder)
    except RunError as error:
        raise RunError(f"--baseline={folder}: {error}") from error
    num_layers = baseline["betas"].shape[-1]
    if num_layers != 1:
        raise RunError(f"--baseline={folder} is a grid of {num_layers} layers; give one of a single layer")
    num_left = int((baseline["status"] == "").sum())
    if num_left:
        raise RunError(
            f"--baseline={folder} is not finished: {num_left} of its {baseline['status'].size} models are "
            "not in its table; finish it first"
        )
    return baseline


def draw(
    table: dict[str, np.ndarray],
    built: Experiment,
    config: GridConfig,
    baseline: dict[str, np.ndarray] | None,
    folder: pathlib.Path,
) -> None:
    """The grid's figures, of the test split.

    Raises:
      RunError: they cannot be written; the table is complete without them.
    """
    if not (table["status"] == grid_table.OK).any():
        return  # no model has numbers to draw
    target = folder / records.FIGURES_FOLDER
    try:
        target.mkdir(exist_ok=True)
        _draw(table, built, config, baseline, target)
    except OSError as error:
        raise RunError(
            f"{target} cannot be written: {error.strerror}; the table is complete, and the same command "
            "draws again"
        ) from error


def _draw(
    table: dict[str, np.ndarray],
    built: Experiment,
    config: GridConfig,
    baseline: dict[str, np.ndarray] | None,
    target: pathlib.Path,
) -> None:
    # Here: of all of a grid's tasks one draws, and Matplotlib is a fifth of what they import.
    from hvae_jax.figures import grids as figures
    from hvae_jax.figures import targets as target_figures
    from hvae_jax.figures.style import MANY_LAYERS

    model = built.model.config.inference.replace("_", " ")
    what = f"{table['seed'].size} models"
    if built.model.config.is_conditioned:
        num_seeds = len(config.seeds)
        of_seeds = f", {num_seeds} seeds" if num_seeds > 1 else ""
        what = f"one model at {table['seed'].size // num_seeds} betas{of_seeds}"
    title = f"{built.dataset.title}, {model}, test split, {what}"
    groups, names = built.named_groups
    shown = {**table, "rates_nats": groups.sum(table["rates_nats"])}  # of 43 layers a map each is no figure
    rate_names = None if groups.are_layers else names
    beta_names = rate_names if built.objective.beta_groups else None
    figures.rate_distortion(table, baseline, title, target / "rate_distortion.png")
    if "start_betas" not in table:
        if 1 < len(groups) <= MANY_LAYERS:
            figures.rate_space(shown, title, target / "rate_space.png", rate_names)
        if sum(len(values) > 1 for values in config.betas) > 1:
            figures.rate_maps(shown, title, target / "rate_maps.png", rate_names, beta_names)
    elif "targets_nats" in table:
        num_targets = table["targets_nats"].shape[-1]
        has_target = np.isfinite(table["targets_nats"]).reshape(-1, num_targets).any(axis=0)
        if 1 < has_target.sum() <= MANY_LAYERS:
            title = title.replace(", test split", "")
            target_figures.target_map(table, title, target / "target_map.png", beta_names)
