"""The training loop: compiled steps, log rows, validation, checkpoints, and a stop on request.

It trains a stack of models; a run is a stack of one. Whether a model has all devices or a device many models,
and whether images stay on the devices or are streamed to them, its layout and its batches say.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from hvae_jax.beta_range import BetaRange
from hvae_jax.betas import BetaControl
from hvae_jax.errors import Stopped
from hvae_jax.files import rate_log
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import devices, processes, stacks
from hvae_jax.training.batches import Batches, PickFn
from hvae_jax.training.config import TrainingConfig
from hvae_jax.training.intervals import compile_interval
from hvae_jax.training.optimizer import SkipState
from hvae_jax.training.raveled import unravel
from hvae_jax.training.stacks import Layout, Stack
from hvae_jax.training.step import (
    Params,
    PreprocessFn,
    StepMetrics,
    TermsFn,
    TermsOfStep,
    TrainState,
    make_train_step,
)

# A request to stop is looked for between compiled calls, so a call should not take longer than this.
CALL_SECONDS = 1.0


class Log(Protocol):
    """Takes the rows of a run's rate log: a `records.RateLog`, or anything that keeps them."""

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


class Trainer:
    """Trains stacks of models of one architecture with one compiled program."""

    def __init__(
        self,
        terms_fn: TermsFn | TermsOfStep,
        *,
        preprocess_fn: PreprocessFn,
        control: BetaControl,
        config: TrainingConfig,
        layout: Layout,
        beta_range: BetaRange | None = None,
        monte_carlo_rates: Sequence[int] = (),
    ) -> None:
        """Compiles nothing yet.

        Args:
          terms_fn: (params, x, keys) → terms; a `TermsOfStep` gives those of each step.
          preprocess_fn: (keys, stored images) → x.
          control: moves the betas.
          config: how to train; `seed` and `order_seed` are each model's own.
          layout: of the models over the devices.
          beta_range: of conditioned models; None for others.
          monte_carlo_rates: layers whose rate has no closed form; rows of the logs say which.
        """
        self.layout, self._config, self._beta_range = layout, config, beta_range
        self._monte_carlo_rates = monte_carlo_rates
        axis_name = devices.DEVICE_AXIS if layout.splits_batch else None
        self._step_fn = make_train_step(terms_fn, preprocess_fn, control, config, axis_name, beta_range)
        self._programs: dict[PickFn, Callable[..., Any]] = {}

    def train(
        self,
        stack: Stack,
        logs: Sequence[Log],
        batches: Batches,
        *,
        save: Callable[[int, Stack], None],
        validate: Callable[[Params], LayerwiseTerms] | None = None,
        report: Callable[[Progress], None] = lambda progress: None,
        stop_requested: Callable[[], bool] = lambda: False,
        raise_not_finite: bool = False,
    ) -> Stack:
        """Trains a stack to the end.

        Args:
          stack: new, or as saved.
          logs: one per model; they get the rows that a run of its own would write.
          batches: of stored training images, in each model's order.
          save: called with step and stack where the config asks for a checkpoint, and at the end.
          validate: params `[M, ...]` → the terms of every model and validation image `[M, N, ...]`, NumPy
            arrays; of conditioned models those of `BetaRange.make_terms`.
          report: called after every interval.
          stop_requested: asked after every compiled call, which takes about `CALL_SECONDS` at most (or one
            step of every model, where that takes longer). Once it says yes, on any process, `save` is
            called at that very step and training ends with `Stopped`. It goes on as if it had not been
            stopped.
          raise_not_finite: whether all end where one model's loss is not finite; else it is frozen as it was
            before that step, and the others go on.

        Returns:
          the final stack.

        Raises:
          Stopped: as `stop_requested` wished.
          NotFinite: a loss or gradient was not, and `raise_not_finite`; or `AllSkipped`, likewise.
        """
        config, num_models = self._config, len(logs)
        num_steps = config.num_steps(batches.num_images)
        step, logged, failed_at = int(stack.step), int(stack.logged), stack.failed_at.copy()
        seconds, since = float(stack.seconds), float(stack.logged_seconds)
        states, totals = self.layout.put((stacks.ravel_states(stack.states), stack.totals))
        calls = Calls(min(batches.steps_per_call, config.log_every_steps))

        def on_host() -> Stack:
            arrays = self.layout.get((states, totals), num_models)
            return Stack(
                np.array(step, np.int32),
                unravel(arrays[0]),
                failed_at.astype(np.int32),
                np.array(seconds, np.float64),
                np.array(logged, np.int32),
                np.array(since, np.float64),
                arrays[1],
            )

        def write(
            i: int,
            split: str,
            means: StepMetrics,
            betas: np.ndarray,
            images_per_s: float,
            num_skipped: int | None = None,
            marked: Mapping[str, Any] | None = None,
        ) -> None:
            logs[i].append(
                rate_log.rate_row(
                    step=step,
                    epoch=step * config.batch_size / batches.num_images,
                    split=split,
                    loss=float(means.loss),
                    distortion=float(means.distortion),
                    rates=means.rates.tolist(),
                    betas=betas.tolist(),
                    num_dims=int(np.prod(batches.image_shape)),
                    grad_norm=float(means.grad_norm) if split == "train" else None,
                    images_per_s=images_per_s,
                    num_skipped=num_skipped,
                    monte_carlo_rates=self._monte_carlo_rates,
                )
                | dict(marked or {})
            )

        while logged < num_steps:
            # Of an interval that the end of a run cut short there is a row; where the run goes on, there
            # will be one of the whole interval.
            begin = logged // config.log_every_steps * config.log_every_steps
            end = min(begin + config.log_every_steps, num_steps)
            model_steps, interval_start = 0, time.perf_counter()
            while step < end:
                start = time.perf_counter()
                count = min(calls.num_steps, end - step)
                counts = np.where(failed_at == 0, count, 0)
                (states, totals), done = self._call((states, totals), batches, step, counts)
                done = self.layout.get(done, num_models)
                newly_failed = (failed_at == 0) & (done < counts)
                failed_at = np.where(newly_failed, step + done + 1, failed_at)
                if newly_failed.any() and raise_not_finite:
                    raise NotFinite(int(failed_at.max()))
                step = num_steps if failed_at.all() else step + count
                model_steps += int(done.sum())
                elapsed = time.perf_counter() - start
                seconds += elapsed
                calls.took(elapsed, count)
                stop, calls.num_steps = processes.agree(stop_requested(), calls.num_steps)
                if stop:
                    save(step, on_host())
                    raise Stopped(step)
            sums, betas = self.layout.get((totals, states.beta_state.betas), num_models)
            skips = self.layout.get(_skips(states), num_models)
            alive = np.flatnonzero(failed_at == 0).tolist()
            images_per_s = (end - begin) * config.batch_size / (seconds - since)
            for i in alive:
                means = StepMetrics(*(total[i] / (end - begin) for total in sums))
                num_skipped, of_images = int(skips[0][i]) if skips else None, betas[i]
                if self._beta_range is not None:
                    of_images = self._beta_range.means()
                write(i, "train", means, of_images, images_per_s, num_skipped)
                if skips and skips[1][i] >= config.log_every_steps:  # it never moves again
                    failed_at[i] = step
                    if raise_not_finite:
                        raise AllSkipped(step, config.skip_grad_norm, int(skips[1][i]))
            is_last = step == num_steps
            if validate is not None and (step % config.eval_every_steps == 0 or is_last):
                start = time.perf_counter()
                terms = validate(unravel(self.layout.get(states.eval_params, num_models)))
                elapsed = time.perf_counter() - start
                seconds, since = seconds + elapsed, since + elapsed
                for i in alive:
                    found, marked = stacks.entry(terms, i), None
                    if self._beta_range is not None:
                        found, marked = self._beta_range.split(found)
                    means, speed = split_means(found, betas[i]), terms.distortion.shape[1] / elapsed
                    write(i, "valid", means, betas[i], speed, marked=marked)
            if failed_at.all():  # nobody is left to take a step
                step = num_steps
            logged = step
            if step % config.log_every_steps == 0:
                since = seconds
                totals = self.layout.put(stacks.zero_totals(stack.states))
            if step % config.checkpoint_every_steps == 0 or step == num_steps:
                save(step, on_host())
            report(Progress(step, model_steps, time.perf_counter() - interval_start))
        return on_host()

    def time_steps(self, stack: Stack, batches: Batches, num_steps: int) -> float:
        """Seconds of `num_steps` steps of a stack, compiled before; nothing is kept."""
        counts = np.full(len(stack.failed_at), num_steps)
        models = self.layout.put((stacks.ravel_states(stack.states), stack.totals))
        models, done = self._call(models, batches, 0, counts)
        jax.block_until_ready(done)
        start = time.perf_counter()
        models, done = self._call(models, batches, 0, counts)
        jax.block_until_ready(done)
        return time.perf_counter() - start

    def _call(self, models: Any, batches: Batches, step: int, counts: np.ndarray) -> Any:
        """Models are (states, totals) on the devices; the result is what becomes of them, and `done`."""
        if batches.pick not in self._programs:
            self._programs[batches.pick] = compile_interval(self._step_fn, batches.pick)
        # Places of the stack that no model fills take no steps.
        padded = np.zeros(self.layout.capacity, np.int32)
        padded[: len(counts)] = counts
        taken = batches.take(step, int(counts.max()))
        return self._programs[batches.pick](models, *taken, self.layout.put(padded))


