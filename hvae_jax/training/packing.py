"""Many models of one architecture as one program: their states stacked along a leading axis M.

The models differ in betas, seed and data order, all of which are data, so one compiled step serves
every one. Each device holds an equal share of the stack and trains it model by model (`lax.map`) on
CPUs, side by side (`vmap`) elsewhere. A model's numbers do not depend on its neighbours.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import numpy as np

from hvae_jax import training
from hvae_jax.betas import BetaControl
from hvae_jax.errors import Stopped
from hvae_jax.files import rate_log
from hvae_jax.keys import make_key, to_data
from hvae_jax.models import convolution
from hvae_jax.training import (
    Params,
    PreprocessFn,
    StepMetrics,
    TermsFn,
    TrainingConfig,
    TrainState,
    batches,
    devices,
    loop,
    split_evaluator,
)

T = TypeVar("T")


class Stack(NamedTuple):
    """What a packed run carries from interval to interval, and what its checkpoints hold.

    NumPy arrays on the host.

    Attributes:
      step: updates that every model has done, unless it failed; a scalar.
      states: `TrainState` with arrays `[M, ...]`. A failed model's is that before the failing step.
      failed_at: `[M]`, the step whose loss or gradient was not finite; 0 for a model without one.
      seconds: spent on training and validation so far; a scalar.
      logged: the step of the newest rows of the logs; a scalar, less than `step` where training was
        stopped within an interval.
      logged_seconds: `seconds` at that step; a scalar.
      totals: sums of the metrics over the steps since then, `[M, ...]`.
    """

    step: np.ndarray
    states: TrainState
    failed_at: np.ndarray
    seconds: np.ndarray
    logged: np.ndarray
    logged_seconds: np.ndarray
    totals: StepMetrics


class Log(Protocol):
    """Takes the rows of a run's rate log: a `rate_log.RateLog`, or anything that keeps them."""

    def append(self, row: Mapping[str, Any], /) -> None:
        """Takes one row."""


class Progress(NamedTuple):
    """Attributes:
    step: updates that every model of the stack has done.
    model_steps: updates of the last interval, summed over the models.
    seconds: that the last interval took, validation included.
    """

    step: int
    model_steps: int
    seconds: float


def new_stack(states: Sequence[TrainState]) -> Stack:
    """The stack before the first step."""
    stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *states)
    return _to_host(0, stacked, np.zeros(len(states)), 0.0, 0, 0.0, _zero_totals(stacked))


