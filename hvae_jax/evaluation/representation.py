"""How much of the class a latent gives away: four kinds of classifier that read it.

`fit` sees the training and the validation split only. It returns classifiers whose settings are chosen,
and `score` then applies them to the test split: what is not passed in cannot choose anything.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import NamedTuple

import numpy as np
from scipy import linalg

from hvae_jax.evaluation.measuring import Read
from hvae_jax.evaluation.metrics import Layer, Probes, ProbeScores, Representation
from hvae_jax.evaluation.parts import Part
from hvae_jax.evaluation.plain import Estimate
from hvae_jax.evaluation.probes import KINDS, Predict, Scaled
from hvae_jax.evaluation.probes import fit as fit_one


class Probe(NamedTuple):
    """One kind of classifier, tuned on the validation split.

    Attributes:
      setting: name and value of what was tuned.
      scaled: the draws of the latents that it was fitted on.
      fitted: one classifier for each, with that setting.
      valid_accuracies: of each, on the same draw of the validation split.
    """

    setting: tuple[str, float]
    scaled: list[Scaled]
    fitted: list[Predict]
    valid_accuracies: list[float]


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

    Kinds and settings are compared on the first draw. The best kind is fitted on the other draws too, with
    the same setting, for its mean and its error: of all that is read of latents that would take most time.

    Args:
      train, valid: S draws of a latent (or one array of posterior means, S = 1), `[S, N, ...]`.
      train_labels, valid_labels: `[N]`.
      kinds: of `KINDS`.

    Returns:
      kind → probe. Neighbours are tried up to the number of training images; "knn" is absent where there
      are fewer than the fewest neighbours.
    """
    train, valid = (latents.reshape(*latents.shape[:2], -1) for latents in (train, valid))
    scaled = Scaled.of(train[0], train_labels)
    queries = scaled.queries(valid[0])
    probes = {}
    for kind in kinds:
        name, values, _ = KINDS[kind]
        if kind == "knn":
            values = [value for value in values if value <= len(train_labels)]
        if not values:
            continue
        candidates = [fit_one(kind, scaled, value) for value in values]
        accuracies = [float(np.mean(candidate(queries) == valid_labels)) for candidate in candidates]
        best = int(np.argmax(accuracies))
        probes[kind] = Probe((name, values[best]), [scaled], [candidates[best]], [accuracies[best]])
    if not probes:
        return probes
    chosen = choose(probes)
    for of_train, of_valid in zip(train[1:], valid[1:], strict=True):
        scaled = Scaled.of(of_train, train_labels)
        fitted = fit_one(chosen, scaled, probes[chosen].setting[1])
        probes[chosen].scaled.append(scaled)
        probes[chosen].fitted.append(fitted)
        hits = fitted(scaled.queries(of_valid)) == valid_labels
        probes[chosen].valid_accuracies.append(float(np.mean(hits)))
    return probes


def choose(probes: Mapping[str, Probe]) -> str:
    """The kind with the best validation accuracy on the first draw, the first of equals."""
    return max(probes, key=lambda kind: probes[kind].valid_accuracies[0])


def score(probe: Probe, latents: np.ndarray, labels: np.ndarray) -> ProbeScores:
    """Of one kind, see `score_all`."""
    return score_all({"": probe}, latents, labels)[""]


def score_all(probes: Mapping[str, Probe], latents: np.ndarray, labels: np.ndarray) -> dict[str, ProbeScores]:
    """Accuracies on a split that had no say in the probes.

    Their errors are of the images, and of the draws where there is a classifier for each.

    Args:
      probes: by kind; on the same draws those of them that were fitted on them.
      latents: `[S, N, ...]`, a draw for each classifier of a kind; of one with fewer, the first of them.
      labels: `[N]`.

    Raises:
      ValueError: fewer draws.
    """
    latents = latents.reshape(*latents.shape[:2], -1)
    hits: dict[str, list[np.ndarray]] = {kind: [] for kind in probes}
    most = max((probe.scaled for probe in probes.values()), key=len)
    if len(latents) < len(most):
        raise ValueError(f"the probe was fitted on {len(most)} draws, latents has {len(latents)}")
    for number, (scaled, draw) in enumerate(zip(most, latents, strict=False)):
        queries = scaled.queries(draw)
        for kind, one in probes.items():
            if number < len(one.fitted):
                hits[kind].append(one.fitted[number](queries) == labels)
    return {kind: _score(one, np.stack(hits[kind])) for kind, one in probes.items()}


