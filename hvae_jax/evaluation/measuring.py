"""What passes over the images give of them, and of a model: all that its evaluation is made from.

What is a number for each image is computed in the pass; of arrays as large as images or latents, only what is
read of them later comes back. A pass does for its images what they are there for and nothing else: those that
probes are fitted on are encoded, never reconstructed.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax import bounds, distributions
from hvae_jax.categorical import Categorical
from hvae_jax.evaluation import similarity
from hvae_jax.evaluation.classifier import Classifier
from hvae_jax.evaluation.parts import Part
from hvae_jax.gaussian import Gaussian
from hvae_jax.keys import fold_in
from hvae_jax.models.hierarchy import CategoricalCode, Code
from hvae_jax.models.hvae import HVAE
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import Params

# Of an image's fingerprint, as 32-bit numbers: two of 10⁵ images have the same with a chance of 10⁻²⁹.
NUM_HASHES = 4
# Of all images together, beyond which more say nothing: the error of a mean over images is almost all their
# own spread.
ENOUGH_DRAWS = 10_000
Name = TypeVar("Name", bound=str)


class Judged(NamedTuple):
    """What the classifier says of reconstructions from one layer, of the images at `Part.read`.

    Attributes:
      predicted: the class, `[R]`.
      entropy: of p(y|x), nats, `[R]`.
    """

    predicted: Any
    entropy: Any


class Reconstructed(NamedTuple):
    """Reconstructions from one layer and those above it.

    Attributes:
      psnr_db, ssim: `[N]`.
    """

    psnr_db: Any
    ssim: Any


class Top(NamedTuple):
    """The top layer.

    Attributes:
      samples: S draws, `[N, S, ...]`.
      mean, std: of q(z_L|x), `[N, ...]`; of a categorical layer the probabilities, and None.
    """

    samples: Any
    mean: Any
    std: Any


class Read(NamedTuple):
    """Latents of the images of a part that are at `Part.read`.

    Attributes:
      samples: of each layer, S draws, `[R, S, ...]`; of a deep network, the top layer of each side.
      means: of their posteriors, with those of the layers above as latents, `[R, ...]`.
      judged: reconstructions from the layers of `Measured.reconstructed`; empty without a classifier.
    """

    samples: list[Any]
    means: list[Any]
    judged: list[Judged]


class Measured(NamedTuple):
    """A model's own of the N images of a split.

    Attributes:
      terms: `[N]` and `[N, L]`, means over the draws.
      reconstructed: from each layer; of a deep network, from the lowest layer of each side of its maps.
      top: of all images.
      pictures: reconstructions from the same layers, uint8, of the images at `Part.shown`.
    """

    terms: LayerwiseTerms
    reconstructed: list[Reconstructed]
    top: Top
    pictures: list[Any]


class Real(NamedTuple):
    """The images of a split, whatever the model.

    Attributes:
      entropy: of the images as a population of their own, nats.
      features: the classifier's, `[N, F]`; None without one.
      x: as the models see those at `Part.read`.
    """

    entropy: float
    features: Any
    x: Any


def read_layers(model: HVAE) -> tuple[list[int], list[int]]:
    """The layers that images are reconstructed from, and those whose latents are read.

    Every layer, but of a deep network the lowest and the highest of each side of its maps: the layers in
    between would cost as much as these each, and differ little from them.
    """
    lowest, highest = zip(*model.config.groups, strict=True)
    return list(lowest), list(highest)


def num_kept_latents(model: HVAE, parts: Mapping[str, Part]) -> int:
    """Numbers in one draw of all latents that come back: z_L of both splits, all layers where read."""
    sizes = [math.prod(model.config.latent_shapes[layer - 1]) for layer in read_layers(model)[1]]
    num_images = sum(len(part.images) for name, part in parts.items() if name != "train")
    num_read = sum(len(part.read) for part in parts.values())
    return num_images * sizes[-1] + num_read * sum(sizes)


def enough_draws(num_images: int, most: int) -> int:
    """Of each image, for means over images."""
    return min(most, max(1, ENOUGH_DRAWS // num_images))


def make_measure_fn(model: HVAE, num_draws: int, num_top_draws: int) -> Any:
    """((params, anything), x, keys) → ((terms, reconstructed, top), pictures).

    Args:
      num_draws, num_top_draws: of each image, for its terms, and for `Top`.
    """
    apply: Any = model.apply
    from_layers, _ = read_layers(model)

    def measure(both: tuple[Params, Any], x: jax.Array, keys: jax.Array) -> Any:
        params, _ = both
        terms = jax.lax.map(lambda number: apply(params, x, fold_in(keys, number)), jnp.arange(num_draws))
        codes = apply(params, x, keys, 0.0, method="encode")
        reconstructed, pictures = [], []
        for lowest in from_layers:
            picture = _reconstruct(apply, params, keys, codes, lowest)
            reconstructed.append(Reconstructed(similarity.psnr(x, picture), similarity.ssim(x, picture)))
            pictures.append(jnp.round(picture * 255).astype(jnp.uint8))
        top = jax.lax.map(
            lambda number: _draw_top(codes[-1], fold_in(keys, num_draws + number)), jnp.arange(num_top_draws)
        )
        std = None if isinstance(codes[-1], CategoricalCode) else codes[-1].std
        found = Top(jnp.moveaxis(top, 0, 1), codes[-1].mean, std)
        return (jax.tree.map(lambda t: t.mean(axis=0), terms), reconstructed, found), pictures

    return measure


def make_read_fn(model: HVAE, classifier: Classifier | None, num_draws: int) -> Any:
    """((params, params of the classifier), x, keys) → `Read`.

    Of a small network's reconstructions a classifier is most of the work: it judges those of fewer images.
    """
    apply: Any = model.apply
    from_layers, top_layers = read_layers(model)

    def read(both: tuple[Params, Params], x: jax.Array, keys: jax.Array) -> Read:
        params, judge_params = both

        def draw(number: Any) -> list[jax.Array]:
            codes = apply(params, x, fold_in(keys, number), method="encode")
            return [codes[layer - 1].sample for layer in top_layers]

        samples = [jnp.moveaxis(z, 0, 1) for z in jax.lax.map(draw, jnp.arange(num_draws))]
        codes = apply(params, x, keys, 0.0, method="encode")
        judged = []
        if classifier is not None:
            for lowest in from_layers:
                picture = _reconstruct(apply, params, keys, codes, lowest)
                judged.append(_judge(classifier(judge_params, picture)[1]))
        return Read(samples, [codes[layer - 1].mean for layer in top_layers], judged)

    return read


def _reconstruct(apply: Any, params: Params, keys: jax.Array, codes: Any, lowest: int) -> jax.Array:
    """What `reconstruct` gives, clipped: the means from this layer up, and the prior's below."""
    above = {layer: codes[layer - 1].sample for layer in range(lowest, len(codes) + 1)}
    return jnp.clip(apply(params, keys, len(keys), 0.0, above, method="sample"), 0.0, 1.0)


