"""Samples of a model: the first of them as pictures, and of all what the classifier says."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hvae_jax.evaluation.classifier import Classifier
from hvae_jax.evaluation.sizes import NUM_COMPARED
from hvae_jax.models.hvae import HVAE
from hvae_jax.training import Params

BATCH = 250


class Drawn(NamedTuple):
    """Samples of a model.

    Attributes:
      images: the first of them, `NUM_COMPARED` and as many more as fill a batch, in [0, 1].
      judged: features `[N, F]` and p(y|x) `[N, K]` of all; empty without a classifier.
    """

    images: Any
    judged: tuple[Any, ...]


def make_sample_fn(
    model: HVAE, classifier: Classifier | None, num_samples: int, is_discrete: bool
) -> Callable[[tuple[Params, Params], jax.Array], Drawn]:
    """((params, params of the classifier), key) → samples, a few more of them than are asked for.

    Args:
      model: the network, without parameters.
      classifier: judges them; None where there are no classes.
      num_samples: N.
      is_discrete: whether pixels are drawn from p(x|z), or are E[x|z].
    """
    apply: Any = model.apply
    method = "draw" if is_discrete else "sample"
    num_batches, num_shown = (-(-num // BATCH) for num in (num_samples, min(num_samples, NUM_COMPARED)))

    def sample(both: tuple[Params, Params], key: jax.Array) -> Drawn:
        params, judge_params = both

        def one_batch(key: jax.Array) -> Drawn:
            images = jnp.clip(apply(params, key, BATCH, method=method), 0.0, 1.0)
            return Drawn(images, classifier(judge_params, images) if classifier else ())

        keys = jax.random.split(key, num_batches)
        images, judged = jax.lax.map(one_batch, keys[:num_shown])
        if num_batches > num_shown:
            others = jax.lax.map(lambda key: one_batch(key).judged, keys[num_shown:])
            judged = jax.tree.map(lambda *parts: jnp.concatenate(parts), judged, others)
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), Drawn(images, judged))

    return sample


def cut(drawn: Drawn, num_samples: int) -> Drawn:
    """Those that were asked for."""
    return jax.tree.map(lambda a: a[:num_samples], drawn)
