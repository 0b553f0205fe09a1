"""What the rates allow: bounds on distortion and accuracy, and the factors of the inception score.

All in NumPy float64, since these are statements about finished numbers. Information is in nats.
Source of the bounds: Xiao and Bamler, Trading Information between Latents in Hierarchical Variational
Autoencoders, 2023, section 4; the accuracy bound is Fano's inequality.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class ScoreFactors(NamedTuple):
    """The inception score and what it is the product of.

    Attributes:
      score: exp E_x KL[p(y|x) ‖ p(y)] = diversity · sharpness, in [1, M].
      diversity: exp H[p(y)], in [1, M]: how evenly the classes come.
      sharpness: exp −E_x H[p(y|x)], in [1 / M, 1]: how sure the classifier is of each image.
    """

    score: float
    diversity: float
    sharpness: float


def min_distortion(data_entropy: ArrayLike, total_rate: ArrayLike) -> np.ndarray:
    """H[p_data] − E[R_1 + … + R_L], the least distortion E[D] that any model can have at this total rate.

    Holds for a likelihood normalised over the same set as the data (a probability for discrete data, a
    density for continuous). Only the total counts: how it is split over the layers does not.

    Args:
      data_entropy: H[p_data], nats.
      total_rate: nats.
    """
    return np.asarray(data_entropy, np.float64) - np.asarray(total_rate, np.float64)


def label_entropy(histogram: ArrayLike) -> float:
    """H[p(y)] = −Σ p log p, nats.

    Args:
      histogram: `[M]`, counts or probabilities; an empty class counts for nothing.

    Raises:
      ValueError: negative or not finite entries, or none above 0.
    """
    probs = _class_probs(histogram)
    return float(-(probs * np.log(probs)).sum())


def max_accuracy(information: ArrayLike, histogram: ArrayLike) -> np.ndarray:
    """f⁻¹(I): the best accuracy that I = I(y; z) nats allow any classifier that reads z alone.

    f(α) = H[p(y)] + α log α + (1−α) log((1−α) / (M−1)) is the least I(y; z) that allows accuracy α.

    Args:
      information: I, nats, any shape. At H[p(y)] and above the answer is 1; at f(1/M) and below, 1/M.
      histogram: `[M]`, of the labels, as counts or probabilities. M is the number of classes that occur.

    Returns:
      in [1/M, 1], the shape of `information`, exact to 1e-9.

    Raises:
      ValueError: a bad histogram, or information that is NaN.

    Example:
      >>> max_accuracy([0.0, 1.0, 2.5], histogram=[36] * 10).round(3).tolist()
      [0.1, 0.689, 1.0]
    """
    probs = _class_probs(histogram)
    num_classes = len(probs)
    target = np.asarray(information, np.float64)
    if np.isnan(target).any():
        raise ValueError("information must not be NaN")
    if num_classes == 1:
        return np.ones_like(target)
    target = target + _entropy_gap(probs)
    # The search runs over δ = α − 1/M, which keeps its digits near 0; there f is flat and needs them.
    low, high = np.zeros_like(target), np.full_like(target, 1 - 1 / num_classes)
    for _ in range(80):
        middle = 0.5 * (low + high)
        below = _divergence(middle, num_classes) < target
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    inverse = 1 / num_classes + 0.5 * (low + high)
    inverse = np.where(target >= _divergence(np.asarray(1 - 1 / num_classes), num_classes), 1.0, inverse)
    return np.where(target <= 0, 1 / num_classes, inverse)


def score_factors(class_probs: ArrayLike) -> ScoreFactors:
    """The inception score of images, from what a classifier says of them.

    Args:
      class_probs: p(y|x), `[N, M]`, rows that sum to 1.

    Raises:
      ValueError: no such rows.
    """
    probs = _rows_of_probs(class_probs)
    if not len(probs):
        raise ValueError("class_probs must be [N, M] with a row at least")
    diversity = np.exp(_entropies(probs.mean(axis=0, keepdims=True))[0])
    sharpness = np.exp(-_entropies(probs).mean())
    return ScoreFactors(float(diversity * sharpness), float(diversity), float(sharpness))


def prediction_entropy(class_probs: ArrayLike) -> np.ndarray:
    """H[p(y|x)] of each row of `[N, M]`, nats, `[N]`.

    Raises:
      ValueError: no such rows.
    """
    return _entropies(_rows_of_probs(class_probs))


def _rows_of_probs(class_probs: ArrayLike) -> np.ndarray:
    probs = np.asarray(class_probs, np.float64)
    if probs.ndim != 2 or (probs < 0).any() or not np.allclose(probs.sum(axis=1), 1):
        raise ValueError(f"class_probs must be [N, M] with rows that sum to 1, got shape {probs.shape}")
    return probs


def _entropies(probs: np.ndarray) -> np.ndarray:
    return -np.sum(probs * np.log(np.where(probs > 0, probs, 1.0)), axis=-1)


def _class_probs(histogram: ArrayLike) -> np.ndarray:
    counts = np.asarray(histogram, np.float64)
    if counts.ndim != 1 or not np.isfinite(counts).all() or (counts < 0).any() or not counts.sum() > 0:
        raise ValueError(f"histogram must be [M], not negative and not all 0, got {histogram}")
    return counts[counts > 0] / counts.sum()


def _entropy_gap(probs: np.ndarray) -> float:
    """log M − H[p(y)] = KL(p ‖ uniform), exactly 0 for equal classes."""
    return float(_divergence_term(len(probs) * probs - 1).mean())


def _divergence(delta: np.ndarray, num_classes: int) -> np.ndarray:
    """log M + α log α + (1−α) log((1−α)/(M−1)) at α = 1/M + δ.

    It is KL(p ‖ uniform) of p = (α, (1−α)/(M−1), …), here a sum of terms that are never negative: the
    formula as written loses all digits near α = 1/M.
    """
    if num_classes == 1:
        return np.zeros_like(delta)
    hit = num_classes * delta
    miss = np.maximum(-hit / (num_classes - 1), -1.0)
    return (_divergence_term(hit) + (num_classes - 1) * _divergence_term(miss)) / num_classes


def _divergence_term(u: np.ndarray) -> np.ndarray:
    """(1 + u) log(1 + u) − u for u ≥ −1."""
    u = np.asarray(u, np.float64)
    inside = np.where(u > -1, u, 0.0)
    return np.where(u > -1, (1 + inside) * np.log1p(inside) - inside, 1.0)
