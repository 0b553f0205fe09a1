"""What a finished grid leaves: its table and its figures."""

import pathlib
from collections.abc import Sequence

import numpy as np

from hvae_jax import records
from hvae_jax.errors import RunError
from hvae_jax.experiment import Experiment
from hvae_jax.figures import grids as figures
from hvae_jax.figures import targets as target_figures
from hvae_jax.grid import table as grid_table
from hvae_jax.grid.members import GridConfig, Member


def write(
    folder: pathlib.Path,
    built: Experiment,
    config: GridConfig,
    members: Sequence[Member],
    baseline: dict[str, np.ndarray] | None,
) -> None:
    """Writes the tables and draws the figures."""
    grid_table.write(folder, members)
    draw(grid_table.load(folder), built, config, baseline, folder)


def describe(folder: pathlib.Path) -> str:
    """How many models the table has, in words."""
    status = grid_table.load(folder)["status"]
    num = {name: int((status == name).sum()) for name in (grid_table.OK, grid_table.DIVERGED)}
    return (
        f"{num[grid_table.OK]} models trained, {num[grid_table.DIVERGED]} diverged. Everything is in {folder}"
    )


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


def draw(
    table: dict[str, np.ndarray],
    built: Experiment,
    config: GridConfig,
    baseline: dict[str, np.ndarray] | None,
    folder: pathlib.Path,
) -> None:
    """The grid's figures, of the test split."""
    if not (table["status"] == grid_table.OK).any():
        return  # no model has numbers to draw
    target = folder / records.FIGURES_FOLDER
    target.mkdir(exist_ok=True)
    model = built.model.config.inference.replace("_", " ")
    title = f"{built.dataset.title}, {model}, test split, {table['seed'].size} models"
    figures.rate_distortion(table, baseline, title, target / "rate_distortion.png")
    if config.has_targets:
        if built.model.num_layers == table["targets_nats"].shape[-1] > 1:
            target_figures.target_map(table, title.replace(", test split", ""), target / "target_map.png")
        return
    if built.model.num_layers > 1:
        figures.rate_space(table, title, target / "rate_space.png")
    if sum(len(values) > 1 for values in config.betas) > 1:
        figures.rate_maps(table, title, target / "rate_maps.png")
