"""The four kinds of classifier that read a latent, in the forms that are fast on a few thousand points.

They are scikit-learn's, fitted in float32 on latents that are scaled to unit variance, except where another
form of the same takes a fraction of its time: the kernel of the SVM is one matrix product and so are all its
decisions, the linear SVM's classes are fitted together, neighbours are found by a product of matrices. Kinds
that are told the same latents share their distances.
"""

import contextlib
import dataclasses
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from scipy import optimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC

MAX_ITERATIONS = 200


@dataclasses.dataclass(frozen=True)
class Scaled:
    """Latents to fit on: scaled so that every dimension has mean 0 and variance 1, if it varies.

    Attributes:
      points: `[N, D]`, float32.
      labels: `[N]`.
      mean, std: `[D]`, before; the std of what does not vary is 1.
    """

    points: np.ndarray
    labels: np.ndarray
    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, latents: np.ndarray, labels: np.ndarray) -> "Scaled":
        """Of latents `[N, D]`."""
        mean, std = latents.mean(axis=0, dtype=np.float64), latents.std(axis=0, dtype=np.float64)
        # Of equal numbers, a mean in finite precision leaves a std of its rounding.
        std = np.where(std > 1e-6 * np.abs(mean), std, 1.0)
        return cls(_scale(latents, mean, std), labels, mean, std)

    def queries(self, latents: np.ndarray) -> "Queries":
        """Others `[N', D]`, scaled as these were."""
        return Queries(_scale(latents, self.mean, self.std), self)

    @functools.cached_property
    def gamma(self) -> float:
        """Of the kernel exp(−γ d²): 1 / (D · variance)."""
        return 1 / max(self.points.shape[1] * float(self.points.var()), np.finfo(np.float32).tiny)

    @functools.cached_property
    def kernel(self) -> np.ndarray:
        """Of each and each, `[N, N]`; one for all settings."""
        return _decay(squared_distances(self.points, self.points), self.gamma)


@dataclasses.dataclass(frozen=True)
class Queries:
    """Latents to be classified by what was fitted on others.

    Attributes:
      points: `[N', D]`, scaled.
      fitted_on: the others.
    """

    points: np.ndarray
    fitted_on: Scaled

    @functools.cached_property
    def distances(self) -> np.ndarray:
        """Squared, from each to each of the others, `[N', N]`; found once for all kinds and settings."""
        return squared_distances(self.points, self.fitted_on.points)

    @functools.cached_property
    def kernel(self) -> np.ndarray:
        """Of each and each of the others, `[N', N]`."""
        return _decay(self.distances, self.fitted_on.gamma)


# Labels `[N']`.
Predict = Callable[[Queries], np.ndarray]
# (what to fit on, setting) → classifier.
Fit = Callable[[Scaled, float], Predict]


