"""The training loop: compiled steps, log rows, validation, checkpoints, and a stop on request."""

import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hvae_jax import training
from hvae_jax.betas import BetaControl
from hvae_jax.errors import RunError, Stopped
from hvae_jax.files import rate_log
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import (
    Params,
    PreprocessFn,
    StepMetrics,
    TermsFn,
    TrainingConfig,
    TrainState,
    devices,
    processes,
)
from hvae_jax.training.batches import Batches
from hvae_jax.training.checkpoints import CHECKPOINTS_FOLDER, Checkpoints

# A request to stop is looked for between compiled calls, so a call should not take longer than this.
CALL_SECONDS = 1.0
# What a checkpoint holds beside the state.
PROGRESS = {"logged", "seconds", "totals", "batches", "ended"}


def train(
    folder: pathlib.Path,
    state: TrainState,
    terms_fn: TermsFn,
    batches: Batches,
    *,
    preprocess_fn: PreprocessFn,
    control: BetaControl,
    config: TrainingConfig,
    validate: Callable[[Params], LayerwiseTerms] | None = None,
    reports: Sequence[Callable[[dict[str, Any]], None]] = (),
    stop_requested: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Trains over all devices of all processes, from the folder's newest checkpoint where there is one.

    Writes `rates.jsonl` and `checkpoints/` into the folder. A run that was complete goes on where
    `config.num_epochs` is larger by now: rows, final state and checkpoints are then those of a run that was
    planned longer, as far as `control` does not depend on the plan. With several processes, process 0
    alone reads and writes there, and calls `reports`.

    Args:
      folder: the run folder, see `records.open_run`.
      state: from `init_state`.
      terms_fn: (params, x, keys) → terms.
      batches: of stored training images.
      preprocess_fn: (keys, stored images) → x.
      control: moves the betas.
      config: how to train.
      validate: params → the terms of every validation image, as NumPy arrays.
      reports: called with every row of the log as it is written.
      stop_requested: asked after every compiled call, which takes about `CALL_SECONDS` at most (or one
        step, where that takes longer). Once it says yes, on any process, a checkpoint of that very step
        is written and the loop ends with `Stopped`. The resumed run equals an uninterrupted one, its log
        included.

    Returns:
      the final state, on the host.

    Raises:
      RunError: a loss that is not finite (the checkpoints before it stay), a bad config, a folder
        that cannot be written.
      Stopped: as `stop_requested` wished.
    """
    num_steps = config.num_steps(batches.num_images)
    interval = training.compile_interval(terms_fn, preprocess_fn, control, config, batches.pick)
    is_main = processes.is_main()
    checkpoints = Checkpoints(folder / CHECKPOINTS_FOLDER, config.num_checkpoints) if is_main else None
    new = state

    def read() -> TrainState:
        if checkpoints is None or checkpoints.latest_step() is None:
            return new
        return checkpoints.restore(new)

    state = processes.from_main(read, new)
    saved = processes.values_from_main(lambda: _read_progress(checkpoints) if checkpoints else {})
    batches.restore(saved.get("batches", {}))
    step = int(state.step)
    if step > num_steps:
        raise RunError(
            f"config.training.num_epochs={config.num_epochs} is {num_steps} steps, and {folder} has a "
            f"checkpoint of step {step}: a run goes on, not back; give more epochs, or another folder"
        )
    # Steps past `logged` are done and in the totals, but no row of a whole interval tells of them yet; that
    # of an interval cut short by the end of the run does, up to `ended`.
    logged, seconds = saved.get("logged", step), saved.get("seconds", 0.0)
    zeros = jax.device_get(training.zero_totals(len(state.beta_state.betas)))
    totals = StepMetrics(**saved["totals"]) if "totals" in saved else zeros
    totals = jax.tree.map(lambda _, total: np.asarray(total, np.float32), zeros, totals)
    ended = saved.get("ended", logged)  # 0.1.0 took every end of a run for that of an interval
    is_complete = step == ended == num_steps

    def keep(row: Mapping[str, Any]) -> bool:
        """Whether a longer run has it, too: at its end, a run validates at any step."""
        return is_complete or row["split"] == "train" or row["step"] % config.eval_every_steps == 0

    log = None
    if is_main:
        last_row = num_steps if is_complete else logged
        log = rate_log.RateLog(folder, last_row, keep, is_complete=last_row > 0)
    if is_complete:
        if checkpoints:
            checkpoints.close()
        return jax.device_get(state)
    state, totals = devices.replicate((state, totals))
    calls = Calls(batches.steps_per_call)

    def write(split: str, means: StepMetrics, grad_norm: float | None, images_per_s: float) -> None:
        row = rate_log.rate_row(
            step=step,
            epoch=step * config.batch_size / batches.num_images,
            split=split,
            loss=float(means.loss),
            distortion=float(means.distortion),
            rates=means.rates.tolist(),
            betas=betas.tolist(),
            num_dims=math.prod(batches.image_shape),
            grad_norm=grad_norm,
            images_per_s=images_per_s,
        )
        if log:
            for report in (log.append, *reports):
                report(row)

    def save() -> None:
        if checkpoints is None:
            return
        progress = {"logged": logged, "seconds": seconds, "batches": batches.state(), "ended": ended}
        if logged < step:
            progress["totals"] = jax.tree.map(
                np.ndarray.tolist, jax.device_get(devices.first(totals))
            )._asdict()
        checkpoints.save(step, devices.first(state), progress)

    while ended < num_steps:
        end = min((logged // config.log_every_steps + 1) * config.log_every_steps, num_steps)
        while step < end:
            start = time.perf_counter()
            count = min(calls.num_steps, end - step)
            state, totals, done = interval(state, totals, batches.take(step, count), count)
            done = int(devices.first(done))
            if done < count:
                raise RunError(_not_finite(step + done + 1, checkpoints))
            step += count
            elapsed = time.perf_counter() - start
            seconds += elapsed
            calls.took(elapsed, count)
            stop, calls.num_steps = processes.agree(stop_requested(), calls.num_steps)
            if stop:
                save()
                if checkpoints:
                    checkpoints.wait()
                    checkpoints.close()
                raise Stopped(step)
        sums, betas = jax.device_get(devices.first((totals, state.beta_state.betas)))
        means = StepMetrics(*(total / (end - logged) for total in sums))
        write("train", means, float(means.grad_norm), (end - logged) * config.batch_size / seconds)
        is_last = step == num_steps
        ended = step
        if validate is not None and (step % config.eval_every_steps == 0 or is_last):
            start = time.perf_counter()
            terms = validate(devices.first(state).eval_params)
            elapsed = time.perf_counter() - start
            write("valid", split_means(terms, betas), None, len(terms.distortion) / elapsed)
        # An interval that the end of the run cuts short stays open, for a run that goes on.
        if step % config.log_every_steps == 0:
            logged, seconds, totals = step, 0.0, devices.replicate(zeros)
        if step % config.checkpoint_every_steps == 0 or is_last:
            save()
            # Where a run was stopped or ended before it went on, an uninterrupted one has no checkpoint.
            for stale in checkpoints.steps() if checkpoints else ():
                if checkpoints and stale < step and stale % config.checkpoint_every_steps:
                    checkpoints.delete(stale)
    if checkpoints:
        checkpoints.wait()
        checkpoints.close()
    return jax.device_get(devices.first(state))


def _read_progress(checkpoints: Checkpoints) -> dict[str, Any]:
    progress = checkpoints.progress()
    if unknown := sorted(set(progress) - PROGRESS):
        raise RunError(
            f"the newest checkpoint in {checkpoints.folder} holds {', '.join(unknown)}, which this version "
            "of hvae_jax does not know: a newer one wrote it; use that one"
        )
    return progress


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


def _not_finite(step: int, checkpoints: Checkpoints | None) -> str:
    kept = "process 0 says which checkpoint is kept"
    if checkpoints is not None:
        checkpoints.wait()
        last_good = checkpoints.latest_step()
        kept = (
            "no checkpoint was written before it" if last_good is None else f"checkpoint {last_good} is kept"
        )
    return (
        f"the loss or its gradient is not finite at step {step}; {kept}. Lower "
        "config.training.learning_rate, set config.training.max_grad_norm, or look for values in the data "
        "that are not finite"
    )
