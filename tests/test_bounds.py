import decimal
import math

import linear_gaussian
import numpy as np
import pytest

from hvae_jax import bounds

HISTOGRAMS = (
    [1, 1],
    [36] * 10,
    [0.25] * 4,
    [5, 1, 1, 1],
    [33, 36, 35, 41, 40, 37, 33, 38, 32, 35],
    [98, 1, 1],
)


def exact_f(alpha: float, histogram: list) -> decimal.Decimal:
    """The definition, in 60 digits."""
    with decimal.localcontext() as context:
        context.prec = 60
        counts = [decimal.Decimal(count) for count in histogram if count]
        total, num_classes, a = sum(counts), len(counts), decimal.Decimal(alpha)
        entropy = -sum(count / total * (count / total).ln() for count in counts)
        miss = (1 - a) * ((1 - a) / (num_classes - 1)).ln() if a < 1 else decimal.Decimal(0)
        return entropy + a * a.ln() + miss


def accuracies(num_classes: int) -> np.ndarray:
    """From 1/M to 1, dense at both ends."""
    steps = np.concatenate(
        [np.logspace(-9, -2, 15), np.linspace(0.02, 0.98, 13), 1 - np.logspace(-9, -2, 15)]
    )
    alphas = 1 / num_classes + (1 - 1 / num_classes) * np.concatenate([[0.0], steps, [1.0]])
    return np.clip(alphas, np.nextafter(1 / num_classes, 1), 1)


@pytest.mark.parametrize("histogram", HISTOGRAMS)
def test_the_inverse_is_exact_to_a_billionth(histogram):
    alphas = accuracies(len(histogram))
    information = np.asarray([float(exact_f(alpha, histogram)) for alpha in alphas])
    # Where f is negative no information is meant, and near 1/M no float holds f closely enough.
    meant = (information >= 0) | (alphas > 1 / len(histogram) + 1e-6)
    inverse = bounds.max_accuracy(information, histogram)
    np.testing.assert_allclose(inverse[meant], alphas[meant], rtol=0, atol=1e-9)


@pytest.mark.parametrize("histogram", HISTOGRAMS)
def test_the_inverse_outside_its_range(histogram):
    entropy = bounds.label_entropy(histogram)
    assert bounds.max_accuracy(entropy + 1e-12, histogram) == 1.0
    assert bounds.max_accuracy(1e9, histogram) == 1.0
    assert bounds.max_accuracy(-1e9, histogram) == 1 / len(histogram)
    # Without information the best guess is the largest class, which the bound must allow.
    assert bounds.max_accuracy(0.0, histogram) >= max(histogram) / sum(histogram) - 1e-9


def test_no_classifier_beats_the_bound():
    """Random joint distributions of y and z: the best accuracy against the exact information."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        joint = generator.dirichlet(np.full(5 * 7, generator.choice([0.05, 0.3, 2.0]))).reshape(5, 7)
        p_y, p_z = joint.sum(axis=1), joint.sum(axis=0)
        ratio = np.where(joint > 0, joint / np.outer(p_y, p_z), 1.0)
        information = (joint * np.log(ratio)).sum()
        assert joint.max(axis=0).sum() <= bounds.max_accuracy(information, p_y) + 1e-9


def test_the_bound_is_reached_by_errors_that_are_spread_evenly():
    for alpha in (0.3, 0.75, 0.99):
        channel = np.full((4, 4), (1 - alpha) / 3) + np.eye(4) * (alpha - (1 - alpha) / 3)
        information = (channel / 4 * np.log(channel * 4)).sum()
        assert bounds.max_accuracy(information, [1, 1, 1, 1]) == pytest.approx(alpha, abs=1e-12)


def test_an_empty_class_does_not_count():
    assert bounds.max_accuracy(0.4, [3, 0, 2]) == bounds.max_accuracy(0.4, [3, 2])
    assert bounds.max_accuracy(0.0, [0, 7]) == 1.0


@pytest.mark.parametrize("bad", [[], [-1, 2], [0, 0], [[1, 2]], [np.nan, 1]])
def test_a_bad_histogram_is_refused(bad):
    with pytest.raises(ValueError, match="histogram must be"):
        bounds.max_accuracy(0.5, bad)


def test_distortion_bound_is_tight_at_equal_betas_of_one_and_holds_elsewhere():
    entropy = 0.5 * math.log(2 * math.pi * math.e * linear_gaussian.MATCHED_V)
    for betas in ((1.0, 1.0), (0.3, 2.0), (3.0, 0.5), (0.5, 0.5)):
        distortion, rates = linear_gaussian.optimum(betas)
        gap = distortion - bounds.min_distortion(entropy, sum(rates))
        assert gap == pytest.approx(0.0, abs=1e-12) if betas == (1.0, 1.0) else gap > 1e-3


def test_a_perfect_classifier_on_uniform_labels_scores_the_number_of_classes():
    score, diversity, sharpness = bounds.score_factors(np.tile(np.eye(10), (7, 1)))
    assert (score, diversity, sharpness) == pytest.approx((10.0, 10.0, 1.0), abs=1e-12)


def test_score_is_the_exponential_of_the_mean_divergence():
    probs = np.random.default_rng(0).dirichlet(np.ones(6), size=50)
    divergence = (probs * np.log(probs / probs.mean(axis=0))).sum(axis=1).mean()
    score, diversity, sharpness = bounds.score_factors(probs)
    assert score == pytest.approx(math.exp(divergence), rel=1e-12)
    assert score == diversity * sharpness
    assert bounds.score_factors(np.full((9, 4), 0.25)).score == pytest.approx(1.0, abs=1e-12)
    with pytest.raises(ValueError, match="sum to 1"):
        bounds.score_factors([[0.5, 0.4]])


@pytest.mark.parametrize("probs", [[[3.0, 3.0]], [0.5, 0.5], [[-1.0, 2.0]], [[float("nan"), 1.0]]])
def test_what_is_no_prediction_has_no_entropy(probs):
    with pytest.raises(ValueError, match="rows that sum to 1"):
        bounds.prediction_entropy(probs)
