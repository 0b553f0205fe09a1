"""Statistics against scikit-learn, brute force and repeated sampling; scores against closed forms."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_gaussian import SIGMA, A, B, S
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from hvae_jax import Gaussian, GaussianPixels
from hvae_jax.evaluation import ood
from hvae_jax.evaluation.ood import Bounds
from hvae_jax.evaluation.rates import NamedGroups
from hvae_jax.groups import Groups
from hvae_jax.keys import EVALUATION, fold_in, make_key
from hvae_jax.models.hierarchy import Hierarchy
from hvae_jax.models.hvae import make_hvae
from hvae_jax.training.split_evaluator import SplitEvaluator

SHIFT = 0.9


def samples(seed: int, num_inside: int = 120, num_outside: int = 80, shift: float = SHIFT):
    """N(0, 1) from here, N(shift, 1) from elsewhere."""
    generator = np.random.default_rng(seed)
    return generator.normal(size=num_inside), shift + generator.normal(size=num_outside)


@pytest.fixture(params=["apart", "with ties", "all equal", "infinite"])
def two(request):
    inside, outside = samples(0)
    if request.param == "with ties":
        return np.round(inside), np.round(outside)
    if request.param == "all equal":
        return np.zeros(30), np.zeros(20)
    if request.param == "infinite":
        return np.append(inside, np.inf), np.append(outside, [np.inf, np.inf, -np.inf])
    return inside, outside


def test_points_are_those_of_scikit_learn(two):
    inside, outside = two
    labels = np.repeat([0, 1], [len(inside), len(outside)])
    # Ranks in place of the scores, which scikit-learn wants finite.
    values = stats.rankdata(np.concatenate(two))
    assert ood.auroc(*two).value == pytest.approx(roc_auc_score(labels, values), abs=1e-12)
    halves = np.repeat([1 / len(inside), 1 / len(outside)], [len(inside), len(outside)])
    expected = average_precision_score(labels, values, sample_weight=halves)
    assert ood.auprc(*two).value == pytest.approx(expected, abs=1e-12)
    false, true, _ = roc_curve(labels, values, drop_intermediate=False)
    for tpr in (0.8, 0.95, 1.0):
        expected = false[np.argmax(true >= tpr - 1e-9)]
        assert ood.fpr_at_tpr(*two, tpr=tpr).value == pytest.approx(expected, abs=1e-12)
    # Of samples of one size the weights change nothing.
    size = min(map(len, two))
    first, labels = [values[:size] for values in two], np.repeat([0, 1], size)
    values = stats.rankdata(np.concatenate(first))
    assert ood.auprc(*first).value == pytest.approx(average_precision_score(labels, values), abs=1e-12)


def test_samples_that_do_not_overlap_are_told_perfectly_and_exactly():
    inside, outside = np.arange(30.0), np.arange(100.0, 145.0)
    for statistic, value in ((ood.auroc, 1.0), (ood.auprc, 1.0), (ood.fpr_at_tpr, 0.0)):
        assert statistic(inside, outside) == (value, 0.0)
    assert ood.auroc(outside, inside).value == 0.0
    assert ood.fpr_at_tpr(outside, inside).value == 1.0


def test_delongs_error_by_brute_force(two):
    """Every pair of images, compared in a loop of its own."""
    inside, outside = two
    wins = (outside[:, None] > inside) + 0.5 * (outside[:, None] == inside)
    variance = wins.mean(axis=1).var(ddof=1) / len(outside) + wins.mean(axis=0).var(ddof=1) / len(inside)
    found = ood.auroc(inside, outside)
    assert found.value == pytest.approx(wins.mean())
    assert found.standard_error == pytest.approx(math.sqrt(variance))


@pytest.fixture(scope="module")
def many():
    """Two thousand repetitions of the same experiment."""
    return [samples(seed) for seed in range(1, 2001)]


def test_the_area_of_two_normals_and_how_it_varies(many):
    found = [ood.auroc(*two) for two in many]
    values = np.asarray([one.value for one in found])
    spread = values.std(ddof=1)
    assert abs(values.mean() - stats.norm.cdf(SHIFT / math.sqrt(2))) < 5 * spread / math.sqrt(len(many))
    # The standard deviation of as many repetitions is known to 1 / √4000.
    mean_error = math.sqrt(np.mean([one.standard_error**2 for one in found]))
    assert mean_error == pytest.approx(spread, rel=5 / math.sqrt(2 * len(many)))
    assert found[0].standard_error == pytest.approx(bootstrap(many[0]), rel=0.15)


def bootstrap(two) -> float:
    """The error of an AUROC by scikit-learn and resampling, which know nothing of DeLong."""
    generator, labels = np.random.default_rng(0), np.repeat([0, 1], list(map(len, two)))
    drawn = [np.concatenate([generator.choice(values, len(values)) for values in two]) for _ in range(600)]
    return float(np.std([roc_auc_score(labels, values) for values in drawn], ddof=1))


@pytest.mark.parametrize("statistic", [ood.auprc, ood.fpr_at_tpr])
def test_the_bootstraps_errors_are_how_the_numbers_vary(many, statistic):
    some = [statistic(*two) for two in many[:300]]
    spread = np.std([one.value for one in some], ddof=1)
    assert np.mean([one.standard_error for one in some]) == pytest.approx(spread, rel=0.2)


def test_a_mean_over_sets_knows_that_they_stand_beside_the_same_images():
    values, errors, independent = [], [], []
    for seed in range(600):
        generator = np.random.default_rng(seed)
        inside = generator.normal(size=60)
        outsides = [shift + generator.normal(size=200) for shift in (0.5, 1.0, 1.5)]
        found = ood.mean_auroc(inside, outsides)
        alone = [ood.auroc(inside, outside) for outside in outsides]
        assert found.value == pytest.approx(np.mean([one.value for one in alone]))
        values.append(found.value)
        errors.append(found.standard_error)
        independent.append(math.sqrt(sum(one.standard_error**2 for one in alone)) / 3)
    spread = np.std(values, ddof=1)
    assert np.mean(errors) == pytest.approx(spread, rel=0.15)
    assert np.mean(independent) < 0.75 * spread  # what leaving it out would say


def test_pairs_vary_together():
    values, errors, independent, bootstrapped = [], [], [], []
    for seed in range(600):
        generator = np.random.default_rng(seed)
        inside = generator.normal(size=80)
        outside = 0.5 + 0.9 * inside + math.sqrt(1 - 0.81) * generator.normal(size=80)
        found = ood.auroc(inside, outside, are_pairs=True)
        values.append(found.value)
        errors.append(found.standard_error)
        independent.append(ood.auroc(inside, outside).standard_error)
        if seed < 100:
            both = (ood.auprc(inside, outside, pairs).standard_error for pairs in (True, False))
            bootstrapped.append(tuple(both))
    spread = np.std(values, ddof=1)
    assert np.mean(errors) == pytest.approx(spread, rel=0.15)
    assert np.mean(independent) > 2 * spread
    paired, not_paired = np.mean(bootstrapped, axis=0)
    assert paired < 0.6 * not_paired


def test_a_bootstrap_is_the_same_every_time_and_in_blocks(monkeypatch):
    two = samples(3)
    whole = ood.auprc(*two)
    assert ood.auprc(*two) == whole
    assert ood.auprc(*two, seed=1).standard_error != whole.standard_error
    (block,) = ood._resamples(120, 80, False, 0)
    assert block.shape == (ood.NUM_RESAMPLES, 200)
    monkeypatch.setattr(ood, "_BLOCK_NUMBERS", 10_000)
    blocks = list(ood._resamples(120, 80, False, 0))
    assert [len(block) for block in blocks] == [50] * 4
    for block in blocks:
        assert set(block[:, :120].sum(axis=1)) == {120}
        assert set(block[:, 120:].sum(axis=1)) == {80}
    assert ood.auprc(*two).standard_error == pytest.approx(whole.standard_error, rel=0.3)


@pytest.mark.parametrize(
    ("inside", "outside", "are_pairs", "words"),
    [
        (np.zeros(0), np.zeros(3), False, r"\(0,\) and outside \(3,\)"),
        (np.zeros((2, 2)), np.zeros(3), False, r"\(2, 2\) and outside \(3,\)"),
        (np.zeros(2), np.zeros(3), True, "equal lengths"),
        (np.array([0.0, np.nan]), np.zeros(3), False, "NaN"),
    ],
)
def test_what_is_no_sample_is_refused(inside, outside, are_pairs, words):
    for statistic in (ood.auroc, ood.auprc, ood.fpr_at_tpr):
        with pytest.raises(ValueError, match=words):
            statistic(inside, outside, are_pairs)


def test_scores_are_larger_from_elsewhere_and_never_no_number():
    bounds = Bounds(
        np.array([-5.0, -np.inf]),
        np.array([-4.0, -np.inf]),
        [np.array([-8.0, -np.inf]), np.array([-7.0, -9.0])],
    )
    found = {name: values.tolist() for name, values in ood.scores(bounds, (1, 2)).items()}
    assert found == {
        "negative_elbo": [5.0, np.inf],
        "negative_importance_weighted_bound": [4.0, np.inf],
        "negative_elbo_above_1": [8.0, np.inf],
        "llr_above_1": [3.0, np.inf],  # −inf − −inf
        "negative_elbo_above_2": [7.0, 9.0],
        "llr_above_2": [2.0, -np.inf],
    }
    assert list(ood.scores(Bounds(np.zeros(3), np.zeros(3), []), ())) == [
        "negative_elbo", "negative_importance_weighted_bound",
    ]  # fmt: skip


def test_the_best_score_is_that_of_all_sets_together():
    inside = {"a": np.arange(10.0), "b": np.arange(10.0)}
    outside = [{"a": inside["a"] + 3, "b": inside["b"] + 9}, {"a": inside["a"] + 3, "b": inside["b"] - 9}]
    assert ood.best_score(inside, outside, [False, False]) == "a"
    assert ood.best_score(inside, outside[:1], [False]) == "b"


class Wide:
    """A two-layer linear-Gaussian model whose inference is wider than the exact one, so that all rates count:
    q(z_2|x) = N(M x, 0.5²), q(z_1|z_2, x) = N(A z_2 + G (x − A B z_2), 0.3²)."""

    num_layers = 2
    M, G = 0.4, 0.5
    STD = (0.3, 0.5)

    def bottom_up(self, x):
        return x

    def start(self, batch_size):
        return jnp.zeros((batch_size, 1))

    def prior(self, layer, state):
        mean = A * state
        return Gaussian(mean, jnp.full_like(mean, S if layer == 1 else 1.0)), state

    def posterior(self, layer, state, features, p):
        mean = self.M * features if layer == 2 else p.mean + self.G * (features - B * p.mean)
        return Gaussian(mean, jnp.full_like(mean, self.STD[layer - 1]))

    def below(self, layer, state, z):
        return z

    def outputs(self, state):
        return B * state


def linear_model() -> Any:
    """That model as a module is asked: it has no parameters."""
    hierarchy = Hierarchy(Wide(), GaussianPixels(SIGMA))

    class Model:
        def apply(self, params: Any, *arguments: Any, method: str = "terms") -> Any:
            return getattr(hierarchy, method)(*arguments)

    return Model()


def test_llr_of_a_linear_model_in_closed_form():
    """ELBO − L^{>1} = E_q(z_2) [ E_q log p(x|z_1) − KL_1 − E_p log p(x|z_1) ] at one x."""
    num, value = 20_000, 1.3
    x = np.full((num, 1), value, np.float32)
    bounds_fn = ood.make_bounds_fn(linear_model(), 2, (1,))
    evaluator = SplitEvaluator(x, lambda _, images: images)
    bounds = ood.measure_bounds(bounds_fn, evaluator, {}, make_key(0))
    found = ood.scores(bounds, (1,))
    # r = x − A B z_2 has mean (1 − A B M) x and variance (A B 0.5)²; squares of it are all that matters.
    square = ((1 - A * B * Wide.M) * value) ** 2 + (A * B * Wide.STD[1]) ** 2
    ratio = Wide.STD[0] ** 2 / S**2
    rate_1 = 0.5 * (ratio - 1 - math.log(ratio) + Wide.G**2 * square / S**2)
    of_posterior = ((1 - B * Wide.G) ** 2 * square + B**2 * Wide.STD[0] ** 2) / (2 * SIGMA**2)
    of_prior = (square + B**2 * S**2) / (2 * SIGMA**2)
    rate_2 = 0.5 * (Wide.STD[1] ** 2 + (Wide.M * value) ** 2 - 1 - 2 * math.log(Wide.STD[1]))
    constant = 0.5 * math.log(2 * math.pi * SIGMA**2)
    for name, expected in {
        "llr_above_1": of_prior - of_posterior - rate_1,
        "negative_elbo_above_1": constant + of_prior + rate_2,
        "negative_elbo": constant + of_posterior + rate_1 + rate_2,
    }.items():
        values = found[name]
        error = values.std(ddof=1) / math.sqrt(num)
        assert 0 < abs(values.mean() - expected) < 5 * error, name
    # log p(x) lies between the bound of two weights and nothing: that bound is above the ELBO.
    evidence = stats.norm.logpdf(value, scale=math.sqrt(B**2 * (A**2 + S**2) + SIGMA**2))
    assert bounds.elbo.mean() < bounds.importance_weighted.mean() < evidence


@pytest.fixture(scope="module")
def tiny(make_config):
    """A model of three layers, its parameters and seven uint8 images."""
    shapes = ((4, 4, 1), (2, 2, 1), (2,))
    model = make_hvae(make_config(latent_shapes=shapes, channels=2, num_stages=2), (8, 8, 1))
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1)).astype(np.uint8)
    params = jax.jit(model.init)(make_key(0), jnp.zeros((1, 8, 8, 1)), make_key(0))
    # Larger weights, so that every layer says something.
    return model, jax.tree.map(lambda leaf: 2.0 * leaf + 0.1, params), images


def preprocess(keys: jax.Array, images: jax.Array) -> jax.Array:
    return images / 255.0


@pytest.mark.long
def test_bounds_are_means_and_sums_over_draws_of_direct_calls(tiny):
    model, params, images = tiny
    layers, num_draws, key = (1, 2), 3, make_key(7)
    bounds_fn = ood.make_bounds_fn(model, num_draws, layers)
    found = ood.measure_bounds(bounds_fn, SplitEvaluator(images, preprocess), params, key)
    base = jax.random.fold_in(key, EVALUATION)

    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def call(x: jax.Array, keys: jax.Array) -> Any:
        above = [model.apply(params, x, keys, layer, method="terms_above") for layer in layers]
        return model.apply(params, x, keys), model.apply(params, x, keys, method="log_weight"), above

    for place in (0, 6):
        own = fold_in(jax.random.fold_in(base, place)[None], 1)
        x = jnp.asarray(images[place : place + 1] / 255.0, jnp.float32)
        drawn = [jax.tree.map(np.asarray, call(x, fold_in(own, number))) for number in range(num_draws)]
        elbo = [-(whole.distortion[0] + whole.rates[0].sum()) for whole, *_ in drawn]
        weights = np.asarray([weight[0] for _, weight, _ in drawn], np.float64)
        assert found.elbo[place] == pytest.approx(np.mean(elbo), rel=1e-5)
        weighted = np.log(np.mean(np.exp(weights - weights.max()))) + weights.max()
        assert found.importance_weighted[place] == pytest.approx(weighted, rel=1e-5)
        for column, layer in enumerate(layers):
            nats = [-(of[column].distortion[0] + of[column].rates[0, layer:].sum()) for *_, of in drawn]
            assert found.above[column][place] == pytest.approx(np.mean(nats), rel=1e-5)
            # L^{>k} keeps the rates above k as they are in the ELBO.
            for whole, _, of in drawn:
                np.testing.assert_allclose(of[column].rates[0, layer:], whole.rates[0, layer:], rtol=1e-4)
    assert found.elbo.dtype == np.float64


@pytest.mark.long
def test_an_images_scores_do_not_depend_on_those_beside_it():
    """Among few and among more than a batch of images, for which the program is another one."""
    x = np.random.default_rng(0).normal(size=(600, 1)).astype(np.float32)
    bounds_fn = ood.make_bounds_fn(linear_model(), 3, (1,))
    whole, few = (
        ood.measure_bounds(bounds_fn, SplitEvaluator(some, lambda _, images: images), {}, make_key(0))
        for some in (x, np.concatenate([x[:300], -x[:7]]))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[:300], b[:300], rtol=1e-4), whole, few)
    assert np.ptp(whole.elbo) > 0.1


@pytest.mark.parametrize(
    ("changes", "groups", "expected"),
    [
        ({"latent_shapes": ((3,),)}, None, ()),
        ({"latent_shapes": ((4, 4, 2), (3,))}, None, (1,)),
        ({"latent_shapes": ((4, 4, 2), (2, 2, 2), (3,))}, None, (1, 2)),
        ({"inference": "deep", "latent_shapes": (*[(4, 4, 2)] * 3, *[(1, 1, 2)] * 2)}, None, (3,)),
        (
            {"inference": "deep", "latent_shapes": (*[(4, 4, 2)] * 3, *[(1, 1, 2)] * 2)},
            ((1, 1), (2, 5)),
            (1, 3),
        ),
        ({"inference": "deep", "latent_shapes": ((4, 4, 2),) * 6, "blocks_by_side": ((4, 2),)}, None, (3,)),
        ({"inference": "deep", "latent_shapes": ((4, 4, 2),), "blocks_by_side": ((4, 2),)}, None, ()),
    ],
)
def test_layers_are_each_but_the_top_or_where_sides_and_groups_end(make_config, changes, groups, expected):
    model = make_hvae(make_config(**changes), (8, 8, 1))
    grouped = None if groups is None else NamedGroups(Groups(groups), ("a", "b"))
    assert ood.layers_below(model, grouped) == expected
