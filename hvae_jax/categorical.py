"""Variables with K values each, and the relaxation through which gradients reach their probabilities."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hvae_jax.gaussian import check_shapes, sum_events
from hvae_jax.keys import per_image_keys


class Categorical(NamedTuple):
    """A batch of independent variables with K values each. A z of it is one-hot, `[B, ..., K]`.

    Attributes:
      logits: `[B, ..., K]`, log-probabilities of each variable's values up to a constant of its own.

    Example:
      >>> q = Categorical(logits=jnp.zeros((8, 10)))  # one variable with ten values, an image each
      >>> z = sample(jax.random.key(0), q)
      >>> z.shape, bool((z.sum(axis=1) == 1).all()), round(float(log_prob(q, z)[0]), 4)  # −log 10
      ((8, 10), True, -2.3026)
    """

    logits: jax.Array


class Relaxation(NamedTuple):
    """That training draws from the Gumbel-softmax distribution in place of a categorical one.

    Source: Jang, Gu and Poole, Categorical Reparameterization with Gumbel-Softmax, 2017.

    Attributes:
      temperature: τ > 0; the lower, the nearer to one-hot, and the larger the gradients' variance.
      is_hard: whether a draw is one-hot, with the gradient of the soft one (straight-through).

    Example:
      >>> q, key = Categorical(jnp.zeros((1, 3))), jax.random.key(0)
      >>> soft, hard = (relaxed_sample(key, q, Relaxation(0.5, is_hard)) for is_hard in (False, True))
      >>> bool(soft.max() < 1.0), hard.tolist() == sample(key, q).tolist()
      (True, True)
    """

    temperature: jax.Array | float
    is_hard: bool = False


def anneal(epoch: ArrayLike, rate: float, lowest: float) -> jax.Array:
    """τ = max(exp(−rate · epoch), lowest), of a `Relaxation`."""
    return jnp.maximum(jnp.exp(-rate * jnp.asarray(epoch, jnp.float32)), lowest)


def uniform(shape: tuple[int, ...]) -> Categorical:
    """All values alike, `[B, ..., K]`."""
    return Categorical(jnp.zeros(shape))


def probs(p: Categorical) -> jax.Array:
    """`[B, ..., K]`, which sum to 1 over the last axis."""
    return jax.nn.softmax(p.logits, axis=-1)


def log_probs(p: Categorical) -> jax.Array:
    """Logarithms of `probs`."""
    return jax.nn.log_softmax(p.logits, axis=-1)


def mode(p: Categorical) -> jax.Array:
    """Each variable's most probable value, the first of equals, one-hot `[B, ..., K]`."""
    return _one_hot(p.logits)


def sample(key: jax.Array, p: Categorical, temperature: jax.Array | float = 1.0) -> jax.Array:
    """One exact draw, argmax of logits + temperature · Gumbel noise; it has no gradient.

    Args:
      key: a typed key, or `[B]` of them, one per image.
      p: logits `[B, ..., K]`.
      temperature: divides the logits; 0 gives the mode.

    Returns:
      one-hot, `[B, ..., K]`.
    """
    return _one_hot(p.logits + temperature * _gumbel(key, p))


def relaxed_sample(key: jax.Array, p: Categorical, relaxation: Relaxation) -> jax.Array:
    """One draw of the Gumbel-softmax distribution, softmax((log p + Gumbel noise) / τ), with its gradient.

    Args:
      key: as in `sample`; the largest entry of a draw is where that of the same key has its 1.
      p: logits `[B, ..., K]`.
      relaxation: τ, and whether the draw is one-hot.

    Returns:
      `[B, ..., K]`, 0 or more, which sum to 1 over the last axis.
    """
    noisy = log_probs(p) + _gumbel(key, p)
    soft = jax.nn.softmax(noisy / relaxation.temperature, axis=-1)
    if not relaxation.is_hard:
        return soft
    return _one_hot(noisy) + (soft - jax.lax.stop_gradient(soft))  # plus exactly 0


def log_prob(p: Categorical, z: jax.Array) -> jax.Array:
    """log p(z) of one-hot z, summed over variables.

    Args:
      p: logits `[B, ..., K]`.
      z: the same shape.

    Returns:
      `[B]`, nats.

    Raises:
      ValueError: shapes differ.
    """
    check_shapes(p=p.logits, z=z)
    return sum_events(z * log_probs(p))


def kl_divergence(q: Categorical, p: Categorical) -> jax.Array:
    """KL(q ‖ p) = Σ q log(q / p), summed over variables; log K − H[q] each where p is uniform.

    Args:
      q: posterior, logits `[B, ..., K]`.
      p: prior, the same shape.

    Returns:
      `[B]`, nats.

    Raises:
      ValueError: shapes differ.

    Example:
      >>> q = Categorical(jnp.log(jnp.array([[0.5, 0.5, 1e-30, 1e-30]])))
      >>> round(float(kl_divergence(q, uniform((1, 4)))[0]), 4)  # log 4 − log 2
      0.6931
    """
    check_shapes(q=q.logits, p=p.logits)
    return sum_events(probs(q) * (log_probs(q) - log_probs(p)))


def _gumbel(key: jax.Array, p: Categorical) -> jax.Array:
    shape = p.logits.shape
    keys = per_image_keys(key, shape[0])
    # Flat, for XLA's sake: see gaussian.sample.
    size, dtype = math.prod(shape[1:]), p.logits.dtype
    return jax.vmap(lambda k: jax.random.gumbel(k, (size,), dtype))(keys).reshape(shape)


def _one_hot(scores: jax.Array) -> jax.Array:
    return jax.nn.one_hot(scores.argmax(axis=-1), scores.shape[-1], dtype=scores.dtype)
