"""A grid of models that differ in a few config fields: which models there are, and their folders.

A grid point is a set of overrides of config fields, so every model has a config of its own, the one
that would train it alone. The folder of a grid:

    config.json, versions.json     of the grid, with its group `grid`
    data.json                      fingerprints of its data
    models.json                    which model is in which folder, see `folders`
    grid.csv, timing.csv           one row a model
    figures/
    models/0000, models/0001 …     an ordinary run folder each
    chunks/0000                    what the running chunk needs to resume
    tasks/                         who is at work on what, see `plan`
"""

import collections
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from hvae_jax import experiment, records
from hvae_jax.errors import RunError
from hvae_jax.groups import Groups, Ranges
from hvae_jax.models.hvae import ModelConfig
from hvae_jax.objective_config import ObjectiveConfig
from hvae_jax.training import TrainingConfig
from hvae_jax.values import is_number, shorten

# No machine has more.
MAX_MEMORY_GIB = 10**6
DATA_ORDERS = ("shared", "per_model")
# The fields that say which points there are: values per layer, or lists of vectors.
PRODUCTS, LISTS = ("betas", "targets_nats"), ("points", "target_points")
CHUNKS_FOLDER, TASKS_FOLDER = "chunks", "tasks"


@dataclasses.dataclass(frozen=True)
class GridConfig:
    """What a config's `grid` group says; every field is checked before any work starts.

    Attributes:
      betas: one tuple of values per layer, z_1 first (or per group of `objective.beta_groups`); the grid is
        their cartesian product. One of the first four fields is given, the others are empty.
      points: instead, the beta vectors themselves.
      targets_nats: instead, values of each layer's target rate, for a config whose objective solves
        for the betas (or of the one target, where it has one: a total rate or a distortion).
      target_points: instead, the target vectors themselves; in nats, as all targets of a grid.
      seeds: every point is trained with each of them.
      data_order: "shared" (all models see the same batches) or "per_model" (the seed's own order).
      chunk_size: models that are trained at a time; 0 takes as many as are useful and fit.
      memory_gib: that training may use on this machine; 0 takes most of what is free.
    """

    betas: tuple[tuple[float, ...], ...]
    points: tuple[tuple[float, ...], ...]
    targets_nats: tuple[tuple[float, ...], ...]
    target_points: tuple[tuple[float, ...], ...]
    seeds: tuple[int, ...]
    data_order: str
    chunk_size: int
    memory_gib: float

    def __post_init__(self) -> None:
        fields = {name: getattr(self, name) for name in (*PRODUCTS, *LISTS)}
        for name, value in fields.items():
            if not isinstance(value, tuple):
                raise RunError(
                    f"config.grid.{name}={shorten(value)} must be a tuple of tuples of numbers, for example "
                    "((0.1, 1.0), (0.1, 1.0, 10.0)); () where it is not the field that says the points"
                )
        if sum(map(bool, fields.values())) != 1:
            given = " and ".join(
                f"config.grid.{name}={shorten(value)}" for name, value in fields.items() if value
            )
            raise RunError(
                f"{given or 'config.grid has no points'}: give one of config.grid.{', '.join(fields)}, the "
                "values of each layer's beta or target, or the vectors themselves"
            )
        for name, value in fields.items():
            what = "targets, finite and positive" if self.has_targets else "betas, finite and not negative"
            if not all(_is_vector(v, self.has_targets) for v in value):
                raise RunError(
                    f"config.grid.{name}={shorten(value)} must be a tuple of tuples of {what}, for example "
                    "((0.1, 1.0), (0.1, 1.0, 10.0))"
                )
        for layer, values in enumerate(self.values, start=1):
            _refuse_repeats(f"{self.field}={shorten(self.values)} (layer {layer})", values)
        if not self.values:
            _refuse_repeats(f"{self.field}={shorten(self.vectors)}", self.vectors)
        seeds = self.seeds
        if not isinstance(seeds, tuple) or not seeds or not all(type(seed) is int for seed in seeds):
            raise RunError(
                f"config.grid.seeds={shorten(seeds)} must be a tuple of integers, for example (0, 1, 2)"
            )
        _refuse_repeats(f"seeds={shorten(seeds)}", seeds)
        if self.data_order not in DATA_ORDERS:
            raise RunError(
                f"config.grid.data_order={self.data_order!r} is unknown; choose one of {DATA_ORDERS}"
            )
        if type(self.chunk_size) is not int or self.chunk_size < 0:
            raise RunError(
                f"config.grid.chunk_size={self.chunk_size!r} must be an integer; 0 chooses by memory"
            )
        if not is_number(self.memory_gib) or not 0 <= self.memory_gib <= MAX_MEMORY_GIB:
            raise RunError(
                f"config.grid.memory_gib={shorten(self.memory_gib)} must be finite, not negative and at "
                f"most {MAX_MEMORY_GIB}; 0 takes most of what is free"
            )

    @property
    def has_targets(self) -> bool:
        """Whether the grid is over targets, not betas."""
        return bool(self.targets_nats or self.target_points)

    @property
    def field(self) -> str:
        """The field that says which points the grid has."""
        return next(name for name in (*PRODUCTS, *LISTS) if getattr(self, name))

    @property
    def values(self) -> tuple[tuple[float, ...], ...]:
        """Whose product the grid is, per layer; empty for a list of vectors."""
        return self.betas or self.targets_nats

    @property
    def vectors(self) -> tuple[tuple[float, ...], ...]:
        """Betas or targets of every point, in order."""
        if self.values:
            return tuple(tuple(map(float, vector)) for vector in itertools.product(*self.values))
        return tuple(tuple(map(float, vector)) for vector in self.points or self.target_points)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an array over the grid: values per layer, then seeds; or points, then seeds."""
        points = tuple(map(len, self.values)) or (len(self.vectors),)
        return (*points, len(self.seeds))

    def check_layers(self, num_entries: int, what: str = "", why: str = "", in_groups: bool = False) -> None:
        """Raises RunError unless every point has as many entries.

        Args:
          num_entries: one per layer or group, or 1 where `what` is all that a point gives, since `why`.
          what, why: for the error; empty where there is an entry per layer or group.
          in_groups: whether layers share betas.
        """
        for number in sorted(set(map(len, self.vectors)) - {num_entries}):
            given = f"config.grid.{self.field}={shorten(getattr(self, self.field))}"
            if what:
                raise RunError(
                    f"{given} has {number} entries a point, but {why} takes {what}; give one entry"
                )
            entries = "targets" if self.has_targets else "betas"
            if in_groups:
                raise RunError(
                    f"{given} is over {number} groups but config.objective.beta_groups makes {num_entries}; "
                    f"give {entries} for each group, z_1's first"
                )
            raise RunError(
                f"{given} is over {number} layers but the model has {num_entries} "
                f"(config.model.latent_shapes); give {entries} for each layer, z_1 first"
            )


class Member(NamedTuple):
    """One model of a grid.

    Attributes:
      number: of its folder; its place in the grid, from 0 (the last axis of `GridConfig.shape` runs
        fastest), unless the grid has grown, see `folders`.
      config: what would train it alone.
      overrides: of it, what is this model's own: `group.field` → value.
    """

    number: int
    config: dict[str, Any]
    overrides: dict[str, Any]

    @property
    def identity(self) -> str:
        """What tells it from the other models of its grid."""
        return identity(self.overrides)

    @property
    def betas(self) -> tuple[float, ...]:
        """Multipliers, one per layer or group; where a control solves for them, those it starts from."""
        return self.config["objective"]["betas"]

    @property
    def objective(self) -> ObjectiveConfig:
        """Its objective, checked."""
        return experiment.build_group("objective", ObjectiveConfig, self.config)

    @property
    def groups(self) -> Groups:
        """The layers of each beta."""
        return self.objective.groups(*_layers(self.config))

    @property
    def targets(self) -> tuple[float, ...]:
        """What the grid asks of it in nats: per layer, or its one target; empty where it asks for nothing."""
        return tuple(map(float, self.config["objective"]["targets_nats"]))

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
        return grid_folder / records.MODELS_FOLDER / f"{self.number:04d}"


def identity(overrides: Mapping[str, Any]) -> str:
    """Overrides as one string, the same before and after they went to JSON."""
    return json.dumps(overrides, sort_keys=True)


def chunk_name(numbers: Sequence[int]) -> str:
    """What the chunk of these models is called: after its first."""
    return f"{numbers[0]:04d}"


def lock_file(grid_folder: pathlib.Path, name: str) -> pathlib.Path:
    """That the process which trains the chunk of that name holds, see `claims`."""
    return grid_folder / TASKS_FOLDER / f"{name}.lock"


def read_config(config: Mapping[str, Any]) -> tuple[GridConfig, list[Member]]:
    """The grid that a config describes, and its models.

    Args:
      config: the groups of a run and the group `grid`.

    Raises:
      RunError: no such group, or a field of it that is missing, unknown or out of range.
    """
    if "grid" not in config:
        raise RunError("config has no group grid; train a single model with experiments.run")
    # Networks of one's own have no group `model`, see `own`.
    for name in ("grid", *(["model"] if "model" in config else []), "objective", "training"):
        if not isinstance(config.get(name), Mapping):
            raise RunError(f"config.{name}={config.get(name)!r} must be a group of fields")
    grid = experiment.build_group("grid", GridConfig, config)
    base = {name: group for name, group in config.items() if name != "grid"}
    layers = _layers(base)
    members = []
    for number, overrides in enumerate(_overrides(grid)):
        of_model = {name: dict(group) for name, group in base.items()}
        for field, value in overrides.items():
            group, name = field.split(".")
            of_model[group][name] = value
        members.append(Member(number, of_model, overrides))
    if grid.has_targets:
        _check_targets(grid, members[0])
    else:
        _check_entries(grid, members[0])
    objective = members[0].objective
    for member in members[:: len(grid.seeds)]:
        own = {field.removeprefix("objective."): value for field, value in member.overrides.items()}
        own = {name: value for name, value in own.items() if "." not in name}
        dataclasses.replace(objective, **own).check_layers(*layers)
    for member in members[: len(grid.seeds)]:
        experiment.build_group("training", TrainingConfig, member.config)
    return grid, members


def _layers(config: Mapping[str, Any]) -> tuple[int, Ranges]:
    """How many layers the model has, and those of each side of its maps; see `ObjectiveConfig.groups`."""
    if "model" in config:
        model = experiment.build_group("model", ModelConfig, config)
        return len(model.latent_shapes), model.groups
    objective = experiment.build_group("objective", ObjectiveConfig, config)
    ranges = objective.beta_groups
    return len(objective.betas) if isinstance(ranges, str) else Groups(ranges).num_layers, ()


def _check_entries(grid: GridConfig, member: Member) -> None:
    groups = member.groups
    grid.check_layers(len(groups), in_groups=not groups.are_layers)


def _check_targets(grid: GridConfig, member: Member) -> None:
    if member.config["objective"].get("control") == "constant":
        raise RunError(
            f"config.grid.{grid.field} needs a control that solves for the betas, but "
            "config.objective.control='constant'; set 'target_rates'"
        )
    objective = member.objective
    if objective.control == "target_distortion":
        grid.check_layers(1, "one distortion", "config.objective.control='target_distortion'")
    elif objective.target_shares:
        grid.check_layers(1, "one total rate", "config.objective.target_shares")
    else:
        _check_entries(grid, member)


def _overrides(grid: GridConfig) -> Iterable[dict[str, Any]]:
    """What each model changes in the config, as `group.field` → value."""
    for vector, seed in itertools.product(grid.vectors, grid.seeds):
        overrides: dict[str, Any] = {"training.seed": seed}
        if grid.has_targets:
            overrides |= {f"objective.{name}": () for name in ("targets_bits", "targets_bits_per_dim")}
        overrides["objective.targets_nats" if grid.has_targets else "objective.betas"] = vector
        if grid.data_order == "per_model":
            overrides["training.order_seed"] = seed
        yield overrides


def _is_vector(values: object, is_positive: bool) -> bool:
    return (
        isinstance(values, tuple)
        and len(values) > 0
        and all(is_number(v) and v >= 0 for v in values)
        and not (is_positive and min(values) == 0)
    )


def _refuse_repeats(field: str, values: tuple[Any, ...]) -> None:
    repeated = sorted(value for value, number in collections.Counter(values).items() if number > 1)
    if repeated:
        raise RunError(f"config.grid.{field} holds {repeated[0]!r} more than once; give each once")
