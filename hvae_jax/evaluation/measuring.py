"""What one pass over the images gives of a model, from which every section of its evaluation is made."""

import math
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
      samples: of each layer that is read, S draws, `[S, N, ...]`; of a deep network, the top layer of each
        side of its maps.
      means: of their posteriors, with those of the layers above as latents.
      top_std: of q(z_L|x).
      reconstructions: from each layer and those above it, in [0, 1]; of a deep network, from the lowest
        layer of each side.
      judged: None without a classifier.
    """

    x: Any
    terms: LayerwiseTerms
    samples: list[Any]
    means: list[Any]
    top_std: Any
    reconstructions: list[Any]
    judged: Judged | None


def read_layers(model: HVAE) -> tuple[list[int], list[int]]:
    """The layers that images are reconstructed from, and those whose latents are read.

    Every layer, but of a deep network the lowest and the highest of each side of its maps: the layers in
    between would cost as much as these each, and differ little from them.
    """
    lowest, highest = zip(*model.config.groups, strict=True)
    return list(lowest), list(highest)


def num_read_latents(model: HVAE) -> int:
    """Numbers in one image's latents that are read."""
    return sum(math.prod(model.config.latent_shapes[layer - 1]) for layer in read_layers(model)[1])


def make_measure_fn(model: HVAE, classifier: Classifier | None, num_draws: int) -> Any:
    """((params, params of the classifier), x, keys) → `Measured`, with draws `[N, S, ...]`."""
    apply: Any = model.apply
    from_layers, top_layers = read_layers(model)

    def measure(both: tuple[Params, Params], x: jax.Array, keys: jax.Array) -> Measured:
        params, judge_params = both

        def draw(number: Any) -> tuple[LayerwiseTerms, list[jax.Array]]:
            draw_keys = fold_in(keys, number)
            codes = apply(params, x, draw_keys, method="encode")
            return apply(params, x, draw_keys), [codes[layer - 1].sample for layer in top_layers]

        terms, samples = jax.lax.map(draw, jnp.arange(num_draws))
        codes = apply(params, x, keys, 0.0, method="encode")
        pictures = [
            jnp.clip(apply(params, x, layer, method="reconstruct"), 0.0, 1.0) for layer in from_layers
        ]
        top, judged = codes[-1], None
        if classifier is not None:
            probs = [classifier(judge_params, picture)[1] for picture in pictures]
            judged = Judged(classifier(judge_params, x)[0], probs)
        return Measured(
            x=x,
            terms=jax.tree.map(lambda t: t.mean(axis=0), terms),
            samples=[jnp.moveaxis(sample, 0, 1) for sample in samples],
            means=[codes[layer - 1].mean for layer in top_layers],
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