class Evaluator:
    """Runs functions of (params, x, keys) for every model of a stack over every image of a split.

    The packed form of `SplitEvaluator`: the same draws for the same key.
    """

    def __init__(self, images: np.ndarray, preprocess_fn: PreprocessFn) -> None:
        """Keeps `images`, `[N, ...]` as stored, on every device."""
        self._num_images = len(images)
        self._preprocess_fn = preprocess_fn
        batch = training.pick_micro_batch((split_evaluator.EVAL_BATCH, *images.shape[1:]))
        index = np.arange(-(-len(images) // batch) * batch).reshape(-1, batch)
        index = np.minimum(index, len(images) - 1).astype(np.int32)
        self._images, self._index = devices.replicate((images[index], index))
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def map_images(
        self,
        fn: Callable[[Params, jax.Array, jax.Array], Any],
        params: Params,
        seeds: np.ndarray,
        num_models: int,
        folds: Sequence[int] = (),
    ) -> Any:
        """`fn(params, x, keys)` of every model and image.

        Args:
          fn: returns arrays `[B, ...]`; must be the same object from call to call, or it compiles anew.
          params: of a stack that `lay_out` put on the devices.
          seeds: `[M]`, of each model's key.
          num_models: M.
          folds: numbers that are folded into each key, one after the other.

        Returns:
          NumPy arrays `[M, N, ...]`.
        """
        if fn not in self._compiled:
            over_batches = split_evaluator.make_over_batches(fn, self._preprocess_fn)

            def over_models(params: Params, images: jax.Array, index: jax.Array, keys: jax.Array) -> Any:
                return map_models(lambda m: over_batches(m[0], images, index, m[1]), (params, keys))

            self._compiled[fn] = jax.pmap(over_models)
        capacity = math.prod(jax.tree.leaves(params)[0].shape[:2])
        keys = [functools.reduce(jax.random.fold_in, folds, make_key(int(seed))) for seed in seeds]
        keys = np.stack([to_data(key) for key in keys])
        out = self._compiled[fn](params, self._images, self._index, lay_out(keys, capacity))
        out = take(out, num_models)
        return jax.tree.map(lambda a: a.reshape(a.shape[0], -1, *a.shape[3:])[:, : self._num_images], out)


class Trainer:
    """Trains stacks of at most `capacity` models with one compiled program."""

    def __init__(
        self,
        terms_fn: TermsFn,
        images: np.ndarray,
        *,
        valid_images: np.ndarray,
        preprocess_fn: PreprocessFn,
        control: BetaControl,
        config: TrainingConfig,
        capacity: int,
    ) -> None:
        """Puts the images on every device.

        Args:
          terms_fn: (params, x, keys) → terms.
          images, valid_images: `[N, ...]` as stored; the latter can be empty.
          preprocess_fn: (keys, stored images) → x.
          control: moves the betas.
          config: how to train; `seed` and `order_seed` are each model's own.
          capacity: models that a stack has room for; rounded up to a multiple of the devices.
        """
        num_devices = jax.local_device_count()
        self.capacity = -(-capacity // num_devices) * num_devices
        self.num_steps = config.num_steps(len(images))
        self._steps_per_call = min(config.log_every_steps, self.num_steps)
        self._terms_fn, self._config = terms_fn, config
        self._num_images, self._num_dims = len(images), math.prod(images.shape[1:])
        self._images = devices.replicate(images)
        self._valid = Evaluator(valid_images, preprocess_fn) if len(valid_images) else None
        step_fn = training.make_train_step(terms_fn, preprocess_fn, control, config)
        interval = training.make_interval(step_fn, batches.pick_resident)

        def shared(models: Any, images: jax.Array, indices: jax.Array, counts: jax.Array) -> Any:
            return map_models(lambda m: interval(*m[0], (images, indices), m[1]), (models, counts))

        def own(models: Any, images: jax.Array, indices: jax.Array, counts: jax.Array) -> Any:
            return map_models(lambda m: interval(*m[0], (images, m[1]), m[2]), (models, indices, counts))

        # One order for all is sent once a device; an order of its own once a model.
        self._shared = jax.pmap(shared, in_axes=(0, 0, None, 0), donate_argnums=0)
        self._own = jax.pmap(own, donate_argnums=0)

    def train(
        self,
        stack: Stack,
        logs: Sequence[Log],
        *,
        seeds: np.ndarray,
        order_seeds: np.ndarray,
        save: Callable[[int, Stack], None],
        report: Callable[[Progress], None],
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> Stack:
        """Trains a stack to the end.

        Args:
          stack: new, or as saved.
          logs: one per model; they get the rows that a run of its own would write.
          seeds, order_seeds: `[M]`; `seeds` are those of the validation draws.
          save: called with step and stack where the config asks for a checkpoint, and at the end.
          report: called after every interval.
          stop_requested: asked after every compiled call, which takes about `loop.CALL_SECONDS` at most
            (or one step of every model, where that takes longer). Once it says yes, `save` is called at
            that very step and training ends with `Stopped`. It goes on as if it had not been stopped.

        Returns:
          the final stack.

        Raises:
          Stopped: as `stop_requested` wished.
        """
        config, num_models = self._config, len(logs)
        step, logged, failed_at = int(stack.step), int(stack.logged), stack.failed_at.copy()
        seconds, logged_seconds = float(stack.seconds), float(stack.logged_seconds)
        states, totals = lay_out((stack.states, stack.totals), self.capacity)
        calls = loop.Calls(self._steps_per_call)

        def on_host() -> Stack:
            arrays = take((states, totals), num_models)
            return _to_host(step, arrays[0], failed_at, seconds, logged, logged_seconds, arrays[1])

        while logged < self.num_steps:
            end, model_steps = min(logged + config.log_every_steps, self.num_steps), 0
            while step < end:
                start = time.perf_counter()
                count = min(calls.num_steps, end - step)
                counts = np.where(failed_at == 0, count, 0)
                (states, totals), done = self._interval((states, totals), order_seeds, step, counts)
                done = take(done, num_models)
                failed_at = np.where((failed_at == 0) & (done < counts), step + done + 1, failed_at)
                step = self.num_steps if failed_at.all() else step + count
                model_steps += int(done.sum())
                elapsed = time.perf_counter() - start
                seconds += elapsed
                calls.took(elapsed, count)
                if stop_requested():
                    save(step, on_host())
                    raise Stopped(step)
            sums, betas = take((totals, states.beta_state.betas), num_models)
            alive = np.flatnonzero(failed_at == 0).tolist()
            images_per_s = (end - logged) * config.batch_size / (seconds - logged_seconds)
            for i in alive:
                means = StepMetrics(*(total[i] / (end - logged) for total in sums))
                self._write(logs[i], "train", step, means, betas[i], images_per_s)
            is_last = step == self.num_steps
            if self._valid is not None and (step % config.eval_every_steps == 0 or is_last):
                start = time.perf_counter()
                terms = self._valid.map_images(self._terms_fn, states.eval_params, seeds, num_models)
                elapsed = time.perf_counter() - start
                seconds += elapsed
                for i in alive:
                    means = loop.split_means(entry(terms, i), betas[i])
                    self._write(logs[i], "valid", step, means, betas[i], terms.distortion.shape[1] / elapsed)
            interval_seconds, logged, logged_seconds = seconds - logged_seconds, step, seconds
            totals = lay_out(_zero_totals(stack.states), self.capacity)
            if step % config.checkpoint_every_steps == 0 or is_last:
                save(step, on_host())
            report(Progress(step, model_steps, interval_seconds))
        return on_host()

    def time_steps(self, stack: Stack, order_seeds: np.ndarray, num_steps: int) -> float:
        """Seconds of `num_steps` steps of a stack, compiled before; nothing is kept."""
        counts = np.full(len(order_seeds), num_steps)
        models = lay_out((stack.states, stack.totals), self.capacity)
        models, done = self._interval(models, order_seeds, 0, counts)
        jax.block_until_ready(done)
        start = time.perf_counter()
        models, done = self._interval(models, order_seeds, 0, counts)
        jax.block_until_ready(done)
        return time.perf_counter() - start

    def _write(
        self,
        log: Log,
        split: str,
        step: int,
        means: StepMetrics,
        betas: np.ndarray,
        images_per_s: float,
    ) -> None:
        row = rate_log.rate_row(
            step=step,
            epoch=step * self._config.batch_size / self._num_images,
            split=split,
            loss=float(means.loss),
            distortion=float(means.distortion),
            rates=means.rates.tolist(),
            betas=betas.tolist(),
            num_dims=self._num_dims,
            grad_norm=float(means.grad_norm) if split == "train" else None,
            images_per_s=images_per_s,
        )
        log.append(row)

    def _interval(self, models: Any, order_seeds: np.ndarray, step: int, counts: np.ndarray) -> Any:
        """Models are (states, totals) on the devices; the result is what becomes of them, and `done`."""
        config, count = self._config, int(counts.max())
        orders = {}
        for seed in np.unique(order_seeds).tolist():
            indices = np.zeros((self._steps_per_call, config.batch_size), np.int32)
            args = seed, self._num_images, config.batch_size, step, count
            indices[:count] = batches.batch_indices(*args)
            orders[seed] = indices
        # Places of the stack that no model fills take no steps.
        padded = np.zeros(self.capacity, np.int32)
        padded[: len(counts)] = counts
        device_counts = lay_out(padded, self.capacity)
        if len(orders) == 1:
            order = next(iter(orders.values()))
            *models, done = self._shared(models, self._images, order, device_counts)
        else:
            indices = lay_out(np.stack([orders[seed] for seed in order_seeds.tolist()]), self.capacity)
            *models, done = self._own(models, self._images, indices, device_counts)
        return tuple(models), done


def map_models(fn: Callable[[Any], T], models: Any) -> T:
    """`fn` of every model of one device, arrays `[M, ...]` in and out."""
    # On CPUs a batched matrix product is slower than the products one after the other, and small
    # products of one model stay in cache; accelerators are filled only by many models at once.
    if jax.default_backend() == "cpu":
        return jax.lax.map(fn, models)
    with convolution.as_products():
        return jax.vmap(fn)(models)


def lay_out(tree: Any, capacity: int) -> Any:
    """Arrays `[M, ...]` to `[devices, capacity / devices, ...]`, each device with its share.

    Places past M repeat the last model.
    """
    num_devices = jax.local_device_count()

    def spread(a: np.ndarray) -> np.ndarray:
        index = np.minimum(np.arange(capacity), len(a) - 1)
        return np.asarray(a)[index].reshape(num_devices, capacity // num_devices, *a.shape[1:])

    return devices.shard_devices(jax.tree.map(spread, tree))


def take(tree: Any, num_models: int) -> Any:
    """The inverse of `lay_out`: NumPy arrays `[M, ...]`."""
    return jax.tree.map(lambda a: np.asarray(a).reshape(-1, *a.shape[2:])[:num_models], jax.device_get(tree))


def entry(tree: T, model: int) -> T:
    """One model's arrays out of those of a stack on the host."""
    return jax.tree.map(lambda a: a[model], tree)


def _zero_totals(states: TrainState) -> StepMetrics:
    """Before the first step of an interval, for each of the models."""
    betas = np.asarray(states.beta_state.betas)
    zeros = np.zeros(len(betas), np.float32)
    return StepMetrics(zeros, zeros, np.zeros(betas.shape, np.float32), zeros)


def _to_host(
    step: int,
    states: TrainState,
    failed_at: np.ndarray,
    seconds: float,
    logged: int,
    logged_seconds: float,
    totals: StepMetrics,
) -> Stack:
    return Stack(
        np.array(step, np.int32),
        states,
        failed_at.astype(np.int32),
        np.array(seconds, np.float64),
        np.array(logged, np.int32),
        np.array(logged_seconds, np.float64),
        totals,
    )
