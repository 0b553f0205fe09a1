import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from hvae_jax.evaluation import probes
from hvae_jax.evaluation.probes import KINDS, Scaled

ORIGINALS = {
    "logistic_regression": lambda c: LogisticRegression(C=c, max_iter=200, tol=1e-3),
    "linear_svm": lambda c: LinearSVC(C=c, dual="auto", tol=1e-4, max_iter=2000, random_state=0),
    "rbf_svm": lambda c: SVC(C=c, tol=1e-2),
    "knn": lambda num: KNeighborsClassifier(n_neighbors=int(num)),
}


def latents(num, seed):
    """Four classes that overlap, a dimension that says nothing, and one that never varies."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, num)
    centres = 1.2 * np.random.default_rng(9).normal(size=(4, 6))
    points = centres[labels] + generator.normal(size=(num, 6))
    points = np.concatenate([points, generator.normal(size=(num, 1)), np.full((num, 1), 0.3)], axis=1)
    return (5 * points - 2).astype(np.float32), 10 * labels


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_says_what_scikit_learns_says(kind):
    train, labels = latents(400, seed=0)
    test, _ = latents(1000, seed=1)
    scaler = StandardScaler().fit(train)
    for setting in KINDS[kind][1]:
        expected = (
            ORIGINALS[kind](setting).fit(scaler.transform(train), labels).predict(scaler.transform(test))
        )
        scaled = Scaled.of(train, labels)
        found = probes.fit(kind, scaled, setting)(scaled.queries(test))
        assert (found == expected).mean() > 0.99
        assert set(found) <= {0, 10, 20, 30}


def test_what_never_varies_is_scaled_to_0():
    train, labels = latents(50, seed=0)
    scaled = Scaled.of(train, labels)
    np.testing.assert_array_equal(scaled.points[:, -1], 0)
    np.testing.assert_allclose(scaled.points[:, :-1].std(axis=0), 1, rtol=1e-4)


def test_a_latent_that_says_nothing_at_all_is_read_without_a_warning():
    labels = np.arange(60) % 3
    for kind, (_, values, _) in KINDS.items():
        scaled = Scaled.of(np.zeros((60, 4), np.float32), labels)
        found = probes.fit(kind, scaled, values[0])(scaled.queries(np.zeros((5, 4), np.float32)))
        assert set(found) <= {0, 1, 2}


@pytest.mark.parametrize("num_classes", [2, 3, 7])
def test_the_kernel_machine_decides_as_scikit_learns_does_for_any_number_of_classes(num_classes):
    generator = np.random.default_rng(num_classes)
    labels = generator.integers(0, num_classes, 500) - 3
    points = (labels[:, None] + generator.normal(size=(500, 3))).astype(np.float32)
    scaled = Scaled.of(points[:300], labels[:300])
    gamma: Any = 1 / (3 * scaled.points.var())
    original = SVC(C=2.0, tol=1e-2, gamma=gamma).fit(scaled.points, labels[:300])
    queries = scaled.queries(points[300:])
    np.testing.assert_array_equal(probes.rbf_svm(scaled, 2.0)(queries), original.predict(queries.points))


def test_threads_that_end_before_others_leave_them_unwarned():
    """Each puts back what was when it began: around the pool, too, nothing is said."""
    first, second = probes.unwarned(), probes.unwarned()
    with probes.unwarned():
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        warnings.warn("of the second, still fitting", ConvergenceWarning, stacklevel=1)
        second.__exit__(None, None, None)
    with pytest.warns(ConvergenceWarning):
        warnings.warn("of anyone else", ConvergenceWarning, stacklevel=1)
