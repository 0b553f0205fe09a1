"""Controls that solve for betas: at target rates, or at a target distortion.

What a control aims for lives in its state, not in the function: models with other targets share one
compiled step.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from hvae_jax.betas import BetaControl, BetaState, constant_scale

# (K_p, K_i) of the relative error, per training step: one setting for every model, data set and target.
# Found on digits and Fashion-MNIST, with other seeds and targets than the reported ones.
TARGET_GAINS = (1.5, 0.03)
# Steps over which rates are averaged before they are compared with their targets.
SMOOTHING_STEPS = 20
# A relative error beyond this counts as this in the sum: log betas then move by at most 0.006 a step,
# slow enough for a model that has learned little yet. The term of the change knows a wider limit.
MAX_INTEGRAL_ERROR, MAX_ERROR = 0.2, 1.0
# The control never slows below this share of its pace: betas must follow to the end.
MIN_PACE = 0.2
# Below this share of its learning rate a model hardly answers any more, and betas come to rest with it:
# summing up an error that they can no longer mend would only carry them off.
FADING_SCALE = 0.002
# (K_p, K_i) of the published ControlVAE: of the error's sigmoid, and of the error in nats, each step.
PI_GAINS = (0.01, 1e-4)


class TargetMemory(NamedTuple):
    """What `target_rates` and `target_distortion` remember.

    Attributes:
      targets: `[L]` rates, or `[1]` distortion, nats.
      lower, upper: `[L]`, the bounds of each beta; equal for a layer whose beta is fixed.
      distortion: `[]`, averaged over the last steps, nats.
      rates: `[L]`, likewise.
      errors: `[L]`, the relative errors at the last update.
      num_updates: int32 scalar; less than the steps done where a warm-up came first.
    """

    targets: jax.Array
    lower: jax.Array
    upper: jax.Array
    distortion: jax.Array
    rates: jax.Array
    errors: jax.Array
    num_updates: jax.Array


def target_rates(
    targets: Sequence[float],
    lower: Sequence[float],
    upper: Sequence[float],
    learning_rate_scale: Callable[[jax.Array], jax.Array] = constant_scale,
    gains: tuple[float, float] = TARGET_GAINS,
) -> BetaControl:
    """Solves for the betas at which every layer has the rate that was asked for.

    Dual ascent on log β_l. The loss D + Σ β_l (R_l − target_l) is a Lagrangian whose derivative with
    respect to β_l is R_l − target_l; here each log β_l follows the relative error R_l / target_l − 1,
    which makes one gain fit every target, and a term in the error's change damps it (as in Stooke,
    Achiam and Abbeel, 2020). Betas are clipped to their bounds, so nothing winds up beyond them.

    Args:
      targets: `[L]`, nats, positive.
      lower, upper: `[L]`, bounds of each beta. Equal bounds fix a beta; a lower bound at the beta that
        a layer has without a target makes the target an upper bound of the rate: where the rate stays
        below it by itself, beta rests at that bound.
      learning_rate_scale: step → factor of the learning rate. Rates drift less as it falls, which leaves
        time to hear them better: the control averages over more steps, as its square root falls, and sums
        up errors at a smaller gain, as its fourth root does, so that betas lag behind the less. Below
        FADING_SCALE betas come to rest.
      gains: (K_p, K_i), of the error's change and of the error itself; log β moves by both each step.

    Raises:
      ValueError: not as many targets, bounds and (in `init`) betas; a target that is not positive, bounds
        that cross, gains that are not positive, or (in `init`) a beta that cannot move.

    Example:
      >>> control = target_rates((5.0, 2.0), lower=(1e-3, 1e-3), upper=(1e3, 1e3))
      >>> state = control.init(jnp.ones(2))
      >>> for _ in range(1000):  # a model whose rates answer at once: R_l = 10 / β_l
      ...     state = control.update(state, distortion=jnp.array(90.0), rates=10.0 / state.betas)
      >>> state.betas.round(2).tolist()
      [2.0, 5.0]
    """

    _check_targets(targets, lower, upper)

    def relative_errors(memory: TargetMemory, betas: jax.Array) -> jax.Array:
        del betas
        return memory.rates / memory.targets - 1.0

    return _dual_ascent(relative_errors, targets, lower, upper, learning_rate_scale, gains)


def target_distortion(
    target: float,
    lower: Sequence[float],
    upper: Sequence[float],
    learning_rate_scale: Callable[[jax.Array], jax.Array] = constant_scale,
    gains: tuple[float, float] = TARGET_GAINS,
) -> BetaControl:
    """Solves for the common factor of all betas at which the distortion is the one asked for.

    The cheapest code of a given quality, in the manner of GECO (Rezende and Viola, 2018). The ratios of
    the betas stay as they start. The error is the distortion that is missing, relative to Σ β_l R_l:
    at an optimum dD = −Σ β_l dR_l, so it says by which share the rates must change.

    Args:
      target: nats.
      lower, upper: `[L]`, bounds of each beta.
      learning_rate_scale, gains: as in `target_rates`.

    Raises:
      ValueError: not as many bounds and (in `init`) betas; a target that is not finite, bounds that cross,
        gains that are not positive, or (in `init`) a beta that cannot move.

    Example:
      >>> control = target_distortion(80.0, lower=(1e-3, 1e-3), upper=(1e3, 1e3))
      >>> state = control.init(jnp.array([1.0, 2.0]))
      >>> state = control.update(state, distortion=jnp.array(95.0), rates=jnp.array([5.0, 10.0]))
      >>> bool(state.betas[0] < 1.0), float(state.betas[1] / state.betas[0])  # cheaper, ratio kept
      (True, 2.0)
    """

    if not np.isfinite(target):
        raise ValueError(f"target must be a finite distortion, got {target}")

    def relative_errors(memory: TargetMemory, betas: jax.Array) -> jax.Array:
        weighted = jnp.maximum((betas * memory.rates).sum(), 1e-6)
        return jnp.broadcast_to((memory.targets - memory.distortion) / weighted, betas.shape)

    return _dual_ascent(relative_errors, (target,), lower, upper, learning_rate_scale, gains)


def _dual_ascent(
    relative_errors: Callable[[TargetMemory, jax.Array], jax.Array],
    targets: Sequence[float],
    lower: Sequence[float],
    upper: Sequence[float],
    learning_rate_scale: Callable[[jax.Array], jax.Array],
    gains: tuple[float, float],
) -> BetaControl:
    """Moves log betas along `relative_errors(memory, betas) -> [L]`, positive where beta must rise."""
    _check_bounds(lower, upper)
    _check_gains(gains)
    proportional_gain, integral_gain = gains

    def init(betas: jax.Array) -> BetaState:
        betas = jnp.asarray(betas, jnp.float32)
        _check_lengths(betas=betas, lower=lower, upper=upper)
        _check_start(betas, lower, upper)
        bounds = jnp.asarray(lower, jnp.float32), jnp.asarray(upper, jnp.float32)
        goal = jnp.asarray(targets, jnp.float32)
        rates, errors = jnp.zeros_like(betas), jnp.zeros_like(betas)
        memory = TargetMemory(goal, *bounds, jnp.zeros(()), rates, errors, jnp.zeros((), jnp.int32))
        return BetaState(jnp.clip(betas, *bounds), jnp.zeros((), jnp.int32), memory)

    def update(state: BetaState, distortion: jax.Array, rates: jax.Array) -> BetaState:
        memory: TargetMemory = state.memory
        scale = learning_rate_scale(state.step)
        pace = jnp.maximum(jnp.sqrt(scale), MIN_PACE)
        # The plain mean of all steps at first, so that the zeros it starts from never count.
        weight = jnp.maximum(1.0 / (memory.num_updates + 1.0), pace / SMOOTHING_STEPS)
        memory = memory._replace(
            distortion=memory.distortion + weight * (distortion - memory.distortion),
            rates=memory.rates + weight * (rates - memory.rates),
        )
        errors = jnp.clip(relative_errors(memory, state.betas), -MAX_ERROR, MAX_ERROR)
        errors = jnp.where(memory.lower == memory.upper, 0.0, errors)  # a free layer may have no target
        change = jnp.where(memory.num_updates == 0, 0.0, errors - memory.errors)
        slow = integral_gain * jnp.sqrt(pace) * jnp.clip(errors, -MAX_INTEGRAL_ERROR, MAX_INTEGRAL_ERROR)
        move = (slow + proportional_gain * change) * jnp.minimum(1.0, scale / FADING_SCALE)
        betas = jnp.clip(state.betas * jnp.exp(move), memory.lower, memory.upper)
        memory = memory._replace(errors=errors, num_updates=memory.num_updates + 1)
        return BetaState(betas, state.step + 1, memory)

    return BetaControl(init, update, learning_rate_scale)


class PIMemory(NamedTuple):
    """What `pi_rates` remembers: `[L]` each, fields as in TargetMemory and the sum of the errors."""

    targets: jax.Array
    lower: jax.Array
    upper: jax.Array
    integral: jax.Array


def pi_rates(
    targets: Sequence[float],
    lower: Sequence[float],
    upper: Sequence[float],
    learning_rate_scale: Callable[[jax.Array], jax.Array] = constant_scale,
    gains: tuple[float, float] = PI_GAINS,
) -> BetaControl:
    """A PI controller per layer in the manner of ControlVAE: the baseline for `target_rates`.

    β = K_p / (1 + exp(e)) − K_i Σ e + lower with e = target − R in nats, clipped to its bounds; the sum
    pauses while β is at a bound and e pushes it further. Source: Shao et al., ControlVAE, 2020,
    algorithm 1, which has one rate, here one such controller per layer. It starts, as published, with
    an empty sum, whatever the betas that it is given; a layer with equal bounds keeps its beta.

    Args:
      targets, lower, upper: as in `target_rates`.
      learning_rate_scale: handed on; the gains are constant, as published.
      gains: (K_p, K_i), the published ones unless given.

    Raises:
      ValueError: as in `target_rates`.
    """
    _check_targets(targets, lower, upper)
    _check_gains(gains)
    proportional_gain, integral_gain = gains

    def output(memory: PIMemory, errors: jax.Array) -> jax.Array:
        return proportional_gain * jax.nn.sigmoid(-errors) + memory.integral + memory.lower

    def init(betas: jax.Array) -> BetaState:
        betas = jnp.asarray(betas, jnp.float32)
        _check_lengths(betas=betas, targets=targets)
        goal, low, high = (jnp.asarray(values, jnp.float32) for values in (targets, lower, upper))
        memory = PIMemory(goal, low, high, jnp.zeros_like(betas))
        betas = jnp.clip(output(memory, jnp.zeros_like(betas)), memory.lower, memory.upper)
        return BetaState(betas, jnp.zeros((), jnp.int32), memory)

    def update(state: BetaState, distortion: jax.Array, rates: jax.Array) -> BetaState:
        del distortion
        memory: PIMemory = state.memory
        errors = memory.targets - rates
        moved = memory._replace(integral=memory.integral - integral_gain * errors)
        betas = output(moved, errors)
        is_stuck = ((betas < memory.lower) & (errors > 0)) | ((betas > memory.upper) & (errors < 0))
        moved = moved._replace(integral=jnp.where(is_stuck, memory.integral, moved.integral))
        betas = jnp.clip(betas, memory.lower, memory.upper)
        return BetaState(betas, state.step + 1, moved)

    return BetaControl(init, update, learning_rate_scale)


def _check_targets(targets: Sequence[float], lower: Sequence[float], upper: Sequence[float]) -> None:
    """Where a beta is fixed, nobody looks at its target."""
    _check_lengths(targets=targets, lower=lower, upper=upper)
    _check_bounds(lower, upper)
    wanted, low, high = (np.asarray(values, np.float64) for values in (targets, lower, upper))
    if wanted.ndim != 1 or not (np.isfinite(wanted) & (wanted > 0.0))[low != high].all():
        raise ValueError(f"targets must be [L], finite and positive, got {targets}")


def _check_bounds(lower: Sequence[float], upper: Sequence[float]) -> None:
    _check_lengths(lower=lower, upper=upper)
    low, high = (np.asarray(values, np.float64) for values in (lower, upper))
    if low.ndim != 1 or not ((low >= 0.0) & (low <= high) & np.isfinite(low)).all():
        raise ValueError(f"bounds must be [L], 0 <= lower <= upper, got lower {lower} and upper {upper}")


def _check_gains(gains: tuple[float, float]) -> None:
    if len(gains) != 2 or not (np.isfinite(gains).all() and gains[0] >= 0.0 and gains[1] > 0.0):
        raise ValueError(f"gains must be (K_p, K_i), K_p at least 0 and K_i positive, got {gains}")


def _check_start(betas: jax.Array, lower: Sequence[float], upper: Sequence[float]) -> None:
    """Betas move by factors, so from 0 there is no way out; one that is fixed may be 0."""
    if isinstance(betas, Tracer):  # whose values are not known
        return
    start, is_fixed = np.asarray(betas), np.asarray(lower) == np.asarray(upper)
    if not (np.isfinite(start) & (start > 0.0) | is_fixed).all():
        raise ValueError(f"betas must start above 0 and be finite, got {start.tolist()}")


def _check_lengths(**values: Any) -> None:
    """Nothing is broadcast: every layer has an entry of its own in each of `values`."""
    lengths = {name: len(entries) for name, entries in values.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{number} {name}" for name, number in lengths.items())
        raise ValueError(f"{' and '.join(lengths)} need one entry per layer each, got {counts}")
