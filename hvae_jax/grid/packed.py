"""The models of a grid as packed stacks: trained and evaluated side by side."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from hvae_jax import training
from hvae_jax.data.stored import StoredArray
from hvae_jax.evaluation import rates, targets
from hvae_jax.evaluation.metrics import RunEvaluation
from hvae_jax.experiment import Experiment
from hvae_jax.grid import table as grid_table
from hvae_jax.grid.members import Member
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import Params, loop, stacks
from hvae_jax.training.batches import Batches
from hvae_jax.training.split_evaluator import StackEvaluator
from hvae_jax.training.stacks import Packed, Stack
from hvae_jax.training.streaming import StreamedBatches, make_batches

Evaluate = Callable[[Stack, Sequence[Member]], list[RunEvaluation]]


class PackedTrainer:
    """Trains stacks of an experiment's models with one compiled program."""

    def __init__(self, built: Experiment, capacity: int) -> None:
        """A stack has room for `capacity` models, rounded up to a multiple of the devices."""
        self.layout = Packed(capacity)
        self.num_steps = built.num_steps
        self._valid_terms_fn = built.valid_terms_fn()
        self._batches = make_batches(built.dataset.train.images, built.training, self.layout)
        valid = built.dataset.valid.images
        self._valid = StackEvaluator(valid, built.preprocess_fn, self.layout) if len(valid) else None
        self._trainer = loop.Trainer(
            built.train_terms_fn,
            preprocess_fn=built.preprocess_fn,
            control=built.make_control(),
            config=built.training,
            layout=self.layout,
            beta_range=built.beta_range,
            monte_carlo_rates=built.model.config.monte_carlo_rates,
        )

    def train(
        self,
        stack: Stack,
        logs: Sequence[loop.Log],
        members: Sequence[Member],
        *,
        save: Callable[[int, Stack], None],
        report: Callable[[loop.Progress], None] = lambda progress: None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> Stack:
        """Trains the stack of `members` to the end; see `loop.Trainer.train`."""
        seeds = np.asarray([member.seed for member in members])

        def validate(params: Params) -> LayerwiseTerms:
            assert self._valid is not None
            on_devices = self.layout.put(params)
            return self._valid.map_images(self._valid_terms_fn, on_devices, seeds, len(members))

        with contextlib.closing(self._ordered(members)) as batches:
            return self._trainer.train(
                stack,
                logs,
                batches,
                save=save,
                validate=validate if self._valid else None,
                report=report,
                stop_requested=stop_requested,
            )

    def time_steps(self, stack: Stack, members: Sequence[Member], num_steps: int) -> float:
        """Seconds of `num_steps` steps of a stack, compiled before; nothing is kept."""
        with contextlib.closing(self._ordered(members)) as batches:
            return self._trainer.time_steps(stack, batches, num_steps)

    def _ordered(self, members: Sequence[Member]) -> Batches:
        return self._batches.ordered([member.order_seed for member in members])


def check_orders(built: Experiment, members: Sequence[Member]) -> None:
    """Raises RunError where the images are streamed and the models would see them in several orders."""
    images = built.dataset.train.images
    if isinstance(images, StoredArray):
        StreamedBatches(images, built.training, Packed(1)).ordered([member.order_seed for member in members])


def init_stack(built: Experiment, members: Sequence[Member]) -> Stack:
    """The models before their first step, each as it would start alone."""
    params = {seed: jax.device_get(built.init_params(seed)) for seed in {m.seed for m in members}}
    states = []
    for member in members:
        config = dataclasses.replace(built.training, seed=member.seed)
        control = built._replace(objective=member.objective).make_control()
        states.append(training.init_state(params[member.seed], member.betas, control, config))
    return stacks.new_stack(states)


def make_evaluate(built: Experiment, trainer: PackedTrainer) -> Evaluate:
    """(stack, members) → what each model's evaluation.json holds: validation and test splits at β = 1.

    Where the objective has targets, they and the rates of every split as well, as a run of its own
    would report them.
    """
    terms_fn = rates.make_repeated_terms(built.terms_fn, built.evaluation.num_samples)
    evaluators = _make_evaluators(built, trainer, ("valid", "test"))
    has_targets = built.objective.control != "constant"
    fresh_terms = make_fresh_terms(built, trainer, ("train", "valid") if has_targets else ())

    def evaluate(stack: Stack, members: Sequence[Member]) -> list[RunEvaluation]:
        seeds, num_models = np.asarray([member.seed for member in members]), len(members)
        betas = np.asarray([member.betas for member in members], np.float32)
        params = trainer.layout.put(built.at(stack.states.eval_params, betas))
        terms = {
            split: evaluator.map_images(terms_fn, params, seeds, num_models)
            for split, evaluator in evaluators.items()
        }
        fresh = fresh_terms(stack, seeds)
        return [
            evaluation_of(
                built._replace(objective=member.objective),
                stack,
                model,
                stacks.entry(terms, model),
                stacks.entry(fresh, model),
            )
            for model, member in enumerate(members)
        ]

    return evaluate


def make_fresh_terms(
    built: Experiment, trainer: PackedTrainer, splits: Sequence[str]
) -> Callable[[Stack, np.ndarray], dict[str, LayerwiseTerms]]:
    """(stack, seeds `[M]`) → per split the terms `[M, N, …]` of `evaluation.targets.mean_terms`."""
    evaluators = _make_evaluators(built, trainer, splits)

    def fresh_terms(stack: Stack, seeds: np.ndarray) -> dict[str, LayerwiseTerms]:
        params = trainer.layout.put(stack.states.eval_params)

        def one_pass(evaluator: StackEvaluator, number: int) -> LayerwiseTerms:
            folds = targets.FRESH_KEY, number
            return evaluator.map_images(built.terms_fn, params, seeds, len(seeds), folds)

        return {
            split: targets.mean_terms(functools.partial(one_pass, evaluator), built.evaluation.num_samples)
            for split, evaluator in evaluators.items()
        }

    return fresh_terms


def _make_evaluators(
    built: Experiment, trainer: PackedTrainer, splits: Sequence[str]
) -> dict[str, StackEvaluator]:
    images = {split: getattr(built.dataset, split).images for split in splits}
    return {
        split: StackEvaluator(of_split, built.preprocess_fn, trainer.layout)
        for split, of_split in images.items()
        if len(of_split)
    }


def evaluation_of(
    built: Experiment,
    stack: Stack,
    model: int,
    terms: dict[str, LayerwiseTerms],
    fresh: dict[str, LayerwiseTerms],
) -> RunEvaluation:
    """What a model's evaluation.json holds, from the terms of splits `[N, …]` and those about its targets."""
    finite = all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((terms, fresh)))
    if int(stack.failed_at[model]) or not finite:
        return RunEvaluation(step=int(stack.states.step[model]), status=grid_table.DIVERGED)
    of_split, of_fresh = (
        {
            split: rates.summarize(
                found,
                built.num_dims,
                built.named_groups,
                monte_carlo_rates=built.model.config.monte_carlo_rates,
            )
            for split, found in every.items()
        }
        for every in (terms, fresh)
    )
    report = None
    if fresh:
        betas = built.beta_groups.collapse(stack.states.beta_state.betas[model]).tolist()
        report = targets.report_targets(
            built.objective, built.num_dims, betas, of_fresh["train"], of_fresh.get("valid"), of_split["test"]
        )
    step, status = int(stack.step), grid_table.OK
    return RunEvaluation(step=step, status=status, **of_split, targets=report)
