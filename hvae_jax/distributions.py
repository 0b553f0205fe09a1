"""What the engine asks of a posterior or prior, whichever distribution it is.

The one place that tells them apart: a further kind is a branch in each of these functions. z is `[B, ...]`;
of a categorical distribution it is one-hot along its last axis.
"""

import jax

from hvae_jax import categorical, gaussian, mixture
from hvae_jax.categorical import Categorical, Relaxation
from hvae_jax.gaussian import Gaussian
from hvae_jax.mixture import Mixture

Distribution = Gaussian | Categorical | Mixture


def shape(p: Distribution) -> tuple[int, ...]:
    """Of a z, `[B, ...]`."""
    if isinstance(p, Categorical):
        return p.logits.shape
    if isinstance(p, Mixture):
        return p.mean.shape[0], *p.mean.shape[2:]
    return p.mean.shape


def center(p: Distribution) -> jax.Array:
    """z at temperature 0, `[B, ...]`.

    A Gaussian's mean, each categorical variable's most probable value, the mean of a mixture's heaviest
    component.
    """
    if isinstance(p, Categorical):
        return categorical.mode(p)
    return mixture.center(p) if isinstance(p, Mixture) else p.mean


def sample(
    key: jax.Array,
    p: Distribution,
    temperature: jax.Array | float = 1.0,
    relaxation: Relaxation | None = None,
) -> jax.Array:
    """One draw, `[B, ...]`.

    Args:
      key: a typed key, or `[B]` of them, one per image.
      p: what to draw from.
      temperature: scales standard deviations and divides log-probabilities; 0 gives `center`.
      relaxation: through which a categorical draw has a gradient, at temperature 1; others have one anyway.
    """
    if isinstance(p, Categorical):
        if relaxation is not None:
            return categorical.relaxed_sample(key, p, relaxation)
        return categorical.sample(key, p, temperature)
    if isinstance(p, Mixture):
        return mixture.sample(key, p, temperature)
    return gaussian.sample(key, p, temperature)


def log_prob(p: Distribution, z: jax.Array) -> jax.Array:
    """log p(z), `[B]`, nats, summed over event axes.

    Raises:
      ValueError: shapes differ.
    """
    if isinstance(p, Categorical):
        return categorical.log_prob(p, z)
    return mixture.log_prob(p, z) if isinstance(p, Mixture) else gaussian.log_prob(p, z)


def rate(q: Distribution, p: Distribution, z: jax.Array) -> jax.Array:
    """KL(q ‖ p) where it has a closed form, else the Monte Carlo estimate log q(z) − log p(z).

    Args:
      q: posterior.
      p: prior.
      z: drawn from q, for the estimate, whose mean is the KL divergence; a single one can be negative.

    Returns:
      `[B]`, nats. Exactly 0 where q is p.

    Raises:
      ValueError: shapes differ, or one is of discrete and the other of continuous variables.
    """
    if isinstance(q, Categorical) != isinstance(p, Categorical):
        raise ValueError(f"no rate of a posterior {type(q).__name__} under a prior {type(p).__name__}")
    if isinstance(q, Categorical) and isinstance(p, Categorical):
        return categorical.kl_divergence(q, p)
    if isinstance(q, Gaussian) and isinstance(p, Gaussian):
        return gaussian.kl_divergence(q, p)
    return log_prob(q, z) - log_prob(p, z)


def mean(p: Distribution) -> jax.Array:
    """E[z], `[B, ...]`: of a one-hot z the probabilities, of a mixture over all its components."""
    if isinstance(p, Categorical):
        return categorical.probs(p)
    return mixture.moments(p).mean if isinstance(p, Mixture) else p.mean
