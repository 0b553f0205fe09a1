"""How the betas move during training: pure `init` and `update`, in the manner of optax.

The training step weighs the rates with `state.betas` and then hands what it measured to `update`. A
control therefore lives inside the compiled step, in checkpoints, and per model of a packed stack. Here
are the betas that nobody solves for, constant or warmed up; `controls` has those that find them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class BetaState(NamedTuple):
    """Where the betas are, and all that moving them needs.

    Attributes:
      betas: `[L]`, the multipliers of the next step, z_1 first.
      step: int32 scalar, the number of updates so far.
      memory: a control's own arrays, its targets among them; an empty dict where it has none. That of a
        warm-up is the `BetaState` of the control that it leads to.

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