def _score(probe: Probe, hits: np.ndarray) -> ProbeScores:
    """Of whether each image was told at each draw, `[S, N]`."""
    by_image, by_draw = hits.mean(axis=0), hits.mean(axis=1)
    variance = by_image.var(ddof=1) / len(by_image)
    if len(by_draw) > 1:
        variance += by_draw.var(ddof=1) / len(by_draw)
    return ProbeScores(
        setting=dict([probe.setting]),
        valid_accuracy=float(np.mean(probe.valid_accuracies)),
        test_accuracy=Estimate(float(hits.mean()), math.sqrt(variance)),
    )


def probe(train: Seen, valid: Seen, test: Seen) -> Probes:
    """What every kind reads of a latent: draws of it, see `fit` for which, or means with S = 1."""
    probes = fit(*train, *valid)
    return Probes(chosen=choose(probes), **score_all(probes, *test))


def represent(
    reads: Mapping[str, Read],
    parts: Mapping[str, Part],
    has_probes: bool,
    top_layers: Sequence[int],
    pool: Executor,
) -> Callable[[], tuple[Representation, list[np.ndarray]]]:
    """Begins the section, and each layer's means of the test split's `points` along two directions, `[N, 2]`.

    Args:
      reads: by part.
      parts: "train", which probes are fitted on, "valid", which chooses them, "test".
      has_probes: whether the data allow for them.
      top_layers: whose latents they are.
      pool: what the layers are read in.

    Returns:
      what waits for both.
    """

    def seen(name: str, what: Callable[[Read], np.ndarray]) -> Seen:
        part = parts[name]
        places = part.read if name == "train" else part.scored
        latents = what(reads[name])[part.among_read(places)]
        return Seen(np.moveaxis(latents, 1, 0), part.labels[places])

    def probe_all(what: Callable[[Read], np.ndarray]) -> Probes:
        return probe(*(seen(name, what) for name in ("train", "valid", "test")))

    begun, points = [], parts["test"].among_read(parts["test"].points)
    for index, means in enumerate(reads["test"].means):
        of = (lambda r, i=index: r.samples[i]), (lambda r, i=index: r.means[i][:, None])
        of_samples, of_means = (pool.submit(probe_all, what) if has_probes else None for what in of)
        begun.append((of_samples, of_means, pool.submit(principal_components, means[points])))

    def finish() -> tuple[Representation, list[np.ndarray]]:
        layers, coordinates = [], []
        for layer, (of_samples, of_means, components) in zip(top_layers, begun, strict=True):
            place, share = components.result()
            coordinates.append(place)
            layers.append(
                Layer(
                    layer=layer,
                    samples=of_samples and of_samples.result(),
                    means=of_means and of_means.result(),
                    principal_component_shares=tuple(share.tolist()),
                )
            )
        return Representation(layers=tuple(layers)), coordinates

    return finish


def principal_components(latents: np.ndarray, num: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Latents along the directions in which they vary most; the farthest point is on the positive side.

    Args:
      latents: `[N, ...]`; event axes are flattened.
      num: of directions, at most their number of dimensions.

    Returns:
      coordinates `[N, num]` and each direction's share of the variance `[num]`.
    """
    flat = latents.reshape(len(latents), -1).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    # The smaller of the two matrices that have the same eigenvalues.
    is_tall = len(flat) >= flat.shape[1]
    table = flat.T @ flat if is_tall else flat @ flat.T
    size, num = len(table), min(num, flat.shape[1])
    num_found = min(num, size)
    values, vectors = linalg.eigh(table, subset_by_index=(size - num_found, size - 1))
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    coordinates = flat @ vectors if is_tall else vectors * np.sqrt(values)
    signs = np.sign(coordinates[np.abs(coordinates).argmax(axis=0), np.arange(num_found)])
    share = values / max(np.square(flat).sum(), np.finfo(float).tiny)
    missing = ((0, 0), (0, num - num_found))
    return np.pad(coordinates * signs, missing), np.pad(share, missing[1:])
