"""The optimiser of a run: Adam or AdamW, warmed up, clipped, without the steps of large gradients."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class SkipState(NamedTuple):
    """What `skip_above` knows.

    Attributes:
      num_skipped: steps left out so far; int32 scalar.
      num_in_a_row: how many of the last steps, without a break, were left out; int32 scalar.
      inner: the state of the optimiser that it wraps, of the steps that were taken.
    """

    num_skipped: jax.Array
    num_in_a_row: jax.Array
    inner: Any


def make_optimizer(
    *,
    learning_rate: float,
    b1: float,
    b2: float,
    eps: float,
    max_grad_norm: float,
    weight_decay: float,
    warmup_steps: int,
    skip_grad_norm: float,
) -> optax.GradientTransformation:
    """Adam with what is not 0 of the rest; arguments as in `TrainingConfig`."""

    def warm_up(step: Any) -> jax.Array:
        return learning_rate * jnp.minimum((step + 1) / warmup_steps, 1.0)

    rate = warm_up if warmup_steps else learning_rate
    if weight_decay:
        tx = optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    else:
        tx = optax.adam(rate, b1=b1, b2=b2, eps=eps)
    if max_grad_norm:
        tx = optax.chain(optax.clip_by_global_norm(max_grad_norm), tx)
    return skip_above(tx, skip_grad_norm) if skip_grad_norm else tx


def skip_above(tx: optax.GradientTransformation, max_norm: float) -> optax.GradientTransformation:
    """`tx` that leaves out the steps whose gradient has a norm above `max_norm`, and counts them.

    Source: Child, Very Deep VAEs, 2021, section 3.2.
    """

    def init(params: optax.Params) -> SkipState:
        zero = jnp.zeros((), jnp.int32)
        return SkipState(zero, zero, tx.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, SkipState]:
        grads = updates
        ok = optax.tree.norm(grads) <= max_norm
        updates, inner = tx.update(grads, state.inner, params)
        updates = jax.tree.map(lambda leaf: jnp.where(ok, leaf, jnp.zeros_like(leaf)), updates)
        inner = jax.tree.map(lambda new, old: jnp.where(ok, new, old), inner, state.inner)
        skipped = 1 - ok.astype(jnp.int32)
        in_a_row = skipped * (state.num_in_a_row + 1)
        return updates, SkipState(state.num_skipped + skipped, in_a_row, inner)

    return optax.GradientTransformation(init, update)
