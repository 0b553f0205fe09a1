"""How the betas move during training: pure `init` and `update`, in the manner of optax.

The training step weighs the rates with `state.betas` and then hands what it measured to `update`. A
control therefore lives inside the compiled step, in checkpoints, and per model of a packed stack. Here
are the betas that nobody solves for, constant or warmed up; `controls` has those that find them.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax.groups import Groups


class BetaState(NamedTuple):
    """Where the betas are, and all that moving them needs.

    Attributes:
      betas: `[L]`, the multipliers of the next step, z_1 first.
      step: int32 scalar, the number of updates so far.
      memory: a control's own arrays, its targets among them; an empty dict where it has none. That of a
        warm-up is the `BetaState` of the control that it leads to, that of `share_betas` the `BetaState`
        of the groups.

    Example:
      >>> state = constant().init(jnp.array([0.5, 2.0]))
      >>> int(state.step), state.betas.tolist(), state.memory
      (0, [0.5, 2.0], {})
    """

    betas: jax.Array
    step: jax.Array
    memory: Any


def constant_scale(step: jax.Array) -> jax.Array:
    """1 at every step."""
    return jnp.ones_like(step, jnp.float32)


class BetaControl(NamedTuple):
    """A rule for the betas, and for the step size that goes with them.

    Attributes:
      init: betas `[L]` → BetaState.
      update: (state, mean distortion `[]`, mean rates `[L]`) → state, once per training step.
      learning_rate_scale: step → factor of the learning rate.

    Example:
      A rule of your own, here one that doubles every beta at step 100, fills in the two functions:

      >>> def update(state, distortion, rates):
      ...     betas = jnp.where(state.step == 99, 2.0 * state.betas, state.betas)
      ...     return state._replace(betas=betas, step=state.step + 1)
      >>> control = BetaControl(init=constant().init, update=update)
      >>> state = control.init(jnp.ones(2))
      >>> for _ in range(100):
      ...     state = control.update(state, jnp.array(90.0), jnp.array([5.0, 10.0]))
      >>> state.betas.tolist()
      [2.0, 2.0]
    """

    init: Callable[[jax.Array], BetaState]
    update: Callable[[BetaState, jax.Array, jax.Array], BetaState]
    learning_rate_scale: Callable[[jax.Array], jax.Array] = constant_scale


def cubic_decay(start_step: int, end_step: int) -> Callable[[jax.Array], jax.Array]:
    """1 until `start_step`, then the cube of the share of steps left: it comes to 0 at `end_step`.

    Steps of size η make the rates wander, by an amount that goes as √η and over a time that goes as 1/η.
    Along a straight line η is still large when the last of that wandering freezes in; along a cube the
    rates come to rest less than half as far from where the betas would have them.
    """

    def scale(step: jax.Array) -> jax.Array:
        return jnp.clip((end_step - step) / max(end_step - start_step, 1), 0.0, 1.0) ** 3

    return scale


def constant(learning_rate_scale: Callable[[jax.Array], jax.Array] = constant_scale) -> BetaControl:
    """Betas that stay as they are; `learning_rate_scale` is handed on.

    Example:
      >>> constant().init(jnp.array([0.5, 2.0])).betas.tolist()
      [0.5, 2.0]
    """

    def init(betas: jax.Array) -> BetaState:
        betas = jnp.asarray(betas, jnp.float32)
        return BetaState(betas, jnp.zeros((), jnp.int32), {})

    def update(state: BetaState, distortion: jax.Array, rates: jax.Array) -> BetaState:
        del distortion, rates
        return state._replace(step=state.step + 1)

    return BetaControl(init, update, learning_rate_scale)


def linear_warmup(num_steps: int, control: BetaControl | None = None) -> BetaControl:
    """All betas scaled by min(1, step / num_steps): the ladder's warm-up (Sønderby et al., 2016).

    Args:
      num_steps: steps until the betas are reached; 0 is `control` itself.
      control: what moves the betas once they are reached, from those that its `init` gives; None leaves
        them there. It rests until then: rates under betas that are still too low say nothing of where the
        betas should be. Its first `update` is that of step `num_steps`, and the state is then its own.

    Raises:
      ValueError: no number of steps, or `control` warms up itself.

    Example:
      >>> control = linear_warmup(4)
      >>> state = control.init(jnp.array([1.0, 2.0]))
      >>> for _ in range(3):
      ...     state = control.update(state, jnp.array(90.0), jnp.array([5.0, 10.0]))
      >>> state.betas.tolist()  # three quarters of the way
      [0.75, 1.5]
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int | np.integer) or num_steps < 0:
        raise ValueError(f"linear_warmup needs a number of steps, 0 or more, got {num_steps!r}")
    control = control or constant()
    if isinstance(control, _Warmup):
        raise ValueError("linear_warmup of a control that warms up itself: add their steps, or leave one out")
    if not num_steps:
        return control

    def init(betas: jax.Array) -> BetaState:
        inner = control.init(betas)
        return BetaState(jnp.zeros_like(inner.betas), jnp.zeros_like(inner.step), inner)

    def update(state: BetaState, distortion: jax.Array, rates: jax.Array) -> BetaState:
        step, inner = state.step + 1, state.memory
        moved, resting = control.update(inner, distortion, rates), inner._replace(step=step)
        is_over = state.step >= num_steps
        inner = jax.tree.map(lambda new, old: jnp.where(is_over, new, old), moved, resting)
        return BetaState(inner.betas * jnp.minimum(1.0, step / num_steps), step, inner)

    return _Warmup(init, update, control.learning_rate_scale)


