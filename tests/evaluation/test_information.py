import math

import numpy as np
import pytest
from scipy import integrate, special, stats

from hvae_jax.evaluation import information


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """A tile is filled up with copies of the first image: of the few here, there would be very many."""
    monkeypatch.setattr(information, "TILE_NUMBERS", 7000)
    monkeypatch.setattr(information, "DIMS_PER_PASS", 4)  # of what is unrolled


def population(num: int, num_dims: int, spread: float, seed: int = 0):
    """Posteriors of `num` images, their labels and a generator for draws."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 5, num)
    mean = generator.normal(size=(num, num_dims)) * spread + 0.3 * labels[:, None]
    std = np.exp(generator.normal(size=(num, num_dims)) * 0.5 - 1)
    return mean.astype(np.float32), std.astype(np.float32), labels, generator


def draw(mean, std, num_draws, generator):
    return mean + std * generator.normal(size=(num_draws, *mean.shape)).astype(np.float32)


def reference(mean, std, samples, labels, places=None):
    """The same sums in float64, without tiles."""
    places = range(len(mean)) if places is None else places
    mean, std = mean.astype(np.float64), std.astype(np.float64)
    label_ratio, image_ratio = [], []
    for z in samples.astype(np.float64):
        for i in places:
            log_density = stats.norm.logpdf(z[i], mean, std).sum(axis=1)
            same = labels == labels[i]
            overall = np.logaddexp.reduce(log_density) - math.log(len(mean))
            label_ratio.append(np.logaddexp.reduce(log_density[same]) - math.log(same.sum()) - overall)
            image_ratio.append(log_density[i] - overall)
    return np.mean(label_ratio), np.mean(image_ratio)


def test_a_mixture_whose_information_is_an_integral():
    mean, std, labels, generator = population(15, 1, 0.5)

    z = np.linspace(-12, 14, 20_001)  # the trapezoid rule is exact to rounding for what falls off this fast
    densities = stats.norm.pdf(z[:, None], mean[:, 0].astype(float), std[:, 0].astype(float))  # [20001, 15]

    def integral(component):
        return integrate.trapezoid(special.rel_entr(component, densities.mean(axis=1)), z)

    by_label = sum(
        (labels == y).mean() * integral(densities[:, labels == y].mean(axis=1)) for y in np.unique(labels)
    )
    by_image = np.mean([integral(component) for component in densities.T])
    found = information.estimate(mean, std, draw(mean, std, 400, generator), labels)
    assert abs(found.label - by_label) < 5 * found.label_standard_error
    assert abs(found.image - by_image) < 5 * found.image_standard_error
    assert found.label_standard_error < 0.01


@pytest.mark.parametrize("num_dims", [3, 8, 9])
def test_float32_in_tiles_is_the_float64_sum(num_dims):
    """With 23 images a tile, the last one not full; less than a pass, two, and a part of a third."""
    mean, std, labels, generator = population(301, num_dims, 0.3)
    mean += 20  # far from the origin, where the expanded square would have no digits left
    std[:, :3] *= 0.02
    samples = draw(mean, std, 2, generator)
    expected = reference(mean, std, samples, labels)
    found = information.estimate(mean, std, samples, labels)
    assert found.label == pytest.approx(expected[0], abs=1e-3)
    assert found.image == pytest.approx(expected[1], abs=1e-3)


def test_draws_of_some_images_are_judged_by_the_mixtures_of_all():
    mean, std, labels, generator = population(60, 5, 0.5)
    samples, places = draw(mean, std, 3, generator), np.array([3, 8, 20, 21, 59])
    found = information.estimate(mean, std, samples, labels, places)
    assert (found.label, found.image) == pytest.approx(
        reference(mean, std, samples, labels, places), rel=1e-5
    )
    every = information.estimate(mean, std, samples, labels)
    assert found.image_standard_error == pytest.approx(every.image_standard_error * math.sqrt(12), rel=0.5)


def test_posteriors_apart_tell_all_and_equal_ones_nothing():
    _, _, labels, generator = population(50, 4, 1.0)
    apart, std = 100.0 * np.arange(50)[:, None] * np.ones((1, 4)), np.ones((50, 4))
    found = information.estimate(apart, std, draw(apart, std, 1, generator), labels)
    counts = np.bincount(labels) / 50
    assert found.image == pytest.approx(math.log(50), abs=1e-4)
    assert found.label == pytest.approx(-(counts * np.log(counts)).sum(), abs=1e-4)
    equal = np.zeros((50, 4))
    found = information.estimate(equal, std, draw(equal, std, 1, generator), labels)
    assert (found.label, found.image) == pytest.approx((0.0, 0.0), abs=1e-5)


def test_information_is_below_the_rate():
    mean, std, labels, generator = population(400, 2, 0.5)
    rate = (0.5 * (std**2 + mean**2 - 1) - np.log(std)).sum(axis=1).mean()
    found = information.estimate(mean, std, draw(mean, std, 5, generator), labels)
    assert 0 < found.label < found.image < rate


def test_a_map_counts_like_a_vector():
    mean, std, labels, generator = population(30, 8, 0.5)
    samples = draw(mean, std, 2, generator)
    shape = (30, 2, 2, 2)
    as_map = information.estimate(mean.reshape(shape), std.reshape(shape), samples.reshape(2, *shape), labels)
    assert as_map == information.estimate(mean, std, samples, labels)
    with pytest.raises(ValueError, match=r"samples \[S, N, D\]"):
        information.estimate(mean, std, samples[:, :, :3], labels)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0.5, 1.0, 0.0, 1.0]}, "labels must be"),
        ({"labels": np.eye(4, dtype=int)}, "labels must be"),
        ({"labels": []}, "labels must be"),
        ({"std": np.zeros((4, 3))}, "std positive"),
        ({"std": -np.ones((4, 3))}, "std positive"),
        ({"mean": np.full((4, 3), np.nan)}, "must be finite"),
    ],
)
def test_what_no_information_is_of_is_refused(changes, message):
    given = {"mean": np.zeros((4, 3)), "std": np.ones((4, 3)), "samples": np.zeros((2, 4, 3))}
    with pytest.raises(ValueError, match=message):
        information.estimate(**{**given, "labels": [0, 1, 0, 1], **changes})


def categorical_population(shape: tuple[int, ...], seed: int = 0):
    """Probabilities of 40 images, a third of them almost certain; their labels, and 300 draws of each."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, 40)
    scale = np.where(labels == 0, 8.0, 1.0).reshape(-1, *[1] * len(shape))
    logits = scale * generator.normal(size=(40, *shape))
    logits[..., 0] += labels.reshape(-1, *[1] * (len(shape) - 1))
    probs = special.softmax(logits, axis=-1).astype(np.float32)
    noise = generator.gumbel(size=(300, *probs.shape))
    samples = np.eye(shape[-1])[(np.log(probs) + noise).argmax(axis=-1)]
    return probs, samples, labels