class NotFinite(Exception):
    """A loss or its gradient was not finite at `step`."""

    advice = (
        "Lower config.training.learning_rate, set config.training.max_grad_norm, or look for values in the "
        "data that are not finite"
    )

    def __init__(self, step: int, message: str = "the loss or its gradient is not finite at step {}") -> None:
        super().__init__(message.format(step))
        self.step = step


class AllSkipped(NotFinite):
    """Every step of an interval was left out, for the norm of its gradient: nothing moves any more."""

    advice = "Raise config.training.skip_grad_norm, or set it to 0; or lower config.training.learning_rate"

    def __init__(self, step: int, skip_grad_norm: float, num_steps: int) -> None:
        norm = f"config.training.skip_grad_norm={skip_grad_norm:g}"
        super().__init__(
            step,
            f"the gradient's norm is above {norm} in each of the last {num_steps} steps, up to step {{}}",
        )


def _skips(states: TrainState) -> tuple[Any, Any] | tuple[()]:
    """How many steps each model left out, and how many without a break; () where none may be."""
    opt_state = states.opt_state
    return (opt_state.num_skipped, opt_state.num_in_a_row) if isinstance(opt_state, SkipState) else ()


class Calls:
    """How many steps a compiled call takes, from how long the last one took."""

    def __init__(self, limit: int) -> None:
        self._limit, self._num_done, self.num_steps = limit, 0, 1

    def took(self, seconds: float, num_steps: int) -> None:
        """One call is done. The first tells nothing: it compiled."""
        self._num_done += 1
        if self._num_done > 1:
            self.num_steps = max(1, min(self._limit, int(CALL_SECONDS * num_steps / seconds)))


def split_means(terms: LayerwiseTerms, betas: np.ndarray) -> StepMetrics:
    """Means over a split, weighed with `betas` `[L]`; the gradient norm is not a number."""
    distortion = np.mean(terms.distortion, dtype=np.float64)
    rates = np.mean(terms.rates, axis=0, dtype=np.float64)
    return StepMetrics(distortion + rates @ betas, distortion, rates, np.nan)
