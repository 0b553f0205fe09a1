"""The objective: a distortion, one rate per layer, and a multiplier for each rate.

Nothing here knows of networks. Any model that can fill `LayerwiseTerms`, written in Flax, Haiku or
by hand, can be trained with `layerwise_elbo`.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


class LayerwiseTerms(NamedTuple):
    """The terms that the loss of a hierarchical VAE splits into, per image, in nats.

    Attributes:
      distortion: D = −E_q[log p(x|z)], `[B]`.
      rates: R_l = E_q KL[q(z_l|z_{>l}, x) ‖ p(z_l|z_{>l})], `[B, L]`, column l−1 is layer l:
        z_1, nearest the data, comes first and the top layer z_L last.

    Example:
      >>> rates = jnp.array([[5.0, 10.0], [7.0, 2.0]])  # of two images
      >>> terms = LayerwiseTerms(distortion=jnp.array([90.0, 80.0]), rates=rates)
      >>> terms.rates.mean(axis=0).tolist()  # R_1, R_2
      [6.0, 6.0]
    """

    distortion: jax.Array
    rates: jax.Array


def layerwise_elbo(terms: LayerwiseTerms, betas: ArrayLike | Sequence[float] | None = None) -> jax.Array:
    """−(D + β_1 R_1 + … + β_L R_L): to be maximised; with no `betas`, the ELBO itself.

    Source: Xiao and Bamler, Trading Information between Latents in Hierarchical Variational
    Autoencoders, 2023, eq. 7. Its derivative with respect to β_l is −R_l.

    Args:
      terms: distortion `[B]` and rates `[B, L]`, nats.
      betas: `[L]`, one multiplier per layer, z_1 first; or `[B, L]`, those of each image. None is all ones.

    Returns:
      `[B]`, nats, in float32 or wider whatever the terms and betas are in.

    Raises:
      ValueError: shapes that do not fit; nothing is broadcast.

    Example:
      >>> terms = LayerwiseTerms(distortion=jnp.array([90.0]), rates=jnp.array([[5.0, 10.0]]))
      >>> float(layerwise_elbo(terms)[0]), float(layerwise_elbo(terms, (2.0, 0.5))[0])
      (-105.0, -105.0)
    """
    distortion, rates = terms
    if rates.ndim != 2 or distortion.shape != rates.shape[:1]:
        raise ValueError(
            f"distortion must have shape [B] and rates [B, L], got {distortion.shape} and {rates.shape}"
        )
    # Never in less than float32: a beta of 0.2154 is 0 as an integer, and 0.2158 as a bfloat16.
    dtype = jnp.result_type(distortion, rates, jnp.float32)
    distortion, rates = jnp.asarray(distortion, dtype), jnp.asarray(rates, dtype)
    if betas is None:
        return -(distortion + rates.sum(axis=1))
    betas = jnp.asarray(betas, dtype)
    if betas.shape not in (rates.shape[1:], rates.shape):
        raise ValueError(
            f"betas must have shape [L] = {rates.shape[1:]}, or [B, L], to match rates {rates.shape}, got "
            f"{betas.shape}"
        )
    # No matrix product: accelerators make those of bfloat16 parts unless they are told otherwise.
    return -(distortion + (rates * (betas if betas.ndim == 2 else betas[None, :])).sum(axis=1))


def bits_per_dim(nats: ArrayLike, num_dims: int) -> jax.Array:
    """nats / (num_dims · ln 2), for a distortion, a rate or a negative ELBO alike.

    A likelihood that is a density on [0, 1] (the Gaussian) gives differential bits: add 8 to set
    them beside the bits per dimension of a model of 8-bit values.

    Args:
      nats: any shape, summed over the dimensions of one image.
      num_dims: H · W · C.

    Returns:
      The shape of `nats`.

    Raises:
      ValueError: num_dims is not positive.

    Example:
      >>> round(float(bits_per_dim(100.0, num_dims=28 * 28)), 4)
      0.184
    """
    if num_dims <= 0:
        raise ValueError(f"num_dims must be positive, got {num_dims}")
    return jnp.asarray(nats) / (num_dims * math.log(2.0))