def enumerated(probs: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Both informations from the table of all values that the variables take together."""
    table = probs.astype(np.float64).reshape(len(labels), -1, probs.shape[-1])
    joint = table[:, 0]
    for variable in range(1, table.shape[1]):
        joint = (joint[:, :, None] * table[:, None, variable]).reshape(len(labels), -1)
    overall = joint.mean(axis=0)
    image = special.rel_entr(joint, overall).sum() / len(labels)
    label = sum(
        (labels == y).mean() * special.rel_entr(joint[labels == y].mean(axis=0), overall).sum()
        for y in np.unique(labels)
    )
    return label, image


def test_of_one_categorical_variable_it_is_a_sum():
    probs, samples, labels = categorical_population((5,))
    found = information.estimate_categorical(probs, samples[:1], labels)
    assert (found.label, found.image) == pytest.approx(enumerated(probs, labels), rel=1e-5)
    assert (found.label_standard_error, found.image_standard_error) == (0.0, 0.0)
    # Certain of as many values as labels, they tell all of them.
    certain = np.eye(3)[labels]
    found = information.estimate_categorical(certain, certain[None], labels)
    counts = np.bincount(labels) / 40
    assert found.label == pytest.approx(-(counts * np.log(counts)).sum())


def test_of_several_categorical_variables_it_is_drawn(monkeypatch):
    monkeypatch.setattr(information, "TILE_NUMBERS", 40 * 7)  # tiles of 7 images
    probs, samples, labels = categorical_population((2, 3))
    found = information.estimate_categorical(probs, samples, labels)
    label, image = enumerated(probs, labels)
    assert abs(found.label - label) < 5 * found.label_standard_error
    assert abs(found.image - image) < 5 * found.image_standard_error
    assert found.label_standard_error < 0.01
    with pytest.raises(ValueError, match="sum to 1"):
        information.estimate_categorical(0.5 * probs, samples, labels)
    with pytest.raises(ValueError, match=r"\[N, K\] or \[N, V, K\]"):
        information.estimate_categorical(probs, samples[:, :, :1], labels)
