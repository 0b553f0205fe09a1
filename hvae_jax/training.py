"""Training: a pure step, and many of them in one compiled call. `loop` goes around it.

A model enters as `terms_fn(params, x, key) -> LayerwiseTerms`, so anything that can fill
`LayerwiseTerms` trains here. Noise and data order depend only on the seed, the step and an image's
place in the global batch: the number of devices does not change a run, and a resumed run equals an
uninterrupted one bit for bit.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from hvae_jax.betas import BetaControl, BetaState
from hvae_jax.devices import DEVICE_AXIS, every_device
from hvae_jax.errors import RunError
from hvae_jax.keys import fold_in, from_data, make_key, to_data
from hvae_jax.objective import LayerwiseTerms, layerwise_elbo
from hvae_jax.values import MAX_SIZE, is_integer, is_number, shorten

Params = Any
# (params, x [B, ...], keys [B]) -> terms. Flax types `apply` as returning more than it does here, hence Any.
TermsFn = Callable[[Params, jax.Array, jax.Array], LayerwiseTerms | Any]
# (keys [B], stored images [B, ...]) -> x [B, ...], for example data.make_preprocess.
PreprocessFn = Callable[[jax.Array, jax.Array], jax.Array]

# (what `Batches.take` gave, place of a step in it) -> that step's stored images [B, ...].
PickFn = Callable[[Any, jax.Array], jax.Array]

# Images per micro-batch on CPUs, where activations that stay in cache are worth more than a wide
# product: 32 was the fastest of 16 … 256 for the 32 × 32 and 28 × 28 reference models. Small images stay
# in cache by the dozen and what counts is the number of operations: 64 beat 32 and 16 for 8 × 8.
CPU_MICRO_BATCH, CPU_MICRO_BATCH_PIXELS = 32, 16 * 32 * 32


# A step's number is an int32 on the devices.
MAX_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What a config's `training` group says; every field is checked before any work starts.

    Attributes:
      seed: of parameters and noise.
      order_seed: of the order in which images are seen; runs that share it see the same batches.
      num_epochs: passes over the training split; the number of steps is ⌊num_epochs · N / batch_size⌋.
      batch_size: images per step over all devices.
      micro_batch: images that a device takes at a time; gradients are accumulated over as many such parts
        as its share of the batch has. 0 takes what is fastest on the platform.
      learning_rate, b1, b2, eps: of Adam.
      learning_rate_decay_fraction: share of the steps, at the end, over which the learning rate falls
        to 0, as the cube of the steps left; 0 keeps it constant.
      max_grad_norm: global norm to clip gradients to; 0 turns clipping off.
      ema_decay: of the averaged parameters that evaluation then uses, Σ_s d^{t−s} θ_s / Σ_s d^{t−s} over
        the parameters θ_s after steps s = 1 … t; 0 turns averaging off.
      log_every_steps: steps per compiled call and per logged interval.
      eval_every_steps: steps between passes over the validation split; a multiple of the former.
      checkpoint_every_steps: likewise.
      num_checkpoints: the newest that are kept.
    """

    seed: int
    order_seed: int
    num_epochs: float
    batch_size: int
    micro_batch: int
    learning_rate: float
    learning_rate_decay_fraction: float
    b1: float
    b2: float
    eps: float
    max_grad_norm: float
    ema_decay: float
    log_every_steps: int
    eval_every_steps: int
    checkpoint_every_steps: int
    num_checkpoints: int

    def __post_init__(self) -> None:
        for name in ("batch_size", "log_every_steps", "num_checkpoints"):
            is_size = is_integer(getattr(self, name), 1, MAX_SIZE)
            _require(self, name, is_size, f"an integer of at least 1 and at most {MAX_SIZE}")
        for name in ("eval_every_steps", "checkpoint_every_steps"):
            value = getattr(self, name)
            is_multiple = is_integer(value, 1) and value % self.log_every_steps == 0
            _require(self, name, is_multiple, f"a multiple of log_every_steps={self.log_every_steps}")
        for name in ("num_epochs", "learning_rate", "eps"):
            value = getattr(self, name)
            _require(self, name, is_number(value) and value > 0, "a number, positive and finite")
        for name in ("b1", "b2", "ema_decay"):
            value = getattr(self, name)
            _require(self, name, is_number(value) and 0.0 <= value < 1.0, "a number in [0, 1)")
        decay, norm = self.learning_rate_decay_fraction, self.max_grad_norm
        is_share = is_number(decay) and 0.0 <= decay <= 1.0
        _require(self, "learning_rate_decay_fraction", is_share, "a number in [0, 1]")
        is_norm = is_number(norm) and norm >= 0
        _require(self, "max_grad_norm", is_norm, "a number, finite and not negative; 0 turns clipping off")
        is_size = is_integer(self.micro_batch, 0, MAX_SIZE)
        _require(self, "micro_batch", is_size, "a number of images; 0 chooses for the platform")
        for name in ("seed", "order_seed"):
            is_seed = is_integer(getattr(self, name), 0, 2**32 - 1)
            _require(self, name, is_seed, "in [0, 2**32), an integer")

    def num_steps(self, num_images: int) -> int:
        """Optimiser steps of the whole run.

        Raises:
          RunError: there are none, or more than an int32 counts.
        """
        num_steps = int(self.num_epochs * num_images / self.batch_size + 1e-6)
        if num_steps > MAX_STEPS:
            raise RunError(
                f"config.training.num_epochs={self.num_epochs} over {num_images} images is {num_steps} steps "
                f"of config.training.batch_size={self.batch_size}, more than {MAX_STEPS} that can be "
                "counted; lower the one or raise the other"
            )
        if num_steps < 1:
            raise RunError(
                f"config.training.num_epochs={self.num_epochs} over {num_images} images is less than one "
                f"batch of config.training.batch_size={self.batch_size}; raise the one or lower the other"
            )
        return num_steps

    def check_devices(self, num_devices: int) -> None:
        """Raises RunError unless the devices divide the batch, and micro-batches a device's share."""
        if self.batch_size % num_devices:
            raise RunError(
                f"config.training.batch_size={self.batch_size} cannot be divided over {num_devices} devices; "
                f"use a multiple of {num_devices}"
            )
        share = self.batch_size // num_devices
        if self.micro_batch and share % self.micro_batch:
            raise RunError(
                f"config.training.micro_batch={self.micro_batch} does not divide the {share} images of a "
                f"batch that each device takes (config.training.batch_size={self.batch_size}, {num_devices} "
                "devices); use a divisor, or 0"
            )

    def make_optimizer(self) -> optax.GradientTransformation:
        """Adam, after clipping where that is on."""
        adam = optax.adam(self.learning_rate, b1=self.b1, b2=self.b2, eps=self.eps)
        if self.max_grad_norm:
            return optax.chain(optax.clip_by_global_norm(self.max_grad_norm), adam)
        return adam


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
        opt_state=config.make_optimizer().init(params),
        ema_params=params if config.ema_decay else {},
        beta_state=control.init(jnp.asarray(betas, jnp.float32)),
    )


