"""A run in its folder: from its newest checkpoint where there is one, to its last step."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from hvae_jax.beta_range import BetaRange
from hvae_jax.betas import BetaControl
from hvae_jax.errors import RunError, Stopped
from hvae_jax.files import rate_log
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import processes, stacks
from hvae_jax.training.batches import Batches
from hvae_jax.training.checkpoints import CHECKPOINTS_FOLDER, Checkpoints
from hvae_jax.training.config import TrainingConfig
from hvae_jax.training.loop import NotFinite, Trainer
from hvae_jax.training.stacks import DataParallel, Stack
from hvae_jax.training.step import Params, PreprocessFn, StepMetrics, TermsFn, TermsOfStep, TrainState

# What a checkpoint holds beside the state.
PROGRESS = {"logged", "seconds", "totals", "batches", "ended"}


def train(
    folder: pathlib.Path,
    state: TrainState,
    terms_fn: TermsFn | TermsOfStep,
    batches: Batches,
    *,
    preprocess_fn: PreprocessFn,
    control: BetaControl,
    config: TrainingConfig,
    beta_range: BetaRange | None = None,
    validate: Callable[[Params], LayerwiseTerms] | None = None,
    reports: Sequence[Callable[[dict[str, Any]], None]] = (),
    stop_requested: Callable[[], bool] = lambda: False,
    monte_carlo_rates: Sequence[int] = (),
) -> TrainState:
    """Trains over all devices of all processes, from the folder's newest checkpoint where there is one.

    Writes `rates.jsonl` and `checkpoints/` into the folder. A run that was complete goes on where
    `config.num_epochs` is larger by now: rows, final state and checkpoints are then those of a run that was
    planned longer, as far as `control` does not depend on the plan. With several processes, process 0
    alone reads and writes there, and calls `reports`.

    Args:
      folder: the run folder, see `records.open_run`.
      state: from `init_state`.
      terms_fn: (params, x, keys) → terms; a `TermsOfStep` gives those of each step.
      batches: of stored training images.
      preprocess_fn: (keys, stored images) → x.
      control: moves the betas.
      config: how to train.
      beta_range: of a conditioned model; None for others.
      validate: params → the terms of every validation image, as NumPy arrays; of a conditioned model those of
        `BetaRange.make_terms`.
      reports: called with every row of the log as it is written.
      stop_requested: asked after every compiled call, which takes about `loop.CALL_SECONDS` at most (or one
        step, where that takes longer). Once it says yes, on any process, a checkpoint of that very step
        is written and the loop ends with `Stopped`. The resumed run equals an uninterrupted one, its log
        included.
      monte_carlo_rates: layers whose rate has no closed form; rows of the log say which.

    Returns:
      the final state, on the host.

    Raises:
      RunError: a loss that is not finite (the checkpoints before it stay), a bad config, a folder
        that cannot be written.
      Stopped: as `stop_requested` wished.
    """
    num_steps = config.num_steps(batches.num_images)
    trainer = Trainer(
        terms_fn,
        preprocess_fn=preprocess_fn,
        control=control,
        config=config,
        layout=DataParallel(),
        beta_range=beta_range,
        monte_carlo_rates=monte_carlo_rates,
    )
    checkpoints = (
        Checkpoints(folder / CHECKPOINTS_FOLDER, config.num_checkpoints) if processes.is_main() else None
    )
    try:
        stack = _restore(checkpoints, state, batches, config)
        step = int(stack.step)
        if step > num_steps:
            raise RunError(
                f"config.training.num_epochs={config.num_epochs} is {num_steps} steps, and {folder} has a "
                f"checkpoint of step {step}: a run goes on, not back; give more epochs, or another folder"
            )
        log = _Rows(_open_log(folder, stack, config, num_steps) if checkpoints else None, reports)

        def save(step: int, stack: Stack) -> None:
            if checkpoints:
                _save(checkpoints, stack, batches, config, is_last=step == num_steps)

        def validate_stack(params: Params) -> LayerwiseTerms:
            assert validate is not None
            terms = validate(stacks.entry(params, 0))
            return jax.tree.map(lambda a: a[None], terms)

        stack = trainer.train(
            stack,
            [log],
            batches,
            save=save,
            validate=validate_stack if validate else None,
            stop_requested=stop_requested,
            raise_not_finite=True,
        )
    except NotFinite as error:
        raise RunError(_describe(error, checkpoints)) from error
    except Stopped:
        if checkpoints:
            checkpoints.wait()
        raise
    else:
        if checkpoints:
            checkpoints.wait()
    finally:
        if checkpoints:
            checkpoints.close()
    return stacks.entry(stack.states, 0)


class _Rows:
    """A run's log and whoever wants its rows; nothing where another process writes them."""

    def __init__(self, log: rate_log.RateLog | None, reports: Sequence[Callable[[dict[str, Any]], None]]):
        self._takers = (log.append, *reports) if log else ()

    def append(self, row: Mapping[str, Any]) -> None:
        for take in self._takers:
            take(dict(row))


