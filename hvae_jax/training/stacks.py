"""Stacks of models along a leading axis M, and how they lie on the devices.

A run is a stack of one. The models of a stack have one architecture and differ in betas, seed and data
order, all of which are data: one compiled program serves every one, and a model's numbers do not depend on
its neighbours.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from hvae_jax.models import convolution
from hvae_jax.training import devices, raveled
from hvae_jax.training.step import StepMetrics, TrainState

T = TypeVar("T")


class Stack(NamedTuple):
    """What training carries from interval to interval, and what checkpoints hold.

    NumPy arrays on the host.

    Attributes:
      step: updates that every model has done, unless it failed; a scalar.
      states: `TrainState` with arrays `[M, ...]`. A failed model's is that before the failing step.
      failed_at: `[M]`, the step whose loss or gradient was not finite; 0 for a model without one.
      seconds: spent on training and validation so far; a scalar.
      logged: the step of the newest rows of the logs; a scalar, less than `step` where training was
        stopped within an interval.
      logged_seconds: `seconds` at the start of the interval that is open; a scalar.
      totals: sums of the metrics over the steps since then, `[M, ...]`.
    """

    step: np.ndarray
    states: TrainState
    failed_at: np.ndarray
    seconds: np.ndarray
    logged: np.ndarray
    logged_seconds: np.ndarray
    totals: StepMetrics


def new_stack(states: Sequence[TrainState]) -> Stack:
    """The models of a stack, in their order, after as many steps as the first has done."""
    stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *states)
    step = np.array(stacked.step[0], np.int32)
    zero = np.array(0.0, np.float64)
    failed_at = np.zeros(len(states), np.int32)
    return Stack(step, stacked, failed_at, zero, step, zero, zero_totals(stacked))


def zero_totals(states: TrainState) -> StepMetrics:
    """Before the first step of an interval, for each of the models."""
    betas = np.asarray(states.beta_state.betas)
    zeros = np.zeros(len(betas), np.float32)
    return StepMetrics(zeros, zeros, np.zeros(betas.shape, np.float32), zeros)


def ravel_states(states: TrainState) -> TrainState:
    """States `[M, ...]` as they are trained, parameters and whatever is like them as one vector a model."""
    return raveled.ravel_like(states.params, states, num_leading=1)


def entry(tree: T, model: int) -> T:
    """One model's arrays out of those of a stack on the host."""
    return jax.tree.map(lambda a: a[model, ...], tree)


class Packed:
    """Models over the devices: each device holds an equal share of a stack, and whole batches."""

    splits_batch = False

    def __init__(self, capacity: int) -> None:
        """A stack has room for `capacity` models, rounded up to a multiple of this process's devices."""
        num_devices = jax.local_device_count()
        self.capacity = -(-capacity // num_devices) * num_devices

    def put(self, tree: Any) -> Any:
        """Arrays `[M, ...]` on the host → `[D, capacity / D, ...]`; places past M repeat the last model."""
        num_devices = jax.local_device_count()

        def spread(array: np.ndarray) -> np.ndarray:
            index = np.minimum(np.arange(self.capacity), len(array) - 1)
            shape = num_devices, self.capacity // num_devices, *np.shape(array)[1:]
            return np.asarray(array)[index].reshape(shape)

        return devices.split(jax.tree.map(spread, tree))

    def get(self, tree: Any, num_models: int) -> Any:
        """The inverse of `put`: NumPy arrays `[M, ...]`."""
        return jax.tree.map(
            lambda a: np.asarray(a).reshape(-1, *a.shape[2:])[:num_models], jax.device_get(tree)
        )


class DataParallel:
    """One model on all devices of all processes, which share every batch."""

    splits_batch = True
    capacity = 1

    def put(self, tree: Any) -> Any:
        """Arrays `[1, ...]` on the host → `[D, 1, ...]`."""
        return devices.replicate(tree)

    def get(self, tree: Any, num_models: int) -> Any:
        """The inverse of `put`."""
        del num_models
        return jax.device_get(devices.first(tree))


Layout = Packed | DataParallel


def map_models(fn: Callable[[Any], T], models: Any) -> T:
    """`fn` of every model of one device, arrays `[M, ...]` in and out."""
    if are_side_by_side(models):
        return side_by_side(fn)(models)
    if _num_models(models) == 1:
        return jax.tree.map(lambda a: a[None], fn(entry(models, 0)))
    return jax.lax.map(fn, models)


def are_side_by_side(models: Any) -> bool:
    """Whether the models of one device, arrays `[M, ...]`, are computed at once, or one after the other."""
    # On CPUs a batched matrix product is slower than the products one after the other, and small
    # products of one model stay in cache; accelerators are filled only by many models at once.
    return _num_models(models) > 1 and jax.default_backend() != "cpu"


def side_by_side(fn: Callable[..., T]) -> Callable[..., T]:
    """`fn` of all models of one device at once, arrays `[M, ...]` in and out.

    What does not depend on a model's arguments is computed once for all.
    """

    def of_all(*arguments: Any) -> T:
        with convolution.as_products():
            return jax.vmap(fn)(*arguments)

    return of_all


def _num_models(models: Any) -> int:
    return jax.tree.leaves(models)[0].shape[0]
