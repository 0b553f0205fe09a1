"""What one pass over the images gives of a model, from which every section of its evaluation is made."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax.evaluation.classifier import Classifier
from hvae_jax.evaluation.parts import Part
from hvae_jax.keys import fold_in
from hvae_jax.models.hierarchy import CategoricalCode
from hvae_jax.models.hvae import HVAE
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import Params
from hvae_jax.training.split_evaluator import SplitEvaluator


class Judged(NamedTuple):
    """What the classifier says.

    Attributes:
      features: of the images, `[N, F]`.
      probs: p(y|x) of reconstructions from each layer, `[N, K]` each.
    """

    features: Any
    probs: list[Any]


class Measured(NamedTuple):
    """A model's own of N images.

    Attributes:
      x: as the model sees them.
      terms: `[N]` and `[N, L]`, means over the draws.
      samples: of each layer, S draws, `[S, N, ...]`.
      means: of each layer's posterior, with those of the layers above it as latents.
      top_std: of q(z_L|x); None where it is categorical, of which the means are all probabilities.
      reconstructions: from each layer and those above it, in [0, 1].
      judged: None without a classifier.
    """

    x: Any
    terms: LayerwiseTerms
    samples: list[Any]
    means: list[Any]
    top_std: Any
    reconstructions: list[Any]
    judged: Judged | None


def make_measure_fn(model: HVAE, classifier: Classifier | None, num_draws: int) -> Any:
    """((params, params of the classifier), x, keys) → `Measured`, with draws `[N, S, ...]`."""
    apply: Any = model.apply

    def measure(both: tuple[Params, Params], x: jax.Array, keys: jax.Array) -> Measured:
        params, judge_params = both

        def draw(number: Any) -> tuple[LayerwiseTerms, list[jax.Array]]:
            draw_keys = fold_in(keys, number)
            codes = apply(params, x, draw_keys, method="encode")
            return apply(params, x, draw_keys), [code.sample for code in codes]

        terms, samples = jax.lax.map(draw, jnp.arange(num_draws))
        codes = apply(params, x, keys, 0.0, method="encode")
        pictures = [
            jnp.clip(apply(params, x, layer, method="reconstruct"), 0.0, 1.0)
            for layer in range(1, model.num_layers + 1)
        ]
        top, judged = codes[-1], None
        if classifier is not None:
            probs = [classifier(judge_params, picture)[1] for picture in pictures]
            judged = Judged(classifier(judge_params, x)[0], probs)
        return Measured(
            x=x,
            terms=jax.tree.map(lambda t: t.mean(axis=0), terms),
            samples=[jnp.moveaxis(sample, 0, 1) for sample in samples],
            means=[code.mean for code in codes],
            top_std=None if isinstance(top, CategoricalCode) else top.std,
            reconstructions=pictures,
            judged=judged,
        )

    return measure


def measure(
    measure_fn: Any,
    images: SplitEvaluator,
    params: tuple[Params, Params],
    key: jax.Array,
    parts: dict[str, Part],
) -> dict[str, Measured]:
    """What `measure_fn` gives of `images`, which are those of all parts one after the other, by part."""
    found: Measured = images.map_images(measure_fn, params, key)
    ends = np.cumsum([len(part.images) for part in parts.values()])
    out = {}
    for name, start, end in zip(parts, [0, *ends], ends, strict=False):
        part = jax.tree.map(lambda a, s=start, e=end: a[s:e], found)
        out[name] = part._replace(samples=[np.moveaxis(sample, 1, 0) for sample in part.samples])
    return out