def warmup_share(state: BetaState) -> jax.Array:
    """How far a warm-up is, `[L]`: the betas over those that it leads to; 1 where there is none."""
    if isinstance(state.memory, BetaState):
        return state.betas / state.memory.betas
    return jnp.ones_like(state.betas)


class _Warmup(BetaControl):
    """A control that `linear_warmup` made, to be known as such."""


def share_betas(groups: Groups, control: BetaControl) -> BetaControl:
    """One beta for all layers of a group: training goes by layers, `control` by groups.

    Args:
      groups: of the layers; where each is alone, the result is `control` itself.
      control: sees betas `[G]`, and the sum of the rates of a group as its rate.

    Returns:
      A control whose `init` takes betas `[G]`, and whose state has betas `[L]`.

    Example:
      >>> control = share_betas(Groups(((1, 2), (3, 3))), linear_warmup(2))
      >>> state = control.init(jnp.array([3.0, 1.0]))
      >>> state = control.update(state, jnp.array(90.0), jnp.array([5.0, 10.0, 1.0]))
      >>> state.betas.tolist(), state.memory.betas.tolist()  # half the way
      ([1.5, 1.5, 0.5], [1.5, 0.5])
    """
    if groups.are_layers:
        return control

    def of_layers(inner: BetaState) -> BetaState:
        return BetaState(groups.expand(inner.betas), inner.step, inner)

    def init(betas: jax.Array) -> BetaState:
        return of_layers(control.init(betas))

    def update(state: BetaState, distortion: jax.Array, rates: jax.Array) -> BetaState:
        return of_layers(control.update(state.memory, distortion, groups.sum(rates)))

    return control._replace(init=init, update=update)


class FreeMemory(NamedTuple):
    """What `free_rates` remembers: the free nats `[G]`, and the state of the control that it wraps."""

    free: jax.Array
    control: BetaState


def free_rates(free_nats: Sequence[float], control: BetaControl | None = None) -> BetaControl:
    """Free bits: training minimises D + Σ_l β_l max(E_batch[R_l], λ_l). Kingma et al., 2016, appendix C.

    The gradient is that of D + Σ β_l R_l over the layers whose mean rate is above λ_l. Which those are, the
    batch of the *preceding* step says. Of the same batch it would be known only after all of its images were
    through the networks, before the first of their gradients: a second pass where a batch is taken in
    micro-batches. So it costs nothing, is the same for any micro-batch and any number of devices, and does
    not hang on the noise of the gradient that it lets through or stops; rates hardly move in one step. The
    first step weighs all rates. `state.betas` are what the rates of the next step are weighed with: 0 where a
    rate is free. The loss that is logged is D + Σ betas_l R_l, without the constants β_l λ_l.

    Args:
      free_nats: λ, nats, one for each beta (layer or group).
      control: moves the betas where they count; None leaves them.

    Raises:
      ValueError: a λ that is negative or not finite; in `init`, not one for each beta.

    Example:
      >>> control = free_rates((0.5, 0.5))
      >>> state = control.init(jnp.array([1.0, 2.0]))
      >>> control.update(state, jnp.array(90.0), jnp.array([0.4, 0.6])).betas.tolist()
      [0.0, 2.0]
    """
    values = np.asarray(free_nats, np.float64)
    if values.ndim != 1 or not (np.isfinite(values) & (values >= 0.0)).all():
        raise ValueError(f"free_nats must be [L], finite and not negative, got {free_nats}")
    control = control or constant()

    def init(betas: jax.Array) -> BetaState:
        inner = control.init(betas)
        if inner.betas.shape != values.shape:
            raise ValueError(f"free_nats {values.shape} and betas {inner.betas.shape} must be as many")
        return BetaState(inner.betas, inner.step, FreeMemory(jnp.asarray(values, jnp.float32), inner))

    def update(state: BetaState, distortion: jax.Array, rates: jax.Array) -> BetaState:
        memory: FreeMemory = state.memory
        inner = control.update(memory.control, distortion, rates)
        betas = jnp.where(rates > memory.free, inner.betas, 0.0)
        return BetaState(betas, inner.step, memory._replace(control=inner))

    return control._replace(init=init, update=update)
