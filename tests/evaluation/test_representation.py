import numpy as np
import pytest

from hvae_jax.evaluation import representation


def latents(num, num_draws=2, noise=0.5, seed=0):
    """Points around the corners of a square, and which corner it is."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, num)
    corners = np.array([[0, 0], [0, 4], [4, 0], [4, 4]])[labels]
    return corners + noise * generator.normal(size=(num_draws, num, 2)), labels


def test_every_kind_reads_classes_that_are_apart_and_none_reads_noise():
    probes = representation.fit(*latents(200), *latents(100, seed=1))
    assert set(probes) == {"logistic_regression", "linear_svm", "rbf_svm", "knn"}
    test, labels = latents(150, seed=2)
    chosen = representation.choose(probes)
    for kind, probe in probes.items():
        assert len(probe.fitted) == len(probe.scaled) == len(probe.valid_accuracies) == 1 + (kind == chosen)
        assert representation.score(probe, test, labels).test_accuracy.value > 0.97
        shuffled = np.random.default_rng(0).permutation(labels)
        found = representation.score(probe, test, shuffled)
        assert abs(found.test_accuracy.value - 0.25) < 5 * found.test_accuracy.standard_error


def test_scores_are_of_the_draws_that_a_kind_was_fitted_on():
    train, labels = latents(200, num_draws=3, noise=1.5)
    valid, valid_labels = latents(100, num_draws=3, noise=1.5, seed=1)
    test, test_labels = latents(150, num_draws=3, noise=1.5, seed=2)
    probes = representation.fit(train, labels, valid, valid_labels)
    chosen = representation.choose(probes)
    found = representation.score_all(probes, test, test_labels)
    alone = {kind: representation.fit(train, labels, valid, valid_labels, [kind])[kind] for kind in probes}
    first = {
        kind: representation.fit(train[:1], labels, valid[:1], valid_labels, [kind])[kind] for kind in probes
    }
    for kind, scores in found.items():
        probe, seen = (alone[kind], test) if kind == chosen else (first[kind], test[:1])
        assert scores == representation.score(probe, seen, test_labels)
    accuracies = {kind: probe.valid_accuracies[0] for kind, probe in first.items()}
    assert accuracies[chosen] == max(accuracies.values())


def test_the_setting_is_the_one_that_validates_best(monkeypatch):
    name, _, make = representation.KINDS["knn"]
    monkeypatch.setattr(representation, "KINDS", {"knn": (name, (180, 1), make)})
    probes = representation.fit(*latents(200), *latents(100, seed=1), kinds=["knn"])
    assert probes["knn"].setting == ("n_neighbors", 1)  # with 180 of 200 neighbours classes blur
    assert representation.choose(probes) == "knn"
    assert representation.fit(*latents(100), *latents(100, seed=1), kinds=["knn"])["knn"].setting[1] == 1
    monkeypatch.setattr(representation, "KINDS", {"knn": (name, (180,), make)})
    assert representation.fit(*latents(100), *latents(100, seed=1), kinds=["knn"]) == {}


def test_a_probe_reads_maps_like_vectors_and_wants_a_draw_for_each_fit():
    train, labels = latents(60)
    probe = representation.fit(train[..., None], labels, train[..., None], labels, ["knn"])["knn"]
    assert representation.score(probe, train, labels).test_accuracy.value > 0.9
    with pytest.raises(ValueError, match="fitted on 2 draws, latents has 1"):
        representation.score(probe, train[:1], labels)


def test_standard_error_is_that_of_a_share_where_draws_agree():
    train, labels = latents(60, num_draws=1)
    probe = representation.fit(train, labels, train, labels, ["knn"])["knn"]
    wrong = np.where(np.arange(60) < 15, (labels + 1) % 4, labels)
    found = representation.score(probe, train, wrong)
    assert found.test_accuracy.value == 0.75
    assert found.test_accuracy.standard_error == pytest.approx(np.sqrt(0.75 * 0.25 / 59))


def test_principal_components_of_a_known_ellipse():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(500, 3)) * [3.0, 1.0, 0.0]
    coordinates, share = representation.principal_components(x + 5)
    variance = np.var(x[:, :2], axis=0)
    np.testing.assert_allclose(share, variance / variance.sum(), rtol=0.01)
    assert abs(np.corrcoef(coordinates[:, 0], x[:, 0])[0, 1]) > 0.999