def make_train_step(
    terms_fn: TermsFn,
    preprocess_fn: PreprocessFn,
    control: BetaControl,
    config: TrainingConfig,
    axis_name: str | None = None,
) -> StepFn:
    """The pure step `(state, images) -> (state, metrics)`.

    Minimises the batch mean of D + Σ β_l R_l. A step whose loss or gradient is not finite leaves
    the state as it was: the caller sees it in the metrics.

    Args:
      terms_fn: (params, x `[B, ...]`, keys `[B]`) → terms.
      preprocess_fn: (keys `[B]`, stored images `[B, ...]`) → x.
      control: moves the betas, and scales the learning rate.
      config: optimiser, averaging, and the images per gradient evaluation.
      axis_name: of the devices that share a batch; None on one.
    """
    tx = config.make_optimizer()

    def loss_fn(params: Params, betas: jax.Array, images: jax.Array, keys: jax.Array):
        x = preprocess_fn(fold_in(keys, 0), images)
        terms = terms_fn(params, x, fold_in(keys, 1))
        means = terms.distortion.mean(), terms.rates.mean(axis=0)
        return -layerwise_elbo(terms, betas).mean(), means

    grad_fn = jax.value_and_grad(loss_fn, has_aux=True)

    def mean_grads(params: Params, betas: jax.Array, images: jax.Array, keys: jax.Array):
        part_size = config.micro_batch or pick_micro_batch(images.shape)
        num_parts = images.shape[0] // part_size
        parts = jax.tree.map(lambda a: a.reshape(num_parts, part_size, *a.shape[1:]), (images, keys))

        def add(total: Params, part: tuple[jax.Array, jax.Array]):
            (loss, (distortion, rates)), grads = grad_fn(params, betas, *part)
            return jax.tree.map(jnp.add, total, grads), (loss, distortion, rates)

        total, means = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), parts)
        # Parts are equal in size, so the mean of their means is the mean over the batch.
        return jax.tree.map(lambda g: g / num_parts, total), jax.tree.map(lambda m: m.mean(axis=0), means)

    def step_fn(state: TrainState, images: jax.Array) -> tuple[TrainState, StepMetrics]:
        per_device = images.shape[0]
        place = jnp.arange(per_device)
        if axis_name is not None:
            place = place + per_device * jax.lax.axis_index(axis_name)
        step_key = jax.random.fold_in(from_data(state.key), state.step)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, place)
        grads, (loss, distortion, rates) = mean_grads(state.params, state.beta_state.betas, images, keys)
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


