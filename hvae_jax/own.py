"""Networks and data of one's own, trained and swept as those of a config are.

What is asked of a model is two functions, `init_fn(key) -> params` and `terms_fn(params, x, keys) ->
LayerwiseTerms`: of a `Hierarchy` of own networks, likelihood and prior, of an nnx module, or written by hand.
`experiments/own_networks.py` has an example of each.
"""

import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hvae_jax import records, training
from hvae_jax.data import Dataset, Split
from hvae_jax.errors import RunError
from hvae_jax.evaluation import rates, targets
from hvae_jax.evaluation.metrics import RunEvaluation
from hvae_jax.evaluation.plain import to_plain
from hvae_jax.experiment import Experiment
from hvae_jax.files import claims
from hvae_jax.grid import folders, packed
from hvae_jax.grid import members as grid_members
from hvae_jax.grid import plan as grid_plan
from hvae_jax.grid import run as grid_run
from hvae_jax.grid import size as grid_size
from hvae_jax.groups import Groups, Ranges
from hvae_jax.keys import make_key
from hvae_jax.models.config import GAUSSIAN
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.objective_config import ObjectiveConfig
from hvae_jax.run_config import EvaluationConfig, build_group
from hvae_jax.training import Params, PreprocessFn, TermsFn, TrainingConfig, TrainState, memory, stacks
from hvae_jax.training.split_evaluator import SplitEvaluator

GROUPS = ("objective", "training", "evaluation")
InitFn = Callable[[jax.Array], Params]


class Layers(NamedTuple):
    """What an `Experiment` asks of a model's config, of a model that has none."""

    num_layers: int
    monte_carlo_rates: tuple[int, ...] = ()
    conditioning: str = "none"
    is_conditioned: bool = False

    @property
    def latent_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Not known."""
        return ((),) * self.num_layers

    @property
    def kinds(self) -> tuple[str, ...]:
        """Nothing of them is relaxed."""
        return (GAUSSIAN,) * self.num_layers

    @property
    def groups(self) -> Ranges:
        """Every layer alone."""
        return Groups.of_layers(self.num_layers).ranges


class Functions(NamedTuple):
    """A model as an `Experiment` calls it."""

    init_fn: InitFn
    terms_fn: TermsFn
    config: Layers

    @property
    def num_layers(self) -> int:
        """L."""
        return self.config.num_layers

    def init(self, key: jax.Array, *_: Any) -> Params:
        """Fresh parameters."""
        return self.init_fn(key)

    def apply(self, params: Params, x: jax.Array, keys: jax.Array) -> LayerwiseTerms | Any:
        """D and R_1 … R_L of each of x."""
        return self.terms_fn(params, x, keys)


class GivenSource(NamedTuple):
    """`experiment.Source` of data that are at hand."""

    dataset: Dataset

    @property
    def title(self) -> str:
        """As figures say it."""
        return self.dataset.title

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Of one example."""
        return self.dataset.image_shape

    @property
    def num_images(self) -> int:
        """Of the training split."""
        return len(self.dataset.train.images)


def make_dataset(name: str, train: np.ndarray, valid: np.ndarray, test: np.ndarray) -> Dataset:
    """Arrays `[N, ...]` of one type and shape as a data set; they need not be images.

    Args:
      name: as figures and folders say it.
      train, valid, test: `valid` may be empty, `[0, ...]`.

    Raises:
      ValueError: an array that has another type or shape, or is empty and must not be.
    """
    kinds = {(array.dtype, array.shape[1:]) for array in (train, valid, test)}
    if len(kinds) > 1 or not len(train) or not len(test):
        found = [f"{array.dtype}{list(array.shape)}" for array in (train, valid, test)]
        raise ValueError(f"train, valid and test must be alike, and only valid may be empty: {found}")
    splits = [Split(array, np.zeros(len(array), np.int32)) for array in (train, valid, test)]
    return Dataset(name, splits[0], splits[1], splits[2])


def unchanged(keys: jax.Array, stored: jax.Array) -> jax.Array:
    """The `preprocess_fn` of data that are stored as the model sees them."""
    del keys
    return stored


