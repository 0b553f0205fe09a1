"""From a config to the things a program needs: data, model, functions of both, and how to train."""

import functools
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from hvae_jax import compiling, data, records, training
from hvae_jax.beta_range import BetaRange
from hvae_jax.betas import BetaControl
from hvae_jax.categorical import anneal
from hvae_jax.data import FOLDER, DataConfig, Dataset
from hvae_jax.errors import RunError
from hvae_jax.evaluation.rates import LogWeightFn, NamedGroups
from hvae_jax.groups import Groups
from hvae_jax.keys import make_key
from hvae_jax.models import conditioning
from hvae_jax.models.config import CATEGORICAL
from hvae_jax.models.hvae import HVAE, ModelConfig, make_hvae
from hvae_jax.objective_config import ObjectiveConfig
from hvae_jax.run_config import GROUPS, EvaluationConfig, build_group, with_tuples
from hvae_jax.training import Params, PreprocessFn, TermsFn, TermsOfStep, TrainingConfig, TrainState, memory
from hvae_jax.training.batches import Batches
from hvae_jax.training.checkpoints import Checkpoints
from hvae_jax.training.streaming import make_batches
from hvae_jax.values import shorten

__all__ = [
    "EvaluationConfig",
    "Experiment",
    "Source",
    "build_group",
    "from_config",
    "from_folder",
    "restore",
    "with_tuples",
]


class Source:
    """The data of an experiment: what they are is known at once, the images are read when first asked for.

    Attributes:
      image_shape: (H, W, C).
      num_images: of the training split.
    """

    def __init__(
        self,
        config: DataConfig,
        described: Mapping[str, Any] | None = None,
        check: Callable[[Mapping[str, Any]], None] = lambda described: None,
    ) -> None:
        """Reads the images now where `described` does not say what they are.

        Args:
          config: of the data.
          described: `Dataset.describe()` of them, as it was kept.
          check: raises RunError where the images, once read, describe themselves otherwise.
        """
        self._config, self._check, self._dataset = config, check, None
        if described is None:
            train = self.dataset.train.images
            self.image_shape: tuple[int, int, int] = self.dataset.image_shape
            self.num_images = len(train)
        else:
            height, width, channels = described["image_shape"]
            self.image_shape = (height, width, channels)
            self.num_images = described["splits"]["train"]["num_images"]

    @property
    def title(self) -> str:
        """The data set's name as figures say it; nothing is read for it."""
        return data.title_of(self._config.name)

    @property
    def dataset(self) -> Dataset:
        """All splits.

        Raises:
          RunError: they are not there, or are not what they were.
        """
        if self._dataset is None:
            dataset = data.load(self._config)
            self._check(dataset.describe())
            self._dataset = dataset
        return self._dataset


class Experiment(NamedTuple):
    """Everything that a config describes, checked and built; nothing has run yet."""

    source: Source
    model: HVAE
    preprocess_fn: PreprocessFn
    objective: ObjectiveConfig
    training: TrainingConfig
    evaluation: EvaluationConfig

    @property
    def dataset(self) -> Dataset:
        """The data, read when first asked for where a folder says what they are; see `Source`."""
        return self.source.dataset

    @property
    def terms_fn(self) -> TermsFn:
        """(params, x, keys) → LayerwiseTerms."""
        return self.model.apply

    @property
    def beta_range(self) -> BetaRange | None:
        """What a conditioned model is trained for; None of another."""
        return self.objective.read_range(self.model.num_layers)

    def at(self, params: Params, betas: Any = None) -> Params:
        """Parameters of a conditioned model at betas `[L]`, by default the config's; else as they are."""
        if not self.model.config.is_conditioned:
            return params
        return conditioning.at(params, self.objective.betas if betas is None else betas)

    def valid_terms_fn(self) -> TermsFn:
        """What a validation pass asks: `terms_fn`, or of a conditioned model `BetaRange.make_terms` of it."""
        found = self.beta_range
        return found.make_terms(self.terms_fn) if found else self.terms_fn

    @property
    def train_terms_fn(self) -> TermsFn | TermsOfStep:
        """`terms_fn`, or where a layer is categorical that under the relaxation of each step."""
        config, training = self.model.config, self.training
        if CATEGORICAL not in config.kinds:
            return self.terms_fn
        epochs_per_step = training.batch_size / self.source.num_images

        def at(step: jax.Array) -> TermsFn:
            temperature = anneal(step * epochs_per_step, *config.gumbel_schedule)
            return functools.partial(self.model.apply, gumbel_temperature=temperature)

        return TermsOfStep(at)

    @property
    def log_weight_fn(self) -> LogWeightFn:
        """(params, x, keys) → log importance weights."""
        apply: Any = self.model.apply
        return functools.partial(apply, method="log_weight")

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the run."""
        return self.training.num_steps(self.source.num_images)

    @property
    def num_dims(self) -> int:
        """Numbers in one image, H · W · C."""
        return math.prod(self.source.image_shape)

    @property
    def beta_groups(self) -> Groups:
        """The layers of each beta."""
        config = self.model.config
        return self.objective.groups(len(config.latent_shapes), config.groups)

    @property
    def named_groups(self) -> NamedGroups:
        """The layers that reports put together: those of a beta, else of a side of a deep network."""
        config = self.model.config
        groups = self.beta_groups if self.objective.beta_groups else Groups(config.groups)
        return NamedGroups(groups, groups.names(config.groups, config.latent_shapes))

    def make_control(self) -> BetaControl:
        """How the betas move over the run."""
        return self.objective.make_control(
            self.num_steps, self.num_dims, self.training.learning_rate_decay_fraction, self.beta_groups
        )

    def make_batches(self) -> Batches:
        """The batches of the training split, from the first step on."""
        return make_batches(self.dataset.train.images, self.training)

    def init_params(self, seed: int) -> Params:
        """Fresh parameters of the model."""
        key, image_shape = make_key(seed), tuple(self.source.image_shape)
        model: Any = self.model  # can be hashed, though Flax's types deny it
        if isinstance(key, Tracer):  # only shapes are asked for
            return _init_params(model, image_shape, key)
        return _compiled_init(model, image_shape)(key)

    def init_state(self) -> TrainState:
        """The training state before the first step."""
        params = self.init_params(self.training.seed)
        return training.init_state(params, self.objective.betas, self.make_control(), self.training)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init_params(model: HVAE, image_shape: tuple[int, ...], key: jax.Array) -> Params:
    """Traced once for all equal models: their shapes are asked for again and again."""
    return model.init(key, jnp.zeros((1, *image_shape)), key)


@functools.cache
def _compiled_init(model: HVAE, image_shape: tuple[int, ...]) -> Callable[[jax.Array], Params]:
    """Key → parameters. What runs once is not worth LLVM's last passes: the same bits, a quarter sooner."""
    return _init_params.lower(model, image_shape, make_key(0)).compile(compiling.at_level(1))


