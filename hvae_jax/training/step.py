"""Training: a pure step, and many of them in one compiled call. `loop` goes around it.

A model enters as `terms_fn(params, x, key) -> LayerwiseTerms`, so anything that can fill
`LayerwiseTerms` trains here. Noise and data order depend only on the seed, the step and an image's
place in the global batch: the number of devices does not change a run, and a resumed run equals an
uninterrupted one bit for bit.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hvae_jax.beta_range import BetaRange
from hvae_jax.betas import BetaControl, BetaState, warmup_share
from hvae_jax.keys import fold_in, from_data, make_key, to_data
from hvae_jax.objective import LayerwiseTerms, layerwise_elbo
from hvae_jax.training.config import TrainingConfig
from hvae_jax.training.raveled import Raveled, ravel, unravel

Params = Any
# (params, x [B, ...], keys [B]) -> terms; of a conditioned model, which draws betas, (…, betas=[B, L]) too.
# Flax types `apply` as returning more than it does here, hence Any.
TermsFn = Callable[..., LayerwiseTerms | Any]


class TermsOfStep(NamedTuple):
    """Terms that change over training, as those of a relaxation that hardens.

    Attributes:
      at: step → the `TermsFn` of that step; an int32 scalar, traced, the updates done.
    """

    at: Callable[[jax.Array], TermsFn]


# (keys [B], stored images [B, ...]) -> x [B, ...], for example data.make_preprocess.
PreprocessFn = Callable[[jax.Array, jax.Array], jax.Array]

# Images per micro-batch on CPUs, where activations that stay in cache are worth more than a wide
# product: 32 was the fastest of 16 … 256 for the 32 × 32 and 28 × 28 reference models. Small images stay
# in cache by the dozen and what counts is the number of operations: 64 beat 32 and 16 for 8 × 8.
CPU_MICRO_BATCH, CPU_MICRO_BATCH_PIXELS = 32, 16 * 32 * 32


class TrainState(NamedTuple):
    """All that training carries from step to step, and all that a checkpoint holds.

    Attributes:
      step: int32 scalar, updates done.
      key: data of the key that every draw of the run descends from (plain numbers, for checkpoints).
      params, opt_state: of the model and of optax.
      ema_params: averaged parameters; an empty dict where averaging is off.
      beta_state: where the betas are.
    """

    step: jax.Array
    key: jax.Array
    params: Params
    opt_state: Any
    ema_params: Params
    beta_state: BetaState

    @property
    def eval_params(self) -> Params:
        """The averaged parameters where there are any."""
        return self.ema_params or self.params


class StepMetrics(NamedTuple):
    """What one step measured, before its update: batch means in nats, and the gradient's norm.

    Scalars, `rates` `[L]`; JAX arrays inside a step, NumPy outside.
    """

    loss: Any
    distortion: Any
    rates: Any
    grad_norm: Any


StepFn = Callable[[TrainState, jax.Array], tuple[TrainState, StepMetrics]]


def init_state(
    params: Params,
    betas: jax.Array | tuple[float, ...],
    control: BetaControl,
    config: TrainingConfig,
) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=to_data(make_key(config.seed)),
        params=params,
        opt_state=_compiled_optimizer_init(dataclasses.replace(config, seed=0))(params),
        ema_params=params if config.ema_decay else {},
        beta_state=control.init(jnp.asarray(betas, jnp.float32)),
    )


@functools.cache
def _compiled_optimizer_init(config: TrainingConfig) -> Callable[[Params], Any]:
    """One program for all seeds, where each shape of a parameter would have its own."""
    return jax.jit(config.make_optimizer().init)


def make_train_step(
    terms_fn: TermsFn | TermsOfStep,
    preprocess_fn: PreprocessFn,
    control: BetaControl,
    config: TrainingConfig,
    axis_name: str | None = None,
    beta_range: BetaRange | None = None,
) -> StepFn:
    """The pure step `(state, images) -> (state, metrics)`; its parameters are a tree, or raveled.

    Minimises the batch mean of D + Σ β_l R_l; for a conditioned model with betas that each image draws for
    itself, from its key, and that `terms_fn` is told. A step whose loss or gradient is not finite leaves
    the state as it was: the caller sees it in the metrics.

    Args:
      terms_fn: (params, x `[B, ...]`, keys `[B]`) → terms; a `TermsOfStep` gives those of each step.
      preprocess_fn: (keys `[B]`, stored images `[B, ...]`) → x.
      control: moves the betas, and scales the learning rate.
      config: optimiser, averaging, and the images per gradient evaluation.
      axis_name: of the devices that share a batch; None on one.
      beta_range: that a conditioned model draws from; None for a model of the control's betas.
    """
    tx = config.make_optimizer()

    def loss_fn(params: Params, betas: jax.Array, images: jax.Array, keys: jax.Array, step: jax.Array):
        x = preprocess_fn(fold_in(keys, 0), images)
        fn = terms_fn.at(step) if isinstance(terms_fn, TermsOfStep) else terms_fn
        if beta_range is None:
            terms = fn(params, x, fold_in(keys, 1))
        else:
            opened, betas = betas, beta_range.draw(fold_in(keys, 2), betas)
            terms = fn(params, x, fold_in(keys, 1), betas=betas)
            betas = beta_range.paid(betas, opened)
        means = terms.distortion.mean(), terms.rates.mean(axis=0)
        return -layerwise_elbo(terms, betas).mean(), means

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def mean_grads(params: Params, betas: jax.Array, images: jax.Array, keys: jax.Array, step: jax.Array):
        part_size = config.micro_batch or pick_micro_batch(images.shape)
        num_parts = images.shape[0] // part_size
        parts = jax.tree.map(lambda a: a.reshape(num_parts, part_size, *a.shape[1:]), (images, keys))

        tree = unravel(params)

        def add(total: Params, part: tuple[jax.Array, jax.Array]):
            (loss, (distortion, rates)), grads = grad_fn(tree, betas, *part, step)
            return jax.tree.map(jnp.add, total, grads), (loss, distortion, rates)

        total, means = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, tree), parts)
        total = ravel(total) if isinstance(params, Raveled) else total
        # Parts are equal in size, so the mean of their means is the mean over the batch.
        return jax.tree.map(lambda g: g / num_parts, total), jax.tree.map(lambda m: m.mean(axis=0), means)

    def step_fn(state: TrainState, images: jax.Array) -> tuple[TrainState, StepMetrics]:
        per_device = images.shape[0]
        place = jnp.arange(per_device)
        if axis_name is not None:
            place = place + per_device * jax.lax.axis_index(axis_name)
        step_key = jax.random.fold_in(from_data(state.key), state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, place)
        betas = state.beta_state.betas if beta_range is None else warmup_share(state.beta_state)
        grads, (loss, distortion, rates) = mean_grads(state.params, betas, images, keys, state.step)
        if axis_name is not None:
            grads, loss, distortion, rates = jax.lax.pmean((grads, loss, distortion, rates), axis_name)
        metrics = StepMetrics(loss, distortion, rates, optax.tree.norm(grads))

        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        scale = control.learning_rate_scale(state.step)
        updates = jax.tree.map(lambda update: scale * update, updates)
        params = optax.apply_updates(state.params, updates)
        ema_params = state.ema_params
        if config.ema_decay:
            weight = _ema_weight(state.step, config.ema_decay)
            ema_params = optax.incremental_update(params, ema_params, weight)
        beta_state = control.update(state.beta_state, distortion, rates)
        new = TrainState(state.step + 1, state.key, params, opt_state, ema_params, beta_state)
        ok = is_finite(metrics)
        return jax.tree.map(lambda a, b: jnp.where(ok, a, b), new, state), metrics

    return step_fn


def _ema_weight(step: jax.Array, decay: float) -> jax.Array:
    """(1 − d) / (1 − dᵗ), the weight of the parameters after step t = step + 1 in their average.

    1 after the first step: the random ones that training starts from never count. Every step's weight in
    the average is then as in Adam's corrected moments.
    """
    share = -jnp.expm1((step + 1) * math.log(decay))
    return jnp.where(step == 0, 1.0, (1.0 - decay) / share)


def is_finite(metrics: StepMetrics) -> jax.Array:
    """Whether a step's loss and gradient are finite."""
    return jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm)


def pick_micro_batch(images_shape: tuple[int, ...]) -> int:
    """How many of `[B, ...]` images to take at a time on this platform; a divisor of B."""
    batch_size, pixels = images_shape[0], math.prod(images_shape[1:3])
    if jax.default_backend() != "cpu":
        return batch_size
    most = max(CPU_MICRO_BATCH, CPU_MICRO_BATCH_PIXELS // pixels)
    return max(size for size in range(1, min(most, batch_size) + 1) if batch_size % size == 0)