def build(
    config: Mapping[str, Any],
    dataset: Dataset,
    init_fn: InitFn,
    terms_fn: TermsFn,
    preprocess_fn: PreprocessFn = unchanged,
) -> Experiment:
    """What `train` and `train_grid` take; everything is checked, nothing has run.

    Args:
      config: groups `objective`, `training`, `evaluation` with the fields of a run's, for a grid `grid`;
        groups of other names are yours, and are kept in the run's folder.
      dataset: `make_dataset` of arrays, or `data.load`.
      init_fn: key → parameters, any pytree of arrays.
      terms_fn: (params, x `[B, ...]`, keys `[B]`, one per example) → distortion `[B]`, rates `[B, L]`, nats.
      preprocess_fn: (keys `[B]`, stored examples) → x; `data.make_preprocess` for bytes.

    Returns:
      the experiment; its `model` is no HVAE, and has `init` and `apply` alone.

    Raises:
      RunError: a group or field that is missing, unknown or out of range, or betas for other layers.
      ValueError: terms of other shapes.
    """
    for group in GROUPS:
        if not isinstance(config.get(group), Mapping):
            raise RunError(f"config.{group} must be a group of fields; {', '.join(GROUPS)} are needed")
    if taken := {"data", "model"} & set(config):
        raise RunError(f"config.{min(taken)} is the group of a run from a config; give it another name")
    objective = build_group("objective", ObjectiveConfig, config)
    training_config = build_group("training", TrainingConfig, config)
    evaluation = build_group("evaluation", EvaluationConfig, config)
    training_config.check_devices(jax.device_count())
    training_config.num_steps(len(dataset.train.images))

    def terms_of(stored: jax.Array) -> LayerwiseTerms:
        keys = jax.random.split(make_key(0), len(stored))
        return terms_fn(init_fn(make_key(0)), preprocess_fn(keys, stored), keys)

    examples = dataset.train.images
    found = jax.eval_shape(terms_of, jax.ShapeDtypeStruct((2, *examples.shape[1:]), examples.dtype))
    if found.distortion.shape != (2,) or found.rates.shape[:1] != (2,) or found.rates.ndim != 2:
        raise ValueError(
            f"of 2 examples terms_fn gives distortion {found.distortion.shape} and rates "
            f"{found.rates.shape}; they must be [B] and [B, L]"
        )
    num_layers = found.rates.shape[1]
    objective.check_layers(num_layers)
    model: Any = Functions(init_fn, terms_fn, Layers(num_layers))
    source: Any = GivenSource(dataset)
    built = Experiment(source, model, preprocess_fn, objective, training_config, evaluation)
    memory.check_fits(jax.eval_shape(built.init_state), examples.shape[1:], training_config.batch_size)
    return built


def train(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    built: Experiment,
    reports: Sequence[Callable[[dict[str, Any]], None]] = (),
) -> TrainState:
    """Trains in a run folder, from its newest checkpoint where there is one, and evaluates at β = 1.

    It takes all devices of one process. The folder then holds config.json, versions.json, data.json,
    rates.jsonl, checkpoints/ and evaluation.json: rates of the validation and the test split, and what became
    of targets.

    Args:
      folder: of the run.
      config: what `built` was built from.
      built: from `build`.
      reports: called with every row of the log.

    Raises:
      RunError: the folder holds another run, or cannot be written; a loss that is not finite.
    """
    folder = pathlib.Path(folder)
    described, num_valid = built.dataset.describe(), len(built.dataset.valid.images)
    records.check_run(folder, config, described)
    validate = None
    if num_valid:
        evaluator, key = _evaluator(built, "valid"), make_key(built.training.seed)

        def validate_now(params: Params) -> LayerwiseTerms:
            return evaluator.map_images(built.terms_fn, params, key)

        validate = validate_now
    with claims.claim(folder / records.RUN_LOCK, f"the run in {folder}"):
        records.open_run(folder, config, described)
        state = training.train(
            folder,
            built.init_state(),
            built.terms_fn,
            built.make_batches(),
            preprocess_fn=built.preprocess_fn,
            control=built.make_control(),
            config=built.training,
            validate=validate,
            reports=reports,
        )
        records.write_json(folder / records.EVALUATION_FILE, to_plain(evaluate(built, state)))
    return state


def evaluate(built: Experiment, state: TrainState) -> RunEvaluation:
    """What evaluation.json of a run holds: distortion and rates of whole splits, targets and their status."""
    seed, num_passes = built.training.seed, built.evaluation.num_samples
    evaluators = {
        split: _evaluator(built, split)
        for split in ("train", "valid", "test")
        if len(getattr(built.dataset, split).images)
    }
    terms_fn, params = rates.make_repeated_terms(built.terms_fn, num_passes), state.eval_params
    terms = {
        split: evaluator.map_images(terms_fn, params, make_key(seed))
        for split, evaluator in evaluators.items()
        if split != "train"
    }
    fresh = {
        split: targets.fresh_terms(evaluator, built.terms_fn, params, seed, num_passes)
        for split, evaluator in evaluators.items()
        if split != "test" and built.objective.control != "constant"
    }
    return packed.evaluation_of(built, stacks.new_stack([jax.device_get(state)]), 0, terms, fresh)


def train_grid(
    folder: str | os.PathLike[str],
    config: Mapping[str, Any],
    built: Experiment,
    report: Callable[[grid_run.Progress], None] = lambda progress: None,
) -> None:
    """Trains and evaluates the models of a grid as packed stacks; the same call goes on where it stopped.

    The folder then holds grid.csv and, in models/, a run folder each; `grid.table.load` reads it.

    Args:
      folder: of the grid.
      config: what `built` was built from, with the group `grid` (`GridConfig`).
      built: from `build`.
      report: called after every interval.

    Raises:
      RunError: the folder holds something else or is at work, or the points do not fit the model.
    """
    folder = pathlib.Path(folder)
    grid, members = grid_members.read_config(config)
    described = built.dataset.describe()
    folders.check(folder, config, members, described)
    with claims.claim(grid_plan.launch_lock(folder), f"the grid in {folder}"):
        members = folders.open_grid(folder, config, members, described)
        chunk_size = grid_size.choose_size(grid, built, members).chunk_size
        grid_run.run(folder, built, members, chunk_size, report)


def _evaluator(built: Experiment, split: str) -> SplitEvaluator:
    return SplitEvaluator(getattr(built.dataset, split).images, built.preprocess_fn)
