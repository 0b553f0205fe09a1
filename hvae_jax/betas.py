"""How the betas move during training: pure `init` and `update`, in the manner of optax.

The training step weighs the rates with `state.betas` and then hands what it measured to `update`. A
control therefore lives inside the compiled step, in checkpoints, and per model of a packed stack.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hvae_jax.errors import RunError


class BetaState(NamedTuple):
    """Attributes:
    betas: `[L]`, the multipliers of the next step, z_1 first.
    step: int32 scalar, the number of updates so far.
    final_betas: `[L]`, where the control is heading.
    """

    betas: jax.Array
    step: jax.Array
    final_betas: jax.Array


class BetaControl(NamedTuple):
    """A rule for the betas.

    Attributes:
      init: betas `[L]` → BetaState.
      update: (state, mean distortion `[]`, mean rates `[L]`) → state, once per training step.
    """

    init: Callable[[jax.Array], BetaState]
    update: Callable[[BetaState, jax.Array, jax.Array], BetaState]


def constant() -> BetaControl:
    """Betas that stay as they are."""
    return linear_warmup(0)


def linear_warmup(num_steps: int) -> BetaControl:
    """All betas scaled by min(1, step / num_steps): the ladder's warm-up (Sønderby et al., 2016).

    Args:
      num_steps: steps until the betas are reached; 0 starts with them.
    """

    def scale(step: jax.Array) -> jax.Array:
        return jnp.minimum(1.0, step / num_steps) if num_steps else jnp.ones(())

    def init(betas: jax.Array) -> BetaState:
        step = jnp.zeros((), jnp.int32)
        betas = jnp.asarray(betas, jnp.float32)
        return BetaState(betas * scale(step), step, betas)

    def update(state: BetaState, distortion: jax.Array, rates: jax.Array) -> BetaState:
        del distortion, rates
        step = state.step + 1
        return BetaState(state.final_betas * scale(step), step, state.final_betas)

    return BetaControl(init, update)


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """What a config's `objective` group says.

    Attributes:
      betas: one multiplier per layer, z_1 first, finite and not negative.
      warmup_fraction: share of the training steps over which all betas rise linearly from 0.
    """

    betas: tuple[float, ...]
    warmup_fraction: float

    def __post_init__(self) -> None:
        betas = self.betas
        if not isinstance(betas, tuple) or not all(isinstance(b, int | float) for b in betas):
            raise RunError(f"config.objective.betas={betas!r} must be a tuple of numbers, one per layer")
        for layer, beta in enumerate(betas, start=1):
            if not math.isfinite(beta) or beta < 0:
                raise RunError(
                    f"config.objective.betas={betas}: beta_{layer}={beta} must be finite and not negative"
                )
        if not 0.0 <= self.warmup_fraction <= 1.0:
            raise RunError(f"config.objective.warmup_fraction={self.warmup_fraction} must lie in [0, 1]")

    def check_layers(self, num_layers: int) -> None:
        """Raises RunError unless there is one beta per layer."""
        if len(self.betas) != num_layers:
            raise RunError(
                f"config.objective.betas={self.betas} has {len(self.betas)} entries but the model has "
                f"{num_layers} layers (config.model.latent_shapes); give one beta per layer, z_1 first"
            )

    def make_control(self, num_steps: int) -> BetaControl:
        """The control of a run of `num_steps` training steps."""
        return linear_warmup(round(self.warmup_fraction * num_steps))
