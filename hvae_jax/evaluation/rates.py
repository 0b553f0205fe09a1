"""Distortion, rates and the bounds on log p(x), over a whole split."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax.evaluation.metrics import GroupRate, Rates
from hvae_jax.evaluation.plain import Estimate, Estimates
from hvae_jax.groups import Groups
from hvae_jax.keys import fold_in
from hvae_jax.objective import LayerwiseTerms, bits_per_dim
from hvae_jax.training import Params, TermsFn

# (params, x [B, ...], keys [B]) -> log p(x, z) - log q(z|x) at one draw, [B]
LogWeightFn = Callable[[Params, jax.Array, jax.Array], jax.Array | Any]


class NamedGroups(NamedTuple):
    """Layers that a summary puts together, and what it calls them."""

    groups: Groups
    names: tuple[str, ...]


def make_repeated_terms(terms_fn: TermsFn, num_samples: int) -> TermsFn:
    """`terms_fn` averaged over `num_samples` posterior draws of each image."""

    def fn(params: Params, x: jax.Array, keys: jax.Array) -> LayerwiseTerms:
        terms = jax.lax.map(lambda i: terms_fn(params, x, fold_in(keys, i)), jnp.arange(num_samples))
        return jax.tree.map(lambda t: t.mean(axis=0), terms)

    return fn


def make_importance_bound(log_weight_fn: LogWeightFn, num_samples: int) -> LogWeightFn:
    """log (1/K) Σ_k w_k ≤ log p(x) in expectation, K = num_samples (Burda et al., 2016). `[B]`, nats."""

    def fn(params: Params, x: jax.Array, keys: jax.Array) -> jax.Array:
        log_weights = jax.lax.map(
            lambda i: log_weight_fn(params, x, fold_in(keys, i)), jnp.arange(num_samples)
        )
        return jax.nn.logsumexp(log_weights, axis=0) - math.log(num_samples)

    return fn


def summarize(
    terms: LayerwiseTerms,
    num_dims: int,
    grouped: NamedGroups | None = None,
    *,
    monte_carlo_rates: Sequence[int] = (),
) -> Rates:
    """Means over a split at β = 1, each with its standard error over the images.

    Args:
      terms: `[N]` and `[N, L]`, nats.
      num_dims: H · W · C.
      grouped: of the layers, for the rates of groups; None, or every layer alone, is without.
      monte_carlo_rates: layers whose rate has no closed form, to be named.
    """
    distortion = np.asarray(terms.distortion, np.float64)
    rates = np.asarray(terms.rates, np.float64)
    total = rates.sum(axis=1)
    negative_elbo = mean(distortion + total)
    return Rates(
        num_images=len(distortion),
        negative_elbo_nats=negative_elbo,
        distortion_nats=mean(distortion),
        total_rate_nats=mean(total),
        rates_nats=Estimates(tuple(rates.mean(axis=0).tolist()), tuple(standard_error(rates).tolist())),
        bits_per_dim=float(bits_per_dim(negative_elbo.value, num_dims)),
        groups=_group_rates(rates, grouped) if grouped and not grouped.groups.are_layers else None,
        monte_carlo_rates=tuple(monte_carlo_rates) or None,
    )


def _group_rates(rates: np.ndarray, grouped: NamedGroups) -> tuple[GroupRate, ...]:
    found = []
    sums = grouped.groups.sum(rates).T
    for name, (lowest, highest), nats in zip(grouped.names, grouped.groups.ranges, sums, strict=True):
        layers = {"lowest_layer": lowest, "highest_layer": highest}
        bits = mean(nats / math.log(2.0))
        found.append(GroupRate(name=name, **layers, rate_nats=mean(nats), rate_bits=bits))
    return tuple(found)


def mean(values: np.ndarray) -> Estimate:
    """Of values `[N]`."""
    values = np.asarray(values, np.float64)
    return Estimate(float(values.mean()), float(standard_error(values)))


def standard_error(values: np.ndarray) -> np.ndarray:
    """Of the mean over the leading axis."""
    return values.std(axis=0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0 * values[0]
