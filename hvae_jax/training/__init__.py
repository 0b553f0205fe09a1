"""Training: a pure step, many of them in one compiled call, and the loop around it."""

from hvae_jax.training.config import TrainingConfig as TrainingConfig
from hvae_jax.training.run import train as train
from hvae_jax.training.step import Params as Params
from hvae_jax.training.step import PreprocessFn as PreprocessFn
from hvae_jax.training.step import StepFn as StepFn
from hvae_jax.training.step import StepMetrics as StepMetrics
from hvae_jax.training.step import TermsFn as TermsFn
from hvae_jax.training.step import TermsOfStep as TermsOfStep
from hvae_jax.training.step import TrainState as TrainState
from hvae_jax.training.step import init_state as init_state
from hvae_jax.training.step import is_finite as is_finite
from hvae_jax.training.step import make_train_step as make_train_step
from hvae_jax.training.step import pick_micro_batch as pick_micro_batch
