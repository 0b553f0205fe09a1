"""How much a latent tells of the label and of the image: I_q(y; z) and I_q(x; z), by exact mixtures.

The images at hand are taken as the whole population. Then q(z) and q(z|y) are finite mixtures whose
densities are known, so the only error is that of the draws of z. In particular an image's own component
belongs in the mixtures: leaving it out would estimate something else. Within this population

    I_q(y; z_L) ≤ I_q(x; z_L) ≤ E[R_L]

hold exactly, and so does the accuracy bound of `bounds.max_accuracy` for a classifier that was fitted on
other images. As an estimate for *new* images both are too high, the more so the fewer images there are
and the more dimensions z has: with N narrow posteriors that do not overlap, I_q(x; z) = log N and
I_q(y; z) = H[p(y)], whatever the labels mean.

A single categorical variable takes few values: the information is then a sum over them, without draws.
Several are drawn, as Gaussians are.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from hvae_jax import bounds, data
from hvae_jax.evaluation.measuring import Measured
from hvae_jax.evaluation.metrics import Information, LabelInformation, Population
from hvae_jax.evaluation.parts import Part
from hvae_jax.evaluation.plain import Estimate
from hvae_jax.evaluation.rates import standard_error

# Rows of the N × N table of log-densities at a time: with 10,000 images, 4 MB that stay in cache.
TILE_NUMBERS = 1_000_000
# Of that table, beyond which more say little: the error of 4,000 is about 0.02 nats.
ENOUGH_ROWS = 4_000
# Dimensions per unrolled pass over a tile.
DIMS_PER_PASS = 32


class LatentInformation(NamedTuple):
    """Estimates in nats; a standard error is that of the draws of z, and rather too large than too small.

    Attributes:
      label: I_q(y; z).
      label_standard_error: of it.
      image: I_q(x; z).
      image_standard_error: of it.
    """

    label: float
    label_standard_error: float
    image: float
    image_standard_error: float


def estimate(
    mean: ArrayLike,
    std: ArrayLike,
    samples: ArrayLike,
    labels: ArrayLike,
    places: np.ndarray | None = None,
) -> LatentInformation:
    """I_q(y; z) = E log q(z|y)/q(z) and I_q(x; z) = E log q(z|x)/q(z) of a population of N images.

    Float32 on the device, tiled: N = 10,000 needs megabytes, not the 400 of a whole table. Squares are
    of differences, not expanded into products: for narrow posteriors the expanded form loses its digits.

    Args:
      mean, std: of q(z|x_i), `[N, ...]`; event axes are flattened.
      samples: S draws from each, `[S, N, ...]`.
      labels: `[N]` integers.
      places: images whose draws are looked at, `[R]`, a random subset; all by default. The mixtures are of
        all images whatever it is.

    Raises:
      ValueError: shapes that do not fit, labels that are no integers, or a std that is not positive.
    """
    labels = _check_labels(labels)
    mean, std = (np.asarray(a, np.float32).reshape(len(labels), -1) for a in (mean, std))
    samples = np.asarray(samples, np.float32)
    samples = samples.reshape(*samples.shape[:2], -1)
    if std.shape != mean.shape or samples.shape[1:] != mean.shape:
        raise ValueError(
            f"mean and std must be [N, D] and samples [S, N, D], "
            f"got {mean.shape}, {std.shape}, {samples.shape}"
        )
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0.0).all()):
        raise ValueError("mean and std must be finite, and std positive")
    labels = np.unique(labels, return_inverse=True)[1].astype(np.int32)
    places = np.arange(len(labels)) if places is None else places
    rows = min(max(1, TILE_NUMBERS // len(labels)), len(places))
    draws = [
        np.asarray(_log_ratios(z[places], places, mean, std, labels, rows=rows), np.float64) for z in samples
    ]
    values, errors = np.mean(draws, axis=(0, 2)), np.std(draws, axis=(0, 2)) / math.sqrt(np.size(draws) // 2)
    return LatentInformation(values[0].item(), errors[0].item(), values[1].item(), errors[1].item())


def estimate_categorical(probs: ArrayLike, samples: ArrayLike, labels: ArrayLike) -> LatentInformation:
    """The same of categorical variables, in float64; that of a single one is exact, its errors 0.

    Args:
      probs: of q(z|x_i), `[N, K]` of one variable, `[N, V, K]` of several.
      samples: S one-hot draws from each, `[S, N, ...]`; of a single variable they are not looked at.
      labels: `[N]` integers.

    Raises:
      ValueError: shapes that do not fit, labels that are no integers, or numbers that are no probabilities.
    """
    labels, samples = _check_labels(labels), np.asarray(samples)
    probs = np.asarray(probs, np.float64)
    if probs.ndim not in (2, 3) or len(probs) != len(labels) or samples.shape[1:] != probs.shape:
        raise ValueError(
            f"probs must be [N, K] or [N, V, K] and samples [S, ...] of them, got {probs.shape}, "
            f"{samples.shape}"
        )
    if not (probs >= 0.0).all() or not np.allclose(probs.sum(axis=-1), 1.0, atol=1e-4):
        raise ValueError("probs must not be negative, and sum to 1 over the last axis")
    probs = np.asarray(probs / probs.sum(axis=-1, keepdims=True))
    labels = np.unique(labels, return_inverse=True)[1]
    if probs.ndim == 2:
        return _count(probs, labels)
    num, log_probs = len(labels), np.log(np.maximum(probs, np.finfo(float).tiny)).reshape(len(labels), -1)
    rows, ratios = max(1, TILE_NUMBERS // num), []
    for z in samples.reshape(len(samples), num, -1):
        for start in range(0, num, rows):
            tile = np.arange(start, min(start + rows, num))
            log_density = z[tile] @ log_probs.T  # of each image's z under the posterior of every image
            same = labels[tile, None] == labels
            in_class = special.logsumexp(np.where(same, log_density, -np.inf), axis=1)
            pair = np.stack([in_class - np.log(same.sum(axis=1)), log_density[np.arange(len(tile)), tile]])
            ratios.append(pair - (special.logsumexp(log_density, axis=1) - math.log(num)))
    draws = np.concatenate(ratios, axis=1)
    values, errors = draws.mean(axis=1), draws.std(axis=1) / math.sqrt(draws.shape[1])
    return LatentInformation(values[0].item(), errors[0].item(), values[1].item(), errors[1].item())


def _count(probs: np.ndarray, labels: np.ndarray) -> LatentInformation:
    """Of one variable, from the joint tables of image and value and of label and value."""
    of_label = (labels == np.arange(labels.max() + 1)[:, None]) @ probs / len(labels)
    found = []
    for joint in (of_label, probs / len(labels)):
        apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
        found.append(float(special.rel_entr(joint, apart).sum()))
    return LatentInformation(found[0], 0.0, found[1], 0.0)


def inform(found: Measured, part: Part, has_classes: bool, is_rate_drawn: bool = False) -> Information:
    """The section of one split, and of the images that probes are scored on.

    Each is a population of its own, with its own mixtures and labels: accuracies belong to the second.

    Args:
      found: of the split's images.
      part: the split.
      has_classes: whether there is a label to tell of.
      is_rate_drawn: whether R_L is a Monte Carlo estimate, with an error of its own.
    """
    every = np.arange(len(part.labels))
    whole = _inform_about(found, part.labels, every, has_classes, is_rate_drawn)
    scored = whole
    if len(part.scored) != len(part.labels):
        scored = _inform_about(found, part.labels, part.scored, has_classes, is_rate_drawn)
    return Information(whole=whole, scored=scored)


def _inform_about(
    found: Measured, labels: np.ndarray, places: np.ndarray, has_classes: bool, is_rate_drawn: bool
) -> Population:
    labels, means = labels[places], found.top.mean[places]
    num_draws = -(-ENOUGH_ROWS // len(labels))
    samples = np.moveaxis(found.top.samples[places], 1, 0)[:num_draws]
    if found.top.std is None:
        estimated = estimate_categorical(means, samples, labels)
    else:
        drawn = data.subset(len(labels), ENOUGH_ROWS)
        estimated = estimate(means, found.top.std[places], samples, labels, drawn)
    layer_rates = found.terms.rates[places].mean(axis=0, dtype=np.float64)
    of_label = None
    if has_classes:
        histogram = np.bincount(labels)
        # Σ_{k ≥ l} R_k bounds what z_l and the layers above it can tell of the label.
        upward = np.cumsum(layer_rates[::-1])[::-1]
        of_label = LabelInformation(
            label_histogram=tuple(histogram.tolist()),
            label_entropy_nats=bounds.label_entropy(histogram),
            label_information_nats=Estimate(estimated.label, estimated.label_standard_error),
            max_accuracy_by_information=float(bounds.max_accuracy(estimated.label, histogram)),
            max_accuracy_by_rates=tuple(bounds.max_accuracy(upward, histogram).tolist()),
        )
    return Population(
        num_images=len(labels),
        image_information_nats=Estimate(estimated.image, estimated.image_standard_error),
        top_rate_nats=float(layer_rates[-1]),
        # Over images, which are the whole population: rather too large than too small.
        top_rate_nats_standard_error=float(standard_error(np.asarray(found.terms.rates)[places, -1]))
        if is_rate_drawn
        else None,
        label=of_label,
    )


def _check_labels(labels: ArrayLike) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels) or labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be [N] integers, got {labels.dtype}{list(labels.shape)}")
    return labels


@jax.jit(static_argnames="rows")
def _log_ratios(
    z: jax.Array, places: jax.Array, mean: jax.Array, std: jax.Array, labels: jax.Array, *, rows: int
) -> jax.Array:
    """log q(z_i|y_i)/q(z_i) and log q(z_i|x_i)/q(z_i), `[2, R]`, of a draw z_i of those at `places`."""
    (num, num_dims), num_drawn, drawn = mean.shape, len(z), labels[places]
    log_scale = -jnp.log(std).sum(axis=1)
    own = log_scale[places] - 0.5 * jnp.square((z - mean[places]) / std[places]).sum(axis=1)

    # Dimensions lead, so that a pass runs along images; the last pass is filled up with zeros.
    passes = -(-num_dims // DIMS_PER_PASS)
    fill = ((0, passes * DIMS_PER_PASS - num_dims), (0, 0))
    by_pass = (passes, DIMS_PER_PASS, num)
    means, precisions = (jnp.pad(a.T, fill).reshape(by_pass) for a in (mean, 1 / std))

    def one_tile(tile: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        z_tile, label_tile, own_tile = tile
        z_tile = jnp.pad(z_tile.T, fill).reshape(passes, DIMS_PER_PASS, rows)

        def one_pass(total: jax.Array, dims: Any) -> tuple[jax.Array, None]:
            for z_d, mean_d, precision_d in zip(*dims, strict=True):
                total = total - 0.5 * jnp.square((z_d[:, None] - mean_d[None]) * precision_d[None])
            return total, None

        start = jnp.broadcast_to(log_scale[None], (rows, num))
        log_density, _ = jax.lax.scan(one_pass, start, (z_tile, means, precisions))
        # One exponential for both sums. Halfway between the largest term and the image's own, neither leaves
        # float32 until they are 170 nats apart: for z from its own posterior, a chance of N exp(−170).
        shift = 0.5 * (log_density.max(axis=1) + own_tile)
        terms = jnp.exp(log_density - shift[:, None])
        same = label_tile[:, None] == labels[None]
        in_class = jnp.log(jnp.where(same, terms, 0.0).sum(axis=1)) + shift
        return in_class, jnp.log(terms.sum(axis=1)) + shift

    tiles = -(-num_drawn // rows)
    # The last tile is filled up with copies of the first image, which are cut off again.
    index = jnp.arange(tiles * rows) % num_drawn
    tiled = (
        z[index].reshape(tiles, rows, num_dims),
        drawn[index].reshape(tiles, rows),
        own[index].reshape(tiles, rows),
    )
    in_class, overall = (a.reshape(-1)[:num_drawn] for a in jax.lax.map(one_tile, tiled))
    # Both mixtures are means: over the images of the class, and over all of them.
    class_size = (drawn[:, None] == labels[None]).sum(axis=1)
    overall = overall - math.log(num)
    return jnp.stack([in_class - jnp.log(class_size) - overall, own - overall])
