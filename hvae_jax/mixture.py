"""Mixtures of diagonal Gaussians: a top layer's prior with more to say than N(0, I)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hvae_jax import categorical, gaussian
from hvae_jax.categorical import Categorical
from hvae_jax.gaussian import Gaussian, check_shapes
from hvae_jax.keys import fold_in, per_image_keys


class Mixture(NamedTuple):
    """A batch of mixtures of M Gaussians with diagonal covariance.

    KL divergences of it are not known in closed form: its rates are Monte Carlo estimates.

    Attributes:
      logits: `[B, M]`, log-weights up to a constant.
      mean: `[B, M, ...]`, of each component.
      std: `[B, M, ...]`, positive.

    Example:
      >>> ones = jnp.ones((8, 2, 3))
      >>> p = Mixture(logits=jnp.zeros((8, 2)), mean=jnp.stack([-ones[:, 0], ones[:, 0]], 1), std=ones)
      >>> sample(jax.random.key(0), p).shape, log_prob(p, jnp.zeros((8, 3))).shape
      ((8, 3), (8,))
    """

    logits: jax.Array
    mean: jax.Array
    std: jax.Array


def sample(key: jax.Array, p: Mixture, temperature: jax.Array | float = 1.0) -> jax.Array:
    """One draw: a component, then from it. The draw has a gradient by means and stds, none by weights.

    Args:
      key: a typed key, or `[B]` of them, one per image.
      p: see `Mixture`.
      temperature: divides the log-weights and scales the standard deviations; 0 gives the `center`.

    Returns:
      `[B, ...]`.
    """
    keys = per_image_keys(key, p.logits.shape[0])
    chosen = categorical.sample(fold_in(keys, 0), Categorical(p.logits), temperature)
    return gaussian.sample(fold_in(keys, 1), _pick(p, chosen), temperature)


def center(p: Mixture) -> jax.Array:
    """The mean of the heaviest component, the first of equals, `[B, ...]`.

    Not the mixture's mean, which can lie between components, where no z ever is.
    """
    return _pick(p, categorical.mode(Categorical(p.logits))).mean


def moments(p: Mixture) -> Gaussian:
    """Mean and standard deviation of the whole mixture, fields `[B, ...]`."""
    weights = _along(categorical.probs(Categorical(p.logits)), p.mean)
    mean = (weights * p.mean).sum(axis=1)
    spread = jnp.square(p.std) + jnp.square(p.mean - jnp.broadcast_to(mean[:, None], p.mean.shape))
    return Gaussian(mean, jnp.sqrt((weights * spread).sum(axis=1)))


def log_prob(p: Mixture, z: jax.Array) -> jax.Array:
    """log p(z) = log Σ_m w_m N(z; mean_m, std_m²), over all event axes together.

    Args:
      p: see `Mixture`.
      z: `[B, ...]`.

    Returns:
      `[B]`, nats.

    Raises:
      ValueError: shapes differ.
    """
    batch, num, *event = p.mean.shape
    check_shapes(p=p.mean[:, 0], z=z)
    every = jnp.broadcast_to(z[:, None], p.mean.shape).reshape(-1, *event)
    flat = Gaussian(p.mean.reshape(-1, *event), p.std.reshape(-1, *event))
    of_component = gaussian.log_prob(flat, every).reshape(batch, num)
    return jax.nn.logsumexp(categorical.log_probs(Categorical(p.logits)) + of_component, axis=1)


def _pick(p: Mixture, chosen: jax.Array) -> Gaussian:
    """The component of each image that one-hot `[B, M]` says."""
    weights = _along(chosen, p.mean)
    return Gaussian((weights * p.mean).sum(axis=1), (weights * p.std).sum(axis=1))


def _along(weights: jax.Array, mean: jax.Array) -> jax.Array:
    """`[B, M]` as `[B, M, ...]`."""
    return jnp.broadcast_to(weights.reshape(*weights.shape, *[1] * (mean.ndim - 2)), mean.shape)
