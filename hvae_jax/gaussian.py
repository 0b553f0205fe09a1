"""Diagonal Gaussians: the posteriors and priors of all layers that nothing else is asked of."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hvae_jax.keys import per_image_keys

LOG_2PI = 1.8378770664093453


class Gaussian(NamedTuple):
    """A batch of Gaussians with diagonal covariance.

    Attributes:
      mean: `[B, ...]`.
      std: `[B, ...]`, the same shape, positive.

    Example:
      >>> q = Gaussian(mean=jnp.zeros((8, 20)), std=jnp.ones((8, 20)))
      >>> sample(jax.random.key(0), q).shape, log_prob(q, q.mean).shape
      ((8, 20), (8,))
    """

    mean: jax.Array
    std: jax.Array


def standard(like: Gaussian) -> Gaussian:
    """N(0, I) with the shape and dtype of `like`."""
    return Gaussian(jnp.zeros_like(like.mean), jnp.ones_like(like.std))


def sample(key: jax.Array, p: Gaussian, temperature: jax.Array | float = 1.0) -> jax.Array:
    """One reparameterised draw, mean + temperature · std · ε.

    Args:
      key: a typed key, or `[B]` of them, one per image.
      p: fields `[B, ...]`.
      temperature: scale of the standard deviation; 0 gives the mean.

    Returns:
      `[B, ...]`.
    """
    batch, event = p.mean.shape[0], p.mean.shape[1:]
    keys = per_image_keys(key, batch)
    # Drawn flat and then reshaped: the values are the same, and XLA compiles a threefry draw
    # of a 4-D shape twenty times slower.
    noise = jax.vmap(lambda k: jax.random.normal(k, (math.prod(event),), p.mean.dtype))(keys)
    return p.mean + temperature * p.std * noise.reshape(p.mean.shape)


def log_prob(p: Gaussian, z: jax.Array) -> jax.Array:
    """log p(z), summed over event axes.

    Args:
      p: fields `[B, ...]`.
      z: the same shape.

    Returns:
      `[B]`, nats.

    Raises:
      ValueError: shapes differ.
    """
    check_shapes(p=p.mean, p_std=p.std, z=z)
    return -sum_events(0.5 * (jnp.square(_divide(z - p.mean, p.std)) + LOG_2PI) + jnp.log(p.std))


def kl_divergence(q: Gaussian, p: Gaussian) -> jax.Array:
    """KL(q ‖ p) between diagonal Gaussians, summed over event axes.

    Args:
      q: posterior, fields `[B, ...]`.
      p: prior, the same shape.

    Returns:
      `[B]`, nats.

    Raises:
      ValueError: shapes differ.

    Example:
      >>> q = Gaussian(mean=jnp.array([[1.0, 0.0]]), std=jnp.array([[1.0, 2.0]]))
      >>> round(float(kl_divergence(q, standard(q))[0]), 4)  # ½ · 1² + ½ (2² − 1 − log 2²)
      1.3069
    """
    check_shapes(q=q.mean, q_std=q.std, p=p.mean, p_std=p.std)
    # In this form equal q and p give exactly zero, and nothing is formed that could under- or overflow.
    log_variance_ratio = 2.0 * (jnp.log(q.std) - jnp.log(p.std))
    distance = jnp.square(_divide(q.mean - p.mean, p.std))
    return sum_events(0.5 * (jnp.expm1(log_variance_ratio) - log_variance_ratio + distance))


def precision_weighted(proposal: Gaussian, prior: Gaussian) -> Gaussian:
    """The normalised product of two Gaussians, which the ladder posterior is.

    var = var^ · var_p / (var^ + var_p), mean = (mean^ · var_p + mean_p · var^) / (var^ + var_p)
    (Sønderby et al., Ladder Variational Autoencoders, 2016, eq. 10-11).

    Args:
      proposal: what the bottom-up pass proposes, (mean^, var^), fields `[B, ...]`.
      prior: the generative model's p(z_l | z_{>l}), the same shape.

    Returns:
      fields `[B, ...]`.

    Raises:
      ValueError: shapes differ.
    """
    check_shapes(proposal=proposal.mean, proposal_std=proposal.std, prior=prior.mean, prior_std=prior.std)
    # var_p / (var^ + var_p) = σ(log var_p − log var^): nothing is formed that could under- or overflow.
    log_ratio = 2.0 * (jnp.log(proposal.std) - jnp.log(prior.std))
    mean = proposal.mean * jax.nn.sigmoid(-log_ratio) + prior.mean * jax.nn.sigmoid(log_ratio)
    # The share of the smaller variance that the product keeps. No `abs`: where both are equal its derivative
    # is 1, and that of the larger of two ½ for each.
    share = jax.nn.sigmoid(jnp.maximum(log_ratio, -log_ratio))
    return Gaussian(mean, jnp.minimum(proposal.std, prior.std) * jnp.sqrt(share))


def _divide(x: jax.Array, std: jax.Array) -> jax.Array:
    """x / std, with −(x / std) / std for its derivative by std: JAX's own has 1 / std², which overflows."""
    fixed, log_std = jax.lax.stop_gradient(std), jnp.log(std)
    return x / fixed * jnp.exp(jax.lax.stop_gradient(log_std) - log_std)  # times exactly 1


def sum_events(x: jax.Array) -> jax.Array:
    """`[B, ...]` summed over all axes but the first, `[B]`."""
    return x.reshape(x.shape[0], -1).sum(axis=1)


def check_shapes(**arrays: jax.Array) -> None:
    """That all have the shape of the first: nothing is broadcast.

    Raises:
      ValueError: one has not; it names both, and their shapes.
    """
    (first, expected), *others = ((name, array.shape) for name, array in arrays.items())
    for name, shape in others:
        if shape != expected:
            raise ValueError(f"{first} has shape {expected} but {name} has shape {shape}")
