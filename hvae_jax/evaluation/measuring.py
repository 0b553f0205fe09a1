"""What a pass over the images gives of them, and of a model: all that its evaluation is made from.

What is a number for each image is computed in the pass; of arrays as large as images or latents, only what is
read of them later comes back.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax import bounds
from hvae_jax.evaluation import similarity
from hvae_jax.evaluation.classifier import Classifier
from hvae_jax.evaluation.parts import Part
from hvae_jax.keys import fold_in
from hvae_jax.models.hierarchy import CategoricalCode
from hvae_jax.models.hvae import HVAE
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.training import Params

# Of an image's fingerprint, as 32-bit numbers: two of 10⁵ images have the same with a chance of 10⁻²⁹.
NUM_HASHES = 4


class Judged(NamedTuple):
    """What the classifier says of reconstructions from one layer.

    Attributes:
      predicted: the class, `[N]`.
      entropy: of p(y|x), nats, `[N]`.
    """

    predicted: Any
    entropy: Any


class Reconstructed(NamedTuple):
    """Reconstructions from one layer and those above it.

    Attributes:
      psnr_db, ssim: `[N]`.
      judged: None without a classifier.
    """

    psnr_db: Any
    ssim: Any
    judged: Judged | None


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
    """What is read of the latents themselves, and shown.

    Attributes:
      samples: of each layer, S draws, `[R, S, ...]`; of a deep network, the top layer of each side.
      means: of their posteriors, with those of the layers above as latents, `[R, ...]`.
      pictures: reconstructions from each layer, uint8.
    """

    samples: list[Any]
    means: list[Any]
    pictures: list[Any]


class Measured(NamedTuple):
    """A model's own of the N images of a part.

    Attributes:
      terms: `[N]` and `[N, L]`, means over the draws.
      reconstructed: from each layer; of a deep network, from the lowest layer of each side of its maps.
      top: of all images.
      read: of the images at `Part.read` alone.
    """

    terms: LayerwiseTerms
    reconstructed: list[Reconstructed]
    top: Top
    read: Read


class Real(NamedTuple):
    """The images of a part, whatever the model.

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
    """Numbers in one draw of all latents that come back: z_L of every image, other layers where read."""
    sizes = [math.prod(model.config.latent_shapes[layer - 1]) for layer in read_layers(model)[1]]
    num_images = sum(len(part.images) for part in parts.values())
    num_read = sum(len(part.read) for part in parts.values())
    return num_images * sizes[-1] + num_read * sum(sizes)


def make_measure_fn(model: HVAE, classifier: Classifier | None, num_draws: int) -> Any:
    """((params, params of the classifier), x, keys) → ((terms, reconstructed, top), `Read`)."""
    apply: Any = model.apply
    from_layers, top_layers = read_layers(model)

    def measure(both: tuple[Params, Params], x: jax.Array, keys: jax.Array) -> Any:
        params, judge_params = both

        def draw(number: Any) -> tuple[LayerwiseTerms, list[jax.Array]]:
            terms, draws = apply(params, x, fold_in(keys, number), method="terms_and_draws")
            return terms, [draws[layer - 1] for layer in top_layers]

        terms, samples = jax.lax.map(draw, jnp.arange(num_draws))
        samples = [jnp.moveaxis(sample, 0, 1) for sample in samples]
        codes = apply(params, x, keys, 0.0, method="encode")
        reconstructed, pictures = [], []
        for lowest in from_layers:
            # What `reconstruct` gives: the means from this layer up, and the prior's below.
            above = {layer: codes[layer - 1].sample for layer in range(lowest, len(codes) + 1)}
            picture = apply(params, keys, x.shape[0], 0.0, above, method="sample")
            picture = jnp.clip(picture, 0.0, 1.0)
            judged = None
            if classifier is not None:
                judged = _judge(classifier(judge_params, picture)[1])
            found = similarity.psnr(x, picture), similarity.ssim(x, picture)
            reconstructed.append(Reconstructed(*found, judged))
            pictures.append(jnp.round(picture * 255).astype(jnp.uint8))
        top = codes[-1]
        std = None if isinstance(top, CategoricalCode) else top.std
        means = [codes[layer - 1].mean for layer in top_layers]
        of_all = jax.tree.map(lambda t: t.mean(axis=0), terms), reconstructed, Top(samples[-1], top.mean, std)
        return of_all, Read(samples, means, pictures)

    return measure


def split_measured(found: Any, parts: Mapping[str, Part]) -> dict[str, Measured]:
    """What `measure_fn` gave of the images of all parts, one after the other, by part."""
    of_all, read = found
    by_part = zip(
        _cut(of_all, [len(part.images) for part in parts.values()]),
        _cut(read, [len(part.read) for part in parts.values()]),
        strict=True,
    )
    measured = {}
    for name, ((terms, reconstructed, top), read) in zip(parts, by_part, strict=True):
        measured[name] = Measured(terms, reconstructed, top, read)
    return measured


def read_rows(parts: Mapping[str, Part]) -> np.ndarray:
    """Places of what is read among the images of all parts, one after the other."""
    starts = np.cumsum([0, *(len(part.images) for part in parts.values())])
    return np.concatenate([start + part.read for start, part in zip(starts, parts.values(), strict=False)])


def make_look_fn(
    classifier: Classifier | None,
) -> Callable[[tuple[Params, Params], jax.Array, jax.Array], Any]:
    """((params, params of the classifier), x, keys) → ((fingerprints, features), x)."""

    def look(both: tuple[Params, Params], x: jax.Array, _: jax.Array) -> Any:
        features = None if classifier is None else classifier(both[1], x)[0]
        return (_fingerprints(x), features), x

    return look


def split_real(found: Any, parts: Mapping[str, Part]) -> dict[str, Real]:
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