def _restore(
    checkpoints: Checkpoints | None, new: TrainState, batches: Batches, config: TrainingConfig
) -> Stack:
    """The run as its newest checkpoint has it, else as it starts; on every process."""

    def read() -> TrainState:
        if checkpoints is None or checkpoints.latest_step() is None:
            return new
        return checkpoints.restore(new)

    stack = stacks.new_stack([processes.from_main(read, new)])
    saved = processes.values_from_main(lambda: _read_progress(checkpoints) if checkpoints else {})
    batches.restore(saved.get("batches", {}))
    # Steps past `logged` are done and in the totals, but no row of a whole interval tells of them yet; that
    # of an interval cut short by the end of the run does, up to `ended`. 0.1.0, which has no `ended`, took
    # every end of a run for that of an interval.
    logged = saved.get("logged", int(stack.step))
    totals = StepMetrics(**saved["totals"]) if "totals" in saved else None
    return stack._replace(
        logged=np.array(saved.get("ended", logged), np.int32),
        seconds=np.array(saved.get("seconds", 0.0), np.float64),
        totals=stack.totals
        if totals is None
        else jax.tree.map(lambda _, total: np.asarray(total, np.float32)[None], stack.totals, totals),
    )


def _save(
    checkpoints: Checkpoints, stack: Stack, batches: Batches, config: TrainingConfig, is_last: bool
) -> None:
    """Keeps the form of 0.1.0: the state of the one model, and beside it how far its log is."""
    step, ended = int(stack.step), int(stack.logged)
    logged = ended // config.log_every_steps * config.log_every_steps
    progress: dict[str, Any] = {
        "logged": logged,
        "seconds": float(stack.seconds - stack.logged_seconds),
        "batches": batches.state(),
        "ended": ended,
    }
    if logged < step:
        progress["totals"] = jax.tree.map(np.ndarray.tolist, stacks.entry(stack.totals, 0))._asdict()
    checkpoints.save(step, stacks.entry(stack.states, 0), progress)
    if step % config.checkpoint_every_steps == 0 or is_last:
        # Where a run was stopped or ended before it went on, an uninterrupted one has no checkpoint.
        for stale in checkpoints.steps():
            if stale < step and stale % config.checkpoint_every_steps:
                checkpoints.delete(stale)


def _open_log(folder: pathlib.Path, stack: Stack, config: TrainingConfig, num_steps: int) -> rate_log.RateLog:
    """The log with the rows that a run without a break would have by now."""
    logged = int(stack.logged)
    is_complete = int(stack.step) == logged == num_steps
    last_row = logged if is_complete else logged // config.log_every_steps * config.log_every_steps

    def keep(row: Mapping[str, Any]) -> bool:
        """Whether a longer run has it, too: at its end, a run validates at any step."""
        return is_complete or row["split"] == "train" or row["step"] % config.eval_every_steps == 0

    return rate_log.RateLog(folder, last_row, keep, is_complete=last_row > 0)


def _read_progress(checkpoints: Checkpoints) -> dict[str, Any]:
    progress = checkpoints.progress()
    if unknown := sorted(set(progress) - PROGRESS):
        raise RunError(
            f"the newest checkpoint in {checkpoints.folder} holds {', '.join(unknown)}, which this version "
            "of hvae_jax does not know: a newer one wrote it; use that one"
        )
    return progress


def _describe(error: NotFinite, checkpoints: Checkpoints | None) -> str:
    kept = "process 0 says which checkpoint is kept"
    if checkpoints is not None:
        checkpoints.wait()
        last_good = checkpoints.latest_step()
        kept = (
            "no checkpoint was written before it" if last_good is None else f"checkpoint {last_good} is kept"
        )
    return f"{error}; {kept}. {error.advice}"