def zero_totals(num_layers: int) -> StepMetrics:
    """What `make_interval` adds to, before the first step of a logged interval."""
    return StepMetrics(jnp.zeros(()), jnp.zeros(()), jnp.zeros(num_layers), jnp.zeros(()))


def make_interval(
    step_fn: StepFn, pick_fn: PickFn
) -> Callable[..., tuple[TrainState, StepMetrics, jax.Array]]:
    """Many steps as one compiled loop: `(state, totals, taken, num_steps) -> (state, totals, done)`.

    Args:
      step_fn: from `make_train_step`.
      pick_fn: (taken, i) → the images of the i-th step, for example `batches.pick_resident`.

    Args of the result:
      totals: sums of the metrics over the steps of the logged interval that other calls did. It goes
        through the loop, so that a mean does not depend on how the steps are dealt to calls.
      taken: the images of the steps, as `pick_fn` reads it.
      num_steps: of this call. Not static, so a short call compiles nothing new.

    It stops at the first step that is not finite; `done` counts the steps before it, and `totals` grow
    by those alone.
    """

    def interval(
        state: TrainState, totals: StepMetrics, taken: Any, num_steps: jax.Array
    ) -> tuple[TrainState, StepMetrics, jax.Array]:
        def body(carry):
            state, totals, done, _ = carry
            state, metrics = step_fn(state, pick_fn(taken, done))
            ok = is_finite(metrics)
            totals = jax.tree.map(lambda total, m: total + jnp.where(ok, m, 0.0), totals, metrics)
            return state, totals, done + ok, ok

        carry = (state, totals, jnp.zeros((), jnp.int32), jnp.array(True))
        state, totals, done, _ = jax.lax.while_loop(lambda c: (c[2] < num_steps) & c[3], body, carry)
        return state, totals, done

    return interval


def compile_interval(
    terms_fn: TermsFn,
    preprocess_fn: PreprocessFn,
    control: BetaControl,
    config: TrainingConfig,
    pick_fn: PickFn,
) -> Callable[..., tuple[TrainState, StepMetrics, jax.Array]]:
    """`make_interval` over all devices of all processes, which share each batch; the state is donated.

    Every argument of the result but `num_steps` leads with the devices of this process.
    """
    step_fn = make_train_step(terms_fn, preprocess_fn, control, config, axis_name=DEVICE_AXIS)
    interval = make_interval(step_fn, pick_fn)
    return jax.pmap(
        interval,
        axis_name=DEVICE_AXIS,
        in_axes=(0, 0, 0, None),
        donate_argnums=(0, 1),
        devices=every_device(),
    )


def _require(config: TrainingConfig, name: str, ok: bool, allowed: str) -> None:
    if not ok:
        raise RunError(f"config.training.{name}={shorten(getattr(config, name))} must be {allowed}")
