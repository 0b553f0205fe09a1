"""How good samples are, in the eyes of a classifier: score, Fréchet distance, precision and recall.

Nothing here is comparable with numbers from an Inception network: the classifier is the data set's own,
and names say so. They compare models that were judged by the same classifier.
"""

import math
from collections.abc import Sequence

import numpy as np

from hvae_jax import bounds, data
from hvae_jax.evaluation.metrics import ClassifierScores, Memorisation, PrecisionRecall, SampleScores
from hvae_jax.evaluation.plain import Estimate
from hvae_jax.evaluation.sizes import Sizes

# Fewer images of a kind than this have no covariance, or no third neighbour.
MIN_FRECHET, MIN_PRECISION = 2, 4
# Rows of a table of distances at a time.
_ROWS = 1000


def classifier_score(class_probs: np.ndarray, num_splits: int = 5) -> ClassifierScores:
    """exp E_x KL[p(y|x) ‖ p(y)], as published: on `num_splits` equal parts of the samples.

    Args:
      class_probs: p(y|x) of each sample, `[N, M]`.
      num_splits: at least 2, at most N; a rest of fewer samples than splits is left out.

    Raises:
      ValueError: too few samples.
    """
    size = len(class_probs) // num_splits
    if num_splits < 2 or size < 1:
        raise ValueError(f"{len(class_probs)} samples cannot make {num_splits} splits; at least 2 are needed")
    scores = [
        bounds.score_factors(class_probs[start * size : (start + 1) * size]).score
        for start in range(num_splits)
    ]
    _, diversity, sharpness = bounds.score_factors(class_probs)
    error = float(np.std(scores, ddof=1)) / math.sqrt(num_splits)
    return ClassifierScores(
        inception_score_classifier=Estimate(float(np.mean(scores)), error),
        diversity=diversity,
        sharpness=sharpness,
    )


def frechet_distance(features: np.ndarray, other: np.ndarray) -> float:
    """Between the Gaussians with the moments of two sets: |μ − μ'|² + tr(C + C' − 2 (C C')^½).

    Source: Dowson and Landau, The Fréchet distance between multivariate normal distributions, 1982.
    It is too large where a set has few members for its dimensions, so compare equal numbers only.

    Args:
      features, other: `[N, F]` and `[N', F]`, at least two rows each.

    Raises:
      ValueError: shapes that do not fit.
    """
    if features.ndim != 2 or features.shape[1:] != other.shape[1:] or min(len(features), len(other)) < 2:
        raise ValueError(f"features must be [N, F] and [N', F], got {features.shape} and {other.shape}")
    first, second = (np.atleast_2d(np.cov(f, rowvar=False, dtype=np.float64)) for f in (features, other))
    shift = features.mean(axis=0, dtype=np.float64) - other.mean(axis=0, dtype=np.float64)
    # C C' has the eigenvalues of the symmetric C^½ C' C^½, whose roots are real.
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second @ root), 0)).sum()
    return max(float(shift @ shift + np.trace(first) + np.trace(second) - 2 * cross), 0.0)


def precision_recall(real: np.ndarray, generated: np.ndarray, num_neighbors: int = 3) -> tuple[float, float]:
    """The share of samples that lie among real images, and of real images that lie among samples.

    A point lies among a set when it is within one member's distance to that member's
    `num_neighbors`-th neighbour in the set (Kynkäänniemi et al., 2019). The larger set is cut to the
    size of the smaller.

    Args:
      real, generated: features, `[N, F]`.
      num_neighbors: less than either N.

    Returns:
      precision and recall, in [0, 1].

    Raises:
      ValueError: too few of one.
    """
    size = min(len(real), len(generated))
    if size <= num_neighbors:
        raise ValueError(f"at least {num_neighbors + 1} images of each kind are needed, got {size}")
    real, generated = real[:size], generated[:size]

    def share_within(points: np.ndarray, members: np.ndarray) -> float:
        # A member is its own nearest neighbour, hence no −1.
        radius = np.concatenate(
            [
                np.partition(d, num_neighbors, axis=1)[:, num_neighbors]
                for d in _distance_tiles(members, members)
            ]
        )
        return float(
            np.concatenate([(d <= radius).any(axis=1) for d in _distance_tiles(points, members)]).mean()
        )

    return share_within(generated, real), share_within(real, generated)


def score(
    num_samples: int,
    judged: Sequence[np.ndarray],
    real: np.ndarray | None,
    sizes: Sizes,
    memorisation: Memorisation | None,
) -> SampleScores:
    """The section of one split's samples.

    Args:
      num_samples: N.
      judged: features `[N, F]` and p(y|x) `[N, K]` of the samples; empty without a classifier.
      real: features of the split's images; None without a classifier.
      sizes: how much to score.
      memorisation: of the samples, where it was looked at.
    """
    if real is None:
        return SampleScores(num_samples=num_samples, memorisation=memorisation)
    features, probs = judged
    frechet, both = None, None
    if len(real) >= MIN_FRECHET:
        frechet = frechet_distance(features, real)
    if len(real) >= MIN_PRECISION:
        size = min(len(features), len(real), sizes.max_scored_images)
        precision, recall = precision_recall(real[data.subset(len(real), size)], features[:size])
        both = PrecisionRecall(
            precision_classifier=precision, recall_classifier=recall, num_precision_recall=size
        )
    return SampleScores(
        num_samples=num_samples,
        judged=classifier_score(probs, sizes.num_splits),
        frechet_distance_classifier=frechet,
        precision_recall=both,
        memorisation=memorisation,
    )


def compare_with_training(
    of_samples: np.ndarray, of_images: np.ndarray, num_training_images: int
) -> Memorisation:
    """How near samples come to training images, beside how near images of the test split come to them.

    Args:
      of_samples, of_images: distances of each to the nearest training image, of which as many are looked at
        as there are of both.
      num_training_images: among which they were found.
    """
    size = min(len(of_samples), len(of_images))
    return Memorisation(
        num_training_images=num_training_images,
        median_distance_to_training=float(np.median(of_samples[:size])),
        median_distance_to_training_of_test_images=float(np.median(of_images)),
    )


def _distance_tiles(points: np.ndarray, members: np.ndarray):
    """Squared distances, some rows `[rows, N']` at a time. Float64: neighbours may be very close."""
    points, members = points.astype(np.float64), members.astype(np.float64)
    centre = members.mean(axis=0)
    points, members = points - centre, members - centre
    norms = np.square(members).sum(axis=1)
    for start in range(0, len(points), _ROWS):
        rows = points[start : start + _ROWS]
        yield np.maximum(np.square(rows).sum(axis=1)[:, None] + norms - 2 * rows @ members.T, 0.0)
