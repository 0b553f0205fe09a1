"""Betas of a conditioned model: the range that it trains for, how an image draws its own, marked ones."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax.errors import RunError
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.values import are_numbers, shorten


class BetaRange(NamedTuple):
    """What a conditioned model is trained for.

    Attributes:
      lows, highs: the smallest and the largest beta of each layer, z_1 first.
      marked: vectors at which the log has distortion and rates; the first is the one that the model is
        evaluated at.
    """

    lows: tuple[float, ...]
    highs: tuple[float, ...]
    marked: tuple[tuple[float, ...], ...]

    def draw(self, keys: jax.Array, opened: jax.Array) -> jax.Array:
        """Betas `[B, L]` of images with keys `[B]`: log β_l independent and uniform over the range.

        Args:
          keys: of the images.
          opened: `[L]`, the share of its range, from its low end up, that a layer above z_1 draws from; 1
            after a warm-up. What is cheap at first is used, and stays; a layer that begins dear is lost for
            good. (With z_1 dear at first besides, z_1 was used less for long: worse at every marked beta.)
        """
        lows = jnp.log(jnp.asarray(self.lows))
        widths = jnp.log(jnp.asarray(self.highs)) - lows
        widths = widths * opened.at[0].set(1.0)

        def of_image(key: jax.Array) -> jax.Array:
            return jnp.exp(lows + widths * jax.random.uniform(key, lows.shape))

        return jax.vmap(of_image)(keys)

    def paid(self, betas: jax.Array, opened: jax.Array) -> jax.Array:
        """What rates cost in the loss of images that drew betas `[B, L]`, for `opened` as in `draw`.

        During a warm-up a layer above z_1 costs less than the networks are told, from nothing on: a layer
        that is of no use in the first few hundred steps never is.
        """
        return betas * jnp.broadcast_to(opened.at[0].set(1.0), betas.shape)

    def means(self) -> np.ndarray:
        """E[β_l] of a draw, `[L]`."""
        lows, highs = np.asarray(self.lows), np.asarray(self.highs)
        return (highs - lows) / np.log(highs / lows)

    def make_terms(self, terms_fn: Callable[..., Any]) -> Callable[..., LayerwiseTerms]:
        """(params, x, keys) → terms at every marked vector, `[B, K]` and `[B, K, L]`, with the same draws.

        Args:
          terms_fn: (params, x, keys, betas=) → terms.
        """

        def fn(params: Any, x: jax.Array, keys: jax.Array) -> LayerwiseTerms:
            terms = jax.lax.map(
                lambda betas: terms_fn(params, x, keys, betas=betas), jnp.asarray(self.marked)
            )
            return LayerwiseTerms(*(jnp.moveaxis(array, 0, 1) for array in terms))

        return fn

    def split(self, terms: LayerwiseTerms) -> tuple[LayerwiseTerms, dict[str, Any]]:
        """What `make_terms` gives of a split: terms at the first vector, and the log's means at the others.

        Returns:
          terms `[N]` and `[N, L]`; "marked_betas", "marked_distortion_nats" and "marked_rates_nats" as lists.
        """
        distortion, rates = (np.asarray(array, np.float64).mean(axis=0)[1:] for array in terms)
        fields = {
            "marked_betas": [list(betas) for betas in self.marked[1:]],
            "marked_distortion_nats": distortion.tolist(),
            "marked_rates_nats": rates.tolist(),
        }
        return LayerwiseTerms(terms.distortion[:, 0], terms.rates[:, 0]), fields


def read(fields: Mapping[str, Any], num_layers: int) -> BetaRange | None:
    """What a config's `objective` group says of them; None where there is no range.

    Args:
      fields: `beta_range`, `marked_betas`, `betas`, `control`.
      num_layers: L.

    Raises:
      RunError: no ranges, a control that moves the betas, or betas out of the range.
    """
    given, marked, betas = fields["beta_range"], fields["marked_betas"], fields["betas"]

    def refuse(name: str, reason: str) -> None:
        raise RunError(f"config.objective.{name}={shorten(fields[name])} {reason}")

    if not given:
        if given != ():
            refuse("beta_range", "must be a tuple; () where there is none")
        if marked:
            refuse("marked_betas", "has no effect without config.objective.beta_range")
        return None
    is_one = are_numbers(given, 2)
    pairs: Any = (given,) * num_layers if is_one else given
    is_pairs = isinstance(pairs, tuple) and all(are_numbers(p, 2) and 0.0 < p[0] < p[1] for p in pairs)
    if not is_pairs or len(pairs) != num_layers:
        refuse(
            "beta_range",
            f"must be two numbers, 0 < smallest < largest, or such a pair for each of {num_layers} layers, "
            "z_1 first",
        )
    if fields["control"] != "constant":
        refuse("control", "moves the betas, which images draw where there is a config.objective.beta_range")
    for name in ("beta_groups", "free_nats"):
        if fields.get(name):
            refuse(name, "cannot be with config.objective.beta_range: every layer draws a beta of its own")
    lows, highs = (tuple(map(float, ends)) for ends in zip(*pairs, strict=True))
    if not isinstance(marked, tuple) or not all(map(are_numbers, marked)):
        refuse("marked_betas", "must be a tuple of beta vectors, as ((0.1, 1.0), (1.0, 0.1))")
    for name, vectors in (("betas", (betas,)), ("marked_betas", marked)):
        for vector in vectors:
            bounds = zip(lows, vector, highs, strict=False)
            if len(vector) != num_layers or not all(low <= beta <= high for low, beta, high in bounds):
                refuse(
                    name,
                    f"must have one beta for each of {num_layers} layers, within config.objective.beta_range="
                    f"{given}, for which the model is trained; {vector} has not",
                )
    return BetaRange(lows, highs, (tuple(map(float, betas)), *(marked or _corners(lows, highs))))


def _corners(lows: Sequence[float], highs: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """All layers at an end of the range or in its middle; and each layer alone at its ends."""
    middle = tuple(math.sqrt(low * high) for low, high in zip(lows, highs, strict=True))
    vectors = [tuple(lows), middle, tuple(highs)]
    for layer in range(len(lows) if len(lows) > 1 else 0):
        vectors += [(*middle[:layer], ends[layer], *middle[layer + 1 :]) for ends in (lows, highs)]
    return tuple(vectors)