def from_config(config: Mapping[str, Any], num_devices: int | None = None) -> Experiment:
    """Checks every field, then loads the data and builds the model.

    Args:
      config: groups `data`, `model`, `objective`, `training`, `evaluation`; fields that have a default may
        be left out.
      num_devices: that share a batch; those of all processes by default.

    Raises:
      RunError: a field that is missing, unknown or out of range, data that is not there, or sizes that the
        machine has no memory for.
    """
    return _build(config, jax.device_count() if num_devices is None else num_devices)


def from_folder(folder: str | os.PathLike[str], data: str | None = None) -> Experiment:
    """What the run in a folder was made from; `restore` gives its parameters.

    The data set is read when `dataset` is first asked for, so that a model samples without it, and has to
    be what the model was trained on. Of a folder of 0.1.0, which does not say what that was, it is read at
    once. The number of devices does not matter.

    Args:
      folder: of the run.
      data: where the data are now, a `config.data.name`, instead of the one in the folder.

    Raises:
      RunError: no config.json there, or one that this version cannot build.
    """
    folder = pathlib.Path(folder)
    config = with_tuples(records.config_of(folder))
    if data is not None and isinstance(config.get("data"), dict):
        config["data"]["name"] = data
        if not data.startswith(FOLDER):  # they have been scaled where they lie now
            config["data"]["side"] = None
    described = records.data_of(folder)
    try:
        return _build(config, 1, described, functools.partial(records.check_data, folder))
    except RunError as error:
        raise RunError(f"{folder / records.CONFIG_FILE}: {error}") from error


def _build(
    config: Mapping[str, Any],
    num_devices: int,
    described: Mapping[str, Any] | None = None,
    check: Callable[[Mapping[str, Any]], None] = lambda described: None,
) -> Experiment:
    if not isinstance(config, Mapping):
        raise RunError(f"config={shorten(config)} must have the groups {sorted(GROUPS)}")
    if set(config) != set(GROUPS) or not all(isinstance(group, Mapping) for group in config.values()):
        raise RunError(f"config must have the groups {sorted(GROUPS)}, it has {sorted(config)}")
    data_config = build_group("data", DataConfig, config)
    model_config = build_group("model", ModelConfig, config)
    objective = build_group("objective", ObjectiveConfig, config)
    training_config = build_group("training", TrainingConfig, config)
    evaluation = build_group("evaluation", EvaluationConfig, config)
    objective.check_layers(len(model_config.latent_shapes), model_config.groups)
    objective.read_range(len(model_config.latent_shapes), model_config.conditioning)
    training_config.check_devices(num_devices)

    source = Source(data_config, described, check)
    model = make_hvae(model_config, source.image_shape)
    training_config.num_steps(source.num_images)
    preprocess_fn = data.make_preprocess(data_config.binarize)
    built = Experiment(source, model, preprocess_fn, objective, training_config, evaluation)
    memory.check_fits(jax.eval_shape(built.init_state), source.image_shape, training_config.batch_size)
    return built


def restore(built: Experiment, folder: str | os.PathLike[str], step: int | None = None) -> TrainState:
    """A state that the run in a folder saved; models that differ in betas or seed share `built`.

    Args:
      built: from `from_folder`, or of the same model.
      folder: of the run.
      step: of one of its checkpoints; the newest by default.

    Raises:
      RunError: no checkpoint there, a damaged one, or one of another model.
    """
    path = pathlib.Path(folder) / records.CHECKPOINTS_FOLDER
    if not path.is_dir():
        raise RunError(f"{path} does not exist: the run in {folder} has not saved a checkpoint yet")
    checkpoints = Checkpoints(path, built.training.num_checkpoints)
    try:
        return checkpoints.restore(jax.eval_shape(built.init_state), step)
    finally:
        checkpoints.close()
