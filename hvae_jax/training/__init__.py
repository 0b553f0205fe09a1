"""Training: a pure step, many of them in one compiled call, and the loop around it."""

from hvae_jax.training.config import TrainingConfig
from hvae_jax.training.step import (
    Params,
    PreprocessFn,
    StepFn,
    StepMetrics,
    TermsFn,
    TrainState,
    compile_interval,
    init_state,
    is_finite,
    make_interval,
    make_train_step,
    pick_micro_batch,
    zero_totals,
)

__all__ = [
    "Params",
    "PreprocessFn",
    "StepFn",
    "StepMetrics",
    "TermsFn",
    "TrainState",
    "TrainingConfig",
    "compile_interval",
    "init_state",
    "is_finite",
    "make_interval",
    "make_train_step",
    "pick_micro_batch",
    "zero_totals",
]