def logistic_regression(scaled: Scaled, c: float) -> Predict:
    """Multinomial, with the penalty |w|² / 2c, by scikit-learn."""
    with unwarned():
        fitted = LogisticRegression(C=c, max_iter=MAX_ITERATIONS, tol=1e-3).fit(scaled.points, scaled.labels)
    return lambda queries: fitted.predict(queries.points)


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
    """A latent without information never converges to anything; its accuracy says so.

    What Python keeps of warnings is the process's: a pool that fits in several threads is to be made in here.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def linear_svm(scaled: Scaled, c: float) -> Predict:
    """One class against the others: ½|w|² + c Σ max(0, 1 − y f)², the bias among w, as LIBLINEAR's default.

    All classes in one L-BFGS; a class's optimum does not depend on the others.
    """
    classes = np.unique(scaled.labels)
    signs = np.where(scaled.labels[:, None] == classes, np.float32(1), np.float32(-1))
    points = _with_ones(scaled.points)

    def objective(w: np.ndarray) -> tuple[float, np.ndarray]:
        weights = w.reshape(points.shape[1], len(classes)).astype(np.float32)
        lacking = np.maximum(1 - signs * (points @ weights), 0)
        value = 0.5 * np.square(w).sum() + c * np.square(lacking).sum(dtype=np.float64)
        return value, w - 2 * c * (points.T @ (lacking * signs)).ravel()

    start = np.zeros(points.shape[1] * len(classes))
    options = {"maxiter": 2 * MAX_ITERATIONS, "ftol": 1e-6, "gtol": 1e-3}
    found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    weights = found.x.reshape(points.shape[1], len(classes)).astype(np.float32)
    return lambda queries: classes[(_with_ones(queries.points) @ weights).argmax(axis=1)]


def rbf_svm(scaled: Scaled, c: float) -> Predict:
    """Kernel exp(−γ d²), see `Scaled.gamma`, one class against one, by scikit-learn."""
    fitted = SVC(C=c, tol=1e-2, kernel="precomputed").fit(scaled.kernel, scaled.labels)
    # What `fitted.predict` does row by row and pair by pair of classes: all decisions are one product.
    pairs = list(itertools.combinations(range(len(fitted.classes_)), 2))
    ends = np.cumsum([0, *fitted.n_support_])
    weights = np.zeros((len(fitted.support_), len(pairs)), np.float32)
    for column, (one, other) in enumerate(pairs):
        for own, against in ((one, other - 1), (other, one)):
            rows = slice(ends[own], ends[own + 1])
            weights[rows, column] = fitted.dual_coef_[against, rows]
    # Two classes alone have the other sign in scikit-learn.
    sign = -1 if len(pairs) == 1 else 1
    one_hot = np.eye(len(fitted.classes_), dtype=np.float32)
    of_one, of_other = (one_hot[list(side)] for side in zip(*pairs, strict=True))

    def predict(queries: Queries) -> np.ndarray:
        decisions = queries.kernel[:, fitted.support_] @ weights
        is_one = sign * (decisions + fitted.intercept_.astype(np.float32)) > 0
        votes = is_one @ of_one + ~is_one @ of_other
        return fitted.classes_[votes.argmax(axis=1)]

    return predict


def knn(scaled: Scaled, num: float) -> Predict:
    """The class that is most frequent among the nearest, the first of equally frequent ones."""
    classes, numbers = np.unique(scaled.labels, return_inverse=True)
    one_hot = np.eye(len(classes), dtype=np.float32)[numbers]

    def predict(queries: Queries) -> np.ndarray:
        # As near as the last of them: values are found faster than places, and votes are a product.
        radius = np.partition(queries.distances, int(num) - 1, axis=1)[:, int(num) - 1 : int(num)]
        votes = (queries.distances <= radius).astype(np.float32) @ one_hot
        return classes[votes.argmax(axis=1)]

    return predict


# Kind → the one setting that is tuned, its values, and how to fit the classifier. The published study
# compares the same four kinds.
KINDS: Mapping[str, tuple[str, tuple[float, ...], Fit]] = {
    "logistic_regression": ("C", (0.03, 1.0), logistic_regression),
    "linear_svm": ("C", (0.01, 0.3), linear_svm),
    "rbf_svm": ("C", (1.0, 10.0), rbf_svm),
    "knn": ("n_neighbors", (5, 15), knn),
}


def fit(kind: str, scaled: Scaled, setting: float) -> Predict:
    """A classifier of latents."""
    return KINDS[kind][2](scaled, setting)


def squared_distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """`[N, N']` between `[N, D]` and `[N', D]`; the products in float32."""
    norms, others_norms = (np.square(a).sum(axis=1) for a in (points, others))
    # In place, here and in `_decay`: on arrays as large as these, new memory takes longer than arithmetic.
    found = points @ (-2 * others).T
    found += norms[:, None]
    found += others_norms
    return np.maximum(found, 0, out=found)


def _decay(distances: np.ndarray, gamma: float) -> np.ndarray:
    """exp(−γ d²), of squared distances."""
    found = -gamma * distances
    return np.exp(found, out=found)


def _scale(latents: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    return ((latents - mean) / std).astype(np.float32)


def _with_ones(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points, np.ones((len(points), 1), np.float32)], axis=1)