def split_measured(found: Any, parts: Mapping[Name, Part]) -> dict[Name, Measured]:
    """What `measure_fn` gave of the images of all parts, one after the other, by part."""
    of_all, pictures = found
    by_part = zip(
        _cut(of_all, [len(part.images) for part in parts.values()]),
        _cut(pictures, [len(part.shown) for part in parts.values()]),
        strict=True,
    )
    measured = {}
    for name, ((terms, reconstructed, top), shown) in zip(parts, by_part, strict=True):
        measured[name] = Measured(terms, reconstructed, top, shown)
    return measured


def split_read(found: Read, parts: Mapping[Name, Part]) -> dict[Name, Read]:
    """What `read_fn` gave of what is read of all parts, one after the other, by part."""
    return dict(zip(parts, _cut(found, [len(part.read) for part in parts.values()]), strict=True))


def rows_of(parts: Mapping[Name, Part], places: Callable[[Part], np.ndarray]) -> np.ndarray:
    """Where places of each part stand among the images of all parts, one after the other."""
    starts = np.cumsum([0, *(len(part.images) for part in parts.values())])
    return np.concatenate([start + places(part) for start, part in zip(starts, parts.values(), strict=False)])


def make_look_fn(
    classifier: Classifier | None,
) -> Callable[[tuple[Params, Params], jax.Array, jax.Array], Any]:
    """((params, params of the classifier), x, keys) → ((fingerprints, features), x)."""

    def look(both: tuple[Params, Params], x: jax.Array, _: jax.Array) -> Any:
        features = None if classifier is None else classifier(both[1], x)[0]
        return (_fingerprints(x), features), x

    return look


def split_real(found: Any, parts: Mapping[Name, Part]) -> dict[Name, Real]:
    """What `look_fn` gave of the images of all parts, one after the other, by part."""
    (hashes, features), x = found
    sizes = [len(part.images) for part in parts.values()]
    of_all = _cut((hashes, features), sizes)
    of_read = _cut(x, [len(part.read) for part in parts.values()])
    reals = {}
    for name, (part_hashes, part_features), x in zip(parts, of_all, of_read, strict=True):
        _, counts = np.unique(part_hashes, axis=0, return_counts=True)
        reals[name] = Real(bounds.label_entropy(counts), part_features, x)
    return reals


def _draw_top(code: Code | CategoricalCode, keys: jax.Array) -> jax.Array:
    if isinstance(code, CategoricalCode):
        return distributions.sample(keys, Categorical(jnp.log(code.probs)))
    return distributions.sample(keys, Gaussian(code.mean, code.std))


def _judge(probs: jax.Array) -> Judged:
    logs = jnp.log(jnp.maximum(probs, jnp.finfo(probs.dtype).tiny))
    return Judged(probs.argmax(axis=1).astype(jnp.int32), -(probs * logs).sum(axis=1))


def _fingerprints(x: jax.Array) -> jax.Array:
    """`[B, NUM_HASHES]` of images: equal for equal ones, and by chance alone for others."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32) + 0.0, jnp.uint32)  # −0 is 0
    words = bits.reshape(len(x), -1)
    draws = np.random.default_rng(0).integers(0, 2**32, (NUM_HASHES, 2, words.shape[1]), np.uint64)
    factors = jnp.asarray(draws.astype(np.uint32))
    # Multiplied and mixed word by word, then summed modulo 2³².
    hashes = []
    for first, second in factors:
        mixed = (words ^ first[None]) * (second[None] | np.uint32(1))
        mixed = (mixed ^ (mixed >> 15)) * (first[None] | np.uint32(1))
        hashes.append(((mixed ^ (mixed >> 13)) * (second[None] | np.uint32(1))).sum(axis=1, dtype=jnp.uint32))
    return jnp.stack(hashes, axis=1)


def _cut(tree: Any, sizes: Sequence[int]) -> list[Any]:
    ends = np.cumsum(sizes)
    pairs = zip([0, *ends], ends, strict=False)
    return [jax.tree.map(lambda a, s=start, e=end: a[s:e], tree) for start, end in pairs]
