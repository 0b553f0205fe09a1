"""From a config to the things a program needs: data, model, functions of both, and how to train."""

import dataclasses
import functools
import inspect
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from hvae_jax import data, records, training
from hvae_jax.batches import Batches
from hvae_jax.betas import BetaControl
from hvae_jax.checkpoints import Checkpoints
from hvae_jax.data import DataConfig, Dataset
from hvae_jax.errors import RunError
from hvae_jax.evaluation.rates import LogWeightFn
from hvae_jax.keys import make_key
from hvae_jax.models.hvae import HVAE, ModelConfig, make_hvae
from hvae_jax.objective_config import ObjectiveConfig
from hvae_jax.streaming import make_batches
from hvae_jax.training import Params, PreprocessFn, TermsFn, TrainingConfig, TrainState

T = TypeVar("T")


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
            if not isinstance(value, int) or value < 1:
                raise RunError(f"config.evaluation.{field.name}={value!r} must be an integer of at least 1")


class Experiment(NamedTuple):
    """Everything that a config describes, checked and built; nothing has run yet."""

    dataset: Dataset
    model: HVAE
    preprocess_fn: PreprocessFn
    objective: ObjectiveConfig
    training: TrainingConfig
    evaluation: EvaluationConfig

    @property
    def terms_fn(self) -> TermsFn:
        """(params, x, keys) → LayerwiseTerms."""
        return self.model.apply

    @property
    def log_weight_fn(self) -> LogWeightFn:
        """(params, x, keys) → log importance weights."""
        apply: Any = self.model.apply
        return functools.partial(apply, method="log_weight")

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.training.num_steps(len(self.dataset.train.images))

    @property
    def num_dims(self) -> int:
        """Numbers in one image, H · W · C."""
        return math.prod(self.dataset.image_shape)

    def make_control(self) -> BetaControl:
        """How the betas move over the run."""
        return self.objective.make_control(
            self.num_steps, self.num_dims, self.training.learning_rate_decay_fraction
        )

    def make_batches(self) -> Batches:
        """The batches of the training split, from the first step on."""
        return make_batches(self.dataset.train.images, self.training)

    def init_params(self, seed: int) -> Params:
        """Fresh parameters of the model."""
        x = jnp.zeros((1, *self.dataset.image_shape))
        return jax.jit(lambda key: self.model.init(key, x, key))(make_key(seed))

    def init_state(self) -> TrainState:
        """The training state before the first step."""
        params = self.init_params(self.training.seed)
        return training.init_state(params, self.objective.betas, self.make_control(), self.training)


def from_config(config: Mapping[str, Any], num_devices: int | None = None) -> Experiment:
    """Checks every field, then loads the data and builds the model.

    Args:
      config: groups `data`, `model`, `objective`, `training`, `evaluation`; every field present.
      num_devices: that share a batch; those of all processes by default.

    Raises:
      RunError: a field that is missing, unknown or out of range, or data that is not there.
    """
    groups = ("data", "model", "objective", "training", "evaluation")
    if set(config) != set(groups):
        raise RunError(f"config must have the groups {sorted(groups)}, it has {sorted(config)}")
    data_config = build_group("data", DataConfig, config)
    model_config = build_group("model", ModelConfig, config)
    objective = build_group("objective", ObjectiveConfig, config)
    training_config = build_group("training", TrainingConfig, config)
    evaluation = build_group("evaluation", EvaluationConfig, config)
    objective.check_layers(len(model_config.latent_shapes))
    training_config.check_devices(jax.device_count() if num_devices is None else num_devices)

    dataset = data.load(data_config)
    model = make_hvae(model_config, dataset.image_shape)
    training_config.num_steps(len(dataset.train.images))
    preprocess_fn = data.make_preprocess(data_config.binarize)
    return Experiment(dataset, model, preprocess_fn, objective, training_config, evaluation)


def from_folder(folder: str | os.PathLike[str], data: str | None = None) -> Experiment:
    """What the run in a folder was made from; `restore` gives its parameters.

    Args:
      folder: of the run.
      data: a `config.data.name` instead of the one there, for data that moved.

    Raises:
      RunError: no config.json there, or one that this version cannot build.
    """
    config = records.read_json(pathlib.Path(folder) / records.CONFIG_FILE)
    if not isinstance(config, dict) or not all(isinstance(group, dict) for group in config.values()):
        raise RunError(f"{pathlib.Path(folder) / records.CONFIG_FILE} is not the config of a run")
    if data is not None:
        config["data"]["name"] = data
    return from_config(with_tuples(config))


def restore(built: Experiment, folder: str | os.PathLike[str]) -> TrainState:
    """The newest state that the run in a folder saved; models that differ in betas or seed share `built`.

    Raises:
      RunError: no checkpoint there, a damaged one, or one of another model.
    """
    path = pathlib.Path(folder) / records.CHECKPOINTS_FOLDER
    if not path.is_dir():
        raise RunError(f"{path} does not exist: the run in {folder} has not saved a checkpoint yet")
    checkpoints = Checkpoints(path, built.training.num_checkpoints)
    try:
        return checkpoints.restore(jax.eval_shape(built.init_state))
    finally:
        checkpoints.close()


def with_tuples(value: Any) -> Any:
    """A config as it was before it went to JSON, which has no tuples; configs have no lists."""
    if isinstance(value, dict):
        return {name: with_tuples(entry) for name, entry in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value


def build_group(group: str, cls: type[T], config: Mapping[str, Any]) -> T:
    """The dataclass `cls` of a config's group.

    Raises:
      RunError: a field that is missing, unknown or out of range.
    """
    fields = set(inspect.signature(cls).parameters)
    given = dict(config[group])
    for name in sorted(set(given) - fields):
        raise RunError(f"config.{group}.{name} is not a field; config.{group} has {sorted(fields)}")
    for name in sorted(fields - set(given)):
        raise RunError(f"config.{group}.{name} is missing; every field must be given")
    return cls(**given)
