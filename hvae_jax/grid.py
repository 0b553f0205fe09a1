"""A grid of models that differ in a few config fields: which models there are, and their folders.

A grid point is a set of overrides of config fields, so every model has a config of its own, the one
that would train it alone. The folder of a grid:

    config.json, versions.json     of the grid, with its group `grid`
    grid.csv, timing.csv           one row a model
    figures/
    models/0000, models/0001 …     an ordinary run folder each
    chunks/0000                    what the running chunk needs to resume
"""

import copy
import dataclasses
import itertools
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from hvae_jax import experiment
from hvae_jax.errors import RunError

DATA_ORDERS = ("shared", "per_model")
MODELS_FOLDER, CHUNKS_FOLDER = "models", "chunks"


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """What a config's `grid` group says; every field is checked before any work starts.

    Attributes:
      betas: one tuple of values per layer, z_1 first; the grid is their cartesian product. Empty
        where `points` are given.
      points: instead, the beta vectors themselves.
      seeds: every point is trained with each of them.
      data_order: "shared" (all models see the same batches) or "per_model" (the seed's own order).
      chunk_size: models that are trained at a time; 0 takes as many as are useful and fit.
      memory_gib: that training may use on this machine; 0 takes most of what is free.
    """

    betas: tuple[tuple[float, ...], ...]
    points: tuple[tuple[float, ...], ...]
    seeds: tuple[int, ...]
    data_order: str
    chunk_size: int
    memory_gib: float

    def __post_init__(self) -> None:
        if bool(self.betas) == bool(self.points):
            raise RunError(
                f"config.grid.betas={self.betas!r} and config.grid.points={self.points!r}: give one of them, "
                "the values of each layer's beta or the beta vectors themselves"
            )
        for name in ("betas", "points"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(map(_is_beta_tuple, value)):
                raise RunError(
                    f"config.grid.{name}={value!r} must be a tuple of tuples of betas, finite and not "
                    "negative, for example ((0.1, 1.0), (0.1, 1.0, 10.0))"
                )
        for layer, values in enumerate(self.betas, start=1):
            _refuse_repeats(f"betas={self.betas!r} (layer {layer})", values)
        _refuse_repeats(f"points={self.points!r}", self.points)
        seeds = self.seeds
        if not isinstance(seeds, tuple) or not seeds or not all(type(seed) is int for seed in seeds):
            raise RunError(f"config.grid.seeds={seeds!r} must be a tuple of integers, for example (0, 1, 2)")
        _refuse_repeats(f"seeds={seeds!r}", seeds)
        if self.data_order not in DATA_ORDERS:
            raise RunError(
                f"config.grid.data_order={self.data_order!r} is unknown; choose one of {DATA_ORDERS}"
            )
        if type(self.chunk_size) is not int or self.chunk_size < 0:
            raise RunError(
                f"config.grid.chunk_size={self.chunk_size!r} must be an integer; 0 chooses by memory"
            )
        if not (isinstance(self.memory_gib, int | float) and math.isfinite(self.memory_gib)) or (
            self.memory_gib < 0
        ):
            raise RunError(
                f"config.grid.memory_gib={self.memory_gib!r} must be finite and not negative; 0 takes "
                "most of what is free"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an array over the grid: values per layer, then seeds; or points, then seeds."""
        points = tuple(map(len, self.betas)) if self.betas else (len(self.points),)
        return (*points, len(self.seeds))

    def check_layers(self, num_layers: int) -> None:
        """Raises RunError unless every point has one beta per layer."""
        found = {len(self.betas)} if self.betas else set(map(len, self.points))
        for number in sorted(found - {num_layers}):
            name = "betas" if self.betas else "points"
            raise RunError(
                f"config.grid.{name}={getattr(self, name)!r} is over {number} layers but the model has "
                f"{num_layers} (config.model.latent_shapes); give betas for each layer, z_1 first"
            )


class Member(NamedTuple):
    """One model of a grid.

    Attributes:
      number: its place in the table, from 0; the last axis of `GridConfig.shape` runs fastest.
      config: what would train it alone.
    """

    number: int
    config: dict[str, Any]

    @property
    def betas(self) -> tuple[float, ...]:
        """Multipliers, z_1 first."""
        return self.config["objective"]["betas"]

    @property
    def seed(self) -> int:
        """Of parameters and noise."""
        return self.config["training"]["seed"]

    @property
    def order_seed(self) -> int:
        """Of the data order."""
        return self.config["training"]["order_seed"]

    def folder(self, grid_folder: pathlib.Path) -> pathlib.Path:
        """Its run folder."""
        return grid_folder / MODELS_FOLDER / f"{self.number:04d}"


def read_config(config: Mapping[str, Any]) -> tuple[GridConfig, list[Member]]:
    """The grid that a config describes, and its models.

    Args:
      config: the groups of a run and the group `grid`.

    Raises:
      RunError: no such group, or a field of it that is missing, unknown or out of range.
    """
    if "grid" not in config:
        raise RunError("config has no group grid; train a single model with experiments.run")
    grid = experiment.build_group("grid", GridConfig, config)
    base = {name: group for name, group in config.items() if name != "grid"}
    grid.check_layers(len(base["model"]["latent_shapes"]))
    members = []
    for number, overrides in enumerate(_overrides(grid)):
        of_model = copy.deepcopy(base)
        for field, value in overrides.items():
            group, name = field.split(".")
            of_model[group][name] = value
        members.append(Member(number, of_model))
    return grid, members


def _overrides(grid: GridConfig) -> Iterable[dict[str, Any]]:
    """What each model changes in the config, as `group.field` → value."""
    points = itertools.product(*grid.betas) if grid.betas else grid.points
    for betas, seed in itertools.product(points, grid.seeds):
        overrides: dict[str, Any] = {"objective.betas": tuple(map(float, betas)), "training.seed": seed}
        if grid.data_order == "per_model":
            overrides["training.order_seed"] = seed
        yield overrides


def _is_beta_tuple(values: object) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) > 0
        and all(isinstance(b, int | float) and math.isfinite(b) and b >= 0 for b in values)
    )


def _refuse_repeats(field: str, values: tuple[Any, ...]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise RunError(f"config.grid.{field} holds {repeated[0]!r} more than once; give each once")
