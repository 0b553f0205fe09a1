import math

import numpy as np
import pytest
from scipy import linalg

from hvae_jax.evaluation import generation


def with_moments(mean, covariance, num, seed):
    """Points whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(num, len(mean)))
    x = (x - x.mean(axis=0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False)).T)
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_known_gaussians():
    first = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.7]])
    second = np.array([[0.6, -0.2, 0.1], [-0.2, 1.5, 0.3], [0.1, 0.3, 2.0]])
    shift = np.array([1.0, -2.0, 0.5])
    root: np.ndarray = np.real(linalg.sqrtm(first @ second))  # type: ignore[arg-type]
    expected = shift @ shift + np.trace(first + second - 2 * root)
    found = generation.frechet_distance(
        with_moments(np.zeros(3), first, 40, 0), with_moments(shift, second, 60, 1)
    )
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_a_set_from_itself_is_zero_even_if_it_is_flat():
    x = np.random.default_rng(0).normal(size=(50, 4))
    flat = x @ np.diag([1.0, 1.0, 0.0, 0.0])
    assert generation.frechet_distance(x, x[::-1]) == pytest.approx(0.0, abs=1e-9)
    assert generation.frechet_distance(flat, flat) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match=r"\[N, F\]"):
        generation.frechet_distance(x, x[:, :3])


def test_a_perfect_classifier_on_uniform_samples_scores_the_number_of_classes():
    score = generation.classifier_score(np.tile(np.eye(10), (50, 1)), num_splits=5)
    assert (score.inception_score_classifier.value, score.diversity, score.sharpness) == pytest.approx(
        (10.0, 10.0, 1.0)
    )
    assert score.inception_score_classifier.standard_error == pytest.approx(0.0, abs=1e-12)


def test_the_score_is_the_mean_over_splits_and_has_their_error():
    probs = np.random.default_rng(0).dirichlet(np.full(4, 0.3), size=1003)
    parts = [probs[200 * i : 200 * (i + 1)] for i in range(5)]
    scores = [
        math.exp((p * np.log(np.maximum(p, 1e-300) / p.mean(axis=0))).sum(axis=1).mean()) for p in parts
    ]
    found = generation.classifier_score(probs, num_splits=5)
    assert found.inception_score_classifier.value == pytest.approx(np.mean(scores), rel=1e-9)
    assert found.inception_score_classifier.standard_error == pytest.approx(
        np.std(scores, ddof=1) / math.sqrt(5), rel=1e-9
    )
    with pytest.raises(ValueError, match="cannot make 5 splits"):
        generation.classifier_score(probs[:4], num_splits=5)


def test_precision_and_recall_of_sets_that_overlap_by_half():
    generator = np.random.default_rng(0)
    left, middle, right = (generator.normal((shift, 0), size=(300, 2)) for shift in (-20, 0, 20))
    real = generator.permutation(np.concatenate([left, middle]))
    generated = generator.permutation(np.concatenate([middle + 0.01, right]))
    assert generation.precision_recall(real, generated) == pytest.approx((0.5, 0.5), abs=0.02)
    assert generation.precision_recall(real, real) == (1.0, 1.0)
    # All samples in one place among many: precise, and recall near nothing.
    precision, recall = generation.precision_recall(real, real[:1] + 1e-3 * generator.normal(size=(600, 2)))
    assert (precision, recall < 0.02) == (1.0, True)
