"""A run's config as the dataclasses of its groups, and what stands for fields that older configs lack."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from hvae_jax.data import DataConfig
from hvae_jax.errors import RunError
from hvae_jax.models.hvae import ModelConfig
from hvae_jax.objective_config import ObjectiveConfig
from hvae_jax.training import TrainingConfig
from hvae_jax.values import is_integer, shorten

T = TypeVar("T")

# Draws that one image gets at most: more take hours an image, and their numbers an index that is too long.
MAX_SAMPLES = 1_000_000


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What a config's `evaluation` group says.

    Attributes:
      num_samples: posterior draws per image for distortion and rates on the test split.
      num_importance_samples: draws per image for the importance-weighted bound.
    """

    num_samples: int
    num_importance_samples: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not is_integer(value, 1, MAX_SAMPLES):
                raise RunError(
                    f"config.evaluation.{field.name}={shorten(value)} must be an integer of at least 1 "
                    f"and at most {MAX_SAMPLES}"
                )


# A field that is added to one of these gets a default: what runs did before there was the field.
GROUPS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    "objective": ObjectiveConfig,
    "training": TrainingConfig,
    "evaluation": EvaluationConfig,
}


def build_group(group: str, cls: type[T], config: Mapping[str, Any]) -> T:
    """The dataclass `cls` of a config's group; fields that are not given take their defaults.

    Raises:
      RunError: a field that is unknown, out of range, or missing without a default.
    """
    parameters = inspect.signature(cls).parameters
    given = config[group]
    if not isinstance(given, Mapping):
        raise RunError(
            f"config.{group}={shorten(given)} must be a group with the fields {sorted(parameters)}"
        )
    for name in sorted(set(given) - set(parameters)):
        raise RunError(f"config.{group}.{name} is not a field; config.{group} has {sorted(parameters)}")
    for name, parameter in sorted(parameters.items()):
        if name not in given and parameter.default is inspect.Parameter.empty:
            raise RunError(f"config.{group}.{name} is missing; every field without a default must be given")
    return cls(**given)


def with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config with every field that it lacks and that has a default; as JSON would give it back.

    Groups that are not of a run, as a grid's, stay as they are.
    """
    filled = {name: dict(group) if isinstance(group, Mapping) else group for name, group in config.items()}
    for group, cls in GROUPS.items():
        if isinstance(filled.get(group), dict):
            defaults = {
                field.name: _plain(field.default)
                for field in dataclasses.fields(cls)
                if field.default is not dataclasses.MISSING
            }
            filled[group] = {**defaults, **filled[group]}
    return filled


def unknown_fields(config: Mapping[str, Any]) -> list[str]:
    """Fields of a run's groups that this version does not have, "training.x"."""
    return [
        f"{group}.{name}"
        for group, cls in GROUPS.items()
        if isinstance(config.get(group), Mapping)
        for name in config[group]
        if name not in inspect.signature(cls).parameters
    ]


def with_tuples(value: Any) -> Any:
    """A config as it was before it went to JSON, which has no tuples; configs have no lists."""
    if isinstance(value, dict):
        return {name: with_tuples(entry) for name, entry in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value
