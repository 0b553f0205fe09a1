"""How much of the class a latent gives away: four kinds of classifier that read it.

`fit` sees the training and the validation split only. It returns classifiers whose settings are chosen,
and `score` then applies them to the test split: what is not passed in cannot choose anything.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from threadpoolctl import threadpool_limits

from hvae_jax.evaluation.measuring import Measured
from hvae_jax.evaluation.metrics import Layer, Probes, ProbeScores, Representation
from hvae_jax.evaluation.parts import Part
from hvae_jax.evaluation.plain import Estimate

# Kind → the one setting that is tuned, its values, and how to make the classifier. The published study
# compares the same four kinds.
KINDS: Mapping[str, tuple[str, tuple[float, ...], Callable[[Any], Any]]] = {
    "logistic_regression": (
        "C",
        (0.03, 1.0),
        lambda value: LogisticRegression(C=value, max_iter=200, tol=1e-3),
    ),
    "linear_svm": (
        "C",
        (0.01, 0.3),
        lambda value: LinearSVC(C=value, dual="auto", tol=1e-2, max_iter=200, random_state=0),
    ),
    "rbf_svm": ("C", (1.0, 10.0), lambda value: SVC(C=value, tol=1e-2)),
    "knn": ("n_neighbors", (5, 15), lambda value: KNeighborsClassifier(n_neighbors=int(value))),
}


class Probe(NamedTuple):
    """One kind of classifier, tuned on the validation split.

    Attributes:
      setting: name and value of what was tuned.
      fitted: one classifier per draw of the latents, with that setting.
      valid_accuracy: mean over them.
    """

    setting: tuple[str, float]
    fitted: list[Pipeline]
    valid_accuracy: float


class Seen(NamedTuple):
    """What a probe sees of a split: S draws of a latent, `[S, N, ...]`, and the labels, `[N]`."""

    latents: np.ndarray
    labels: np.ndarray


def fit(
    train: np.ndarray,
    train_labels: np.ndarray,
    valid: np.ndarray,
    valid_labels: np.ndarray,
    kinds: Sequence[str] = tuple(KINDS),
) -> dict[str, Probe]:
    """Fits every kind on latents of the training split, its setting tuned on the validation split.

    The setting is chosen with the first draw; the other draws are fitted with the same one, for error bars.

    Args:
      train, valid: S draws of a latent (or one array of posterior means, S = 1), `[S, N, ...]`.
      train_labels, valid_labels: `[N]`.
      kinds: of `KINDS`.

    Returns:
      kind → probe. Neighbours are tried up to the number of training images; "knn" is absent where there
      are fewer than the fewest neighbours.
    """
    train, valid = (latents.reshape(*latents.shape[:2], -1) for latents in (train, valid))
    probes = {}
    for kind in kinds:
        name, values, make = KINDS[kind]
        if kind == "knn":
            values = [value for value in values if value <= len(train_labels)]
            if not values:
                continue
        candidates = [_fit_one(make(value), train[0], train_labels) for value in values]
        accuracies = [np.mean(candidate.predict(valid[0]) == valid_labels) for candidate in candidates]
        best = int(np.argmax(accuracies))
        others = [_fit_one(make(values[best]), draw, train_labels) for draw in train[1:]]
        rest = [
            np.mean(other.predict(draw) == valid_labels)
            for other, draw in zip(others, valid[1:], strict=True)
        ]
        probes[kind] = Probe(
            (name, values[best]), [candidates[best], *others], float(np.mean([accuracies[best], *rest]))
        )
    return probes


def choose(probes: Mapping[str, Probe]) -> str:
    """The kind with the best validation accuracy, the first of equals."""
    return max(probes, key=lambda kind: probes[kind].valid_accuracy)


def score(probe: Probe, latents: np.ndarray, labels: np.ndarray) -> ProbeScores:
    """Accuracy on a split that had no say in the probe; its error is of the images and of the draws.

    Args:
      probe: fitted on S draws.
      latents: `[S, N, ...]`, one draw for each of the classifiers.
      labels: `[N]`.

    Raises:
      ValueError: another number of draws.
    """
    latents = latents.reshape(*latents.shape[:2], -1)
    if len(latents) != len(probe.fitted):
        raise ValueError(f"the probe was fitted on {len(probe.fitted)} draws, latents has {len(latents)}")
    with threadpool_limits(1):
        hits = np.stack(
            [fitted.predict(draw) == labels for fitted, draw in zip(probe.fitted, latents, strict=True)]
        )
    by_image, by_draw = hits.mean(axis=0), hits.mean(axis=1)
    variance = by_image.var(ddof=1) / len(by_image)
    if len(by_draw) > 1:
        variance += by_draw.var(ddof=1) / len(by_draw)
    return ProbeScores(
        setting=dict([probe.setting]),
        valid_accuracy=probe.valid_accuracy,
        test_accuracy=Estimate(float(hits.mean()), math.sqrt(variance)),
    )


def probe(train: Seen, valid: Seen, test: Seen) -> Probes:
    """What every kind reads of a latent, draws of it or means with S = 1."""
    probes = fit(*train, *valid)
    return Probes(chosen=choose(probes), **{kind: score(one, *test) for kind, one in probes.items()})


def represent(
    measured: Mapping[str, Measured],
    parts: Mapping[str, Part],
    has_probes: bool,
    top_layers: Sequence[int],
) -> tuple[Representation, list[np.ndarray]]:
    """The section, and each layer's means of the test split's `points` along two directions, `[N, 2]`.

    Args:
      measured: by part.
      parts: "train", which probes are fitted on, "valid", which chooses them, "test".
      has_probes: whether the data allow for them.
      top_layers: whose latents were measured.
    """

    def seen(name: str, what: Callable[[Measured], np.ndarray]) -> Seen:
        part = parts[name]
        places = np.arange(len(part.labels)) if name == "train" else part.scored
        return Seen(what(measured[name])[:, places], part.labels[places])

    layers, coordinates = [], []
    for index, means in enumerate(measured["test"].means):
        samples_of, means_of = (lambda m, i=index: m.samples[i]), (lambda m, i=index: m.means[i][None])
        of_samples, of_means = (
            probe(*(seen(name, what) for name in ("train", "valid", "test"))) if has_probes else None
            for what in (samples_of, means_of)
        )
        place, share = principal_components(means[parts["test"].points])
        coordinates.append(place)
        layers.append(
            Layer(
                layer=top_layers[index],
                samples=of_samples,
                means=of_means,
                principal_component_shares=tuple(share.tolist()),
            )
        )
    return Representation(layers=tuple(layers)), coordinates


def principal_components(latents: np.ndarray, num: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Latents along the directions in which they vary most.

    Args:
      latents: `[N, ...]`; event axes are flattened.
      num: of directions, at most their number of dimensions.

    Returns:
      coordinates `[N, num]` and each direction's share of the variance `[num]`.
    """
    flat = latents.reshape(len(latents), -1).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    left, values, _ = np.linalg.svd(flat, full_matrices=False)
    share = np.square(values) / max(np.square(values).sum(), np.finfo(float).tiny)
    return left[:, :num] * values[:num], share[:num]


def _fit_one(classifier: Any, latents: np.ndarray, labels: np.ndarray) -> Pipeline:
    pipeline = make_pipeline(StandardScaler(), classifier)
    # On matrices this small a second thread of the BLAS costs twice what it brings.
    with threadpool_limits(1), warnings.catch_warnings():
        # A latent without information never converges to anything; its accuracy says so.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return pipeline.fit(latents, labels)
