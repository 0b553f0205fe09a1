"""What models say of a batch: shapes, Monte Carlo rates, draws, reconstructions, samples."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from random_models import images, quick_jit, random_params, shapes_of

from hvae_jax import distributions
from hvae_jax.models.config import PUBLISHED, ModelConfig
from hvae_jax.models.hierarchy import Code
from hvae_jax.models.hvae import HVAE, make_hvae
from hvae_jax.models.walk import Layer
from hvae_jax.objective import LayerwiseTerms

MakeConfig = Callable[..., ModelConfig]
NUM = 1000  # images in a batch that a test compiles for


def perturb(params: dict[str, Any], name: str, change: Callable[[jax.Array], jax.Array]) -> dict[str, Any]:
    """The same parameters but for those of one network."""
    return {"params": {**params["params"], name: jax.tree.map(change, params["params"][name])}}


class Everything(NamedTuple):
    """What inference says about a batch, the rows of `infer` (which also hold the priors) included."""

    terms: LayerwiseTerms
    log_weight: jax.Array
    codes: list[Code]
    layers: list[Layer]
    decoded: jax.Array  # from the draw of z_1


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model with parameters and its methods, each compiled once."""

    model: HVAE
    params: dict[str, Any]
    x: jax.Array  # [NUM]
    everything: Callable[..., Everything]  # params, x [NUM], keys [NUM]
    reconstruct: Callable[..., list[jax.Array]]  # params, x [4] → from each layer, the lowest first
    sample: Callable[..., jax.Array]  # params, key, temperature → 4 images


def make_subject(model: HVAE) -> Subject:
    apply: Callable[..., Any] = model.apply

    def everything(params: Any, x: jax.Array, keys: jax.Array) -> Everything:
        codes = apply(params, x, keys, method="encode")
        return Everything(
            terms=apply(params, x, keys),
            log_weight=apply(params, x, keys, method="log_weight"),
            codes=codes,
            layers=apply(params, x, keys, method="infer"),
            decoded=apply(params, codes[0].sample, method="decode"),
        )

    def reconstruct(params: Any, x: jax.Array) -> list[jax.Array]:
        layers = range(1, model.num_layers + 1)
        return [apply(params, x, from_layer, method="reconstruct") for from_layer in layers]

    return Subject(
        model,
        random_params(model),
        images(model, NUM),
        quick_jit(everything),
        quick_jit(reconstruct),
        quick_jit(lambda params, key, temperature: apply(params, key, 4, temperature, method="sample")),
    )


@pytest.fixture(scope="module", params=PUBLISHED)
def two_layers(request: pytest.FixtureRequest, make_config: MakeConfig) -> Subject:
    return make_subject(make_hvae(make_config(inference=request.param), (8, 8, 1)))


@pytest.fixture(scope="module")
def one_layer(make_config: MakeConfig) -> Subject:
    config = make_config(latent_shapes=((3,),), likelihood="gaussian_learned_std")
    return make_subject(make_hvae(config, (8, 8, 1)))


# Shapes


@pytest.mark.parametrize(
    ("inference", "image_shape", "num_stages", "latent_shapes", "likelihood"),
    [
        ("generalized_top_down", (8, 8, 1), 1, ((3,),), "bernoulli"),
        ("ladder", (8, 8, 3), 1, ((4, 4, 2),), "logistic_mixture"),
        ("ladder", (8, 8, 3), 2, ((4, 4, 2), (2, 2, 3)), "gaussian_learned_std"),
        ("generalized_top_down", (28, 28, 1), 3, ((5,), (4,)), "logistic_mixture"),
        ("generalized_top_down", (28, 20, 4), 3, ((14, 10, 1), (7, 5, 2), (3,)), "gaussian_fixed_std"),
        ("ladder", (28, 28, 1), 3, ((14, 14, 1), (4,), (3,)), "bernoulli"),
        (
            "generalized_top_down",
            (32, 32, 3),
            3,
            ((16, 16, 2), (8, 8, 2), (4, 4, 2), (3,)),
            "logistic_mixture",
        ),
        ("ladder", (32, 48, 2), 3, ((6,), (5,), (4,), (3,)), "logistic_mixture"),
        ("generalized_top_down", (64, 64, 1), 4, ((32, 32, 1), (4, 4, 2), (4,), (3,)), "bernoulli"),
        ("ladder", (64, 64, 3), 4, ((8, 8, 2), (8, 8, 2), (4, 4, 2)), "gaussian_fixed_std"),
    ],
)
def test_shapes(
    make_config: MakeConfig,
    inference: str,
    image_shape: tuple[int, int, int],
    num_stages: int,
    latent_shapes: tuple[tuple[int, ...], ...],
    likelihood: str,
):
    config = make_config(
        inference=inference, num_stages=num_stages, latent_shapes=latent_shapes, likelihood=likelihood
    )
    model = make_hvae(config, image_shape)
    num_layers = len(latent_shapes)
    assert model.num_layers == num_layers
    params, terms = shapes_of(model, batch=3)
    assert terms.distortion.shape == (3,)
    assert terms.rates.shape == (3, num_layers)
    assert ("log_std" in params["params"]) == (likelihood == "gaussian_learned_std")
    x, key = jax.ShapeDtypeStruct((3, *image_shape), jnp.float32), jax.random.key(0)

    def others(params: Any, x: jax.Array) -> Any:
        return (
            model.apply(params, x, key, method="encode"),
            model.apply(params, x, key, method="log_weight"),
            model.apply(params, x, num_layers, method="reconstruct"),
            model.apply(params, key, 3, method="sample"),
        )

    codes, log_weight, reconstruction, samples = jax.eval_shape(others, params, x)
    assert [[leaf.shape for leaf in code] for code in codes] == [[(3, *shape)] * 3 for shape in latent_shapes]
    assert log_weight.shape == (3,)
    assert reconstruction.shape == samples.shape == (3, *image_shape)


def test_images_of_another_shape_raise(two_layers: Subject):
    for shape in ((2, 8, 8, 3), (2, 12, 12, 1), (8, 8, 1)):
        with pytest.raises(ValueError, match=r"\[B, 8, 8, 1\]") as caught:
            two_layers.model.apply(two_layers.params, jnp.zeros(shape), jax.random.key(0))
        assert str(shape) in str(caught.value)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_images_of_integers_raise(two_layers: Subject, dtype: type):
    model, params, x = two_layers.model, two_layers.params, np.zeros((2, 8, 8, 1), dtype)
    key = jax.random.key(0)
    calls: list[Callable[[], Any]] = [
        lambda: model.apply(params, x, key),
        lambda: model.apply(params, x, key, method="log_weight"),
        lambda: model.apply(params, x, key, method="encode"),
        lambda: model.apply(params, x, method="reconstruct"),
        lambda: model.init(key, x, key),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"x has dtype {np.dtype(dtype).name}, .*divide .* by 255"):
            call()


# Rates and draws


def draw_keys(seed: int, num: int = NUM) -> jax.Array:
    return jax.random.split(jax.random.key(seed), num)


def test_rates_are_the_mean_log_ratio(two_layers: Subject):
    """E log q(z|x) − log p(z) by Monte Carlo, layer by layer and through the importance weight."""
    result = two_layers.everything(two_layers.params, two_layers.x, draw_keys(3))
    rates = np.asarray(result.terms.rates, np.float64)
    assert (rates.mean(axis=0) > 0.1).all()
    for index, layer in enumerate(result.layers):
        log_ratio = distributions.log_prob(layer.q, layer.z) - distributions.log_prob(layer.p, layer.z)
        assert_zero_mean(rates[:, index] - np.asarray(log_ratio, np.float64))
    # With z the same in both, what is left of D + ΣR + log w is ΣR − Σ (log q − log p).
    distortion = np.asarray(result.terms.distortion, np.float64)
    assert_zero_mean(distortion + rates.sum(axis=1) + np.asarray(result.log_weight, np.float64))


def assert_zero_mean(differences: np.ndarray) -> None:
    """Within 5 standard errors, which are not zero."""
    standard_error = differences.std(ddof=1) / math.sqrt(len(differences))
    assert standard_error > 1e-3
    assert abs(differences.mean()) < 5.0 * standard_error


def test_an_image_does_not_depend_on_its_batch(two_layers: Subject):
    """Neither on the images beside it, nor on their keys, nor on its place."""
    x, keys = np.asarray(images(two_layers.model, 2 * NUM)), draw_keys(4, 2 * NUM)
    # Two images of the first batch, moved into a batch that is otherwise the second.
    moved = np.arange(NUM, 2 * NUM)
    moved[[700, 3]] = [0, 1]
    whole = two_layers.everything(two_layers.params, x[:NUM], keys[:NUM])
    again = two_layers.everything(two_layers.params, x[moved], keys[moved])
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(np.asarray(a)[:2], np.asarray(b)[[700, 3]], rtol=1e-5, atol=1e-5)
    assert (np.abs(whole.terms.distortion[2:] - again.terms.distortion[2:]) > 1e-3).mean() > 0.9


def test_draws_follow_the_keys(two_layers: Subject):
    """Equal images with different keys get different draws, and the same key the same draw."""
    x = np.tile(two_layers.x[:1], (NUM, 1, 1, 1))
    keys = draw_keys(5)
    keys = keys[np.arange(NUM) // 2]
    for code in two_layers.everything(two_layers.params, x, keys).codes:
        z = np.asarray(code.sample).reshape(NUM, -1)
        np.testing.assert_allclose(z[::2], z[1::2], rtol=1e-5, atol=1e-5)
        assert (np.ptp(z, axis=0) > 1.0 * np.asarray(code.std).reshape(NUM, -1).min(axis=0)).all()


def test_layers_draw_independently(two_layers: Subject):
    """The noise of z_1 says nothing of that of z_2."""
    codes = two_layers.everything(two_layers.params, two_layers.x, draw_keys(7)).codes
    noise = [np.asarray((code.sample - code.mean) / code.std, np.float64).reshape(NUM, -1) for code in codes]
    correlation = noise[0].T @ noise[1] / NUM
    assert (np.abs(correlation) < 5.0 / math.sqrt(NUM)).all()


def test_encode_is_what_the_terms_are_made_of(two_layers: Subject):
    result = two_layers.everything(two_layers.params, two_layers.x, draw_keys(8))
    for code, layer in zip(result.codes, result.layers, strict=True):
        q: Any = layer.q
        np.testing.assert_array_equal(code.mean, q.mean)
        np.testing.assert_array_equal(code.std, q.std)
        np.testing.assert_array_equal(code.sample, layer.z)
    mean, std = (np.asarray(field, np.float64) for field in result.codes[1][:2])
    top_rate = 0.5 * (mean**2 + std**2 - 1.0).sum(axis=1) - np.log(std).sum(axis=1)
    np.testing.assert_allclose(result.terms.rates[:, 1], top_rate, rtol=1e-4, atol=1e-5)
    std = two_layers.model.config.likelihood_std
    log_likelihood = scipy.stats.norm.logpdf(
        np.asarray(two_layers.x), np.asarray(result.decoded, np.float64), std
    )
    np.testing.assert_allclose(
        result.terms.distortion, -log_likelihood.reshape(NUM, -1).sum(axis=1), rtol=1e-4
    )


def test_only_a_ladders_lower_posterior_is_surer_than_the_prior(two_layers: Subject):
    """A product of two Gaussians is narrower than either; a network of its own need not be."""
    lower: Any = two_layers.everything(two_layers.params, two_layers.x, draw_keys(9)).layers[0]
    narrower = np.asarray(lower.q.std < lower.p.std)
    assert narrower.all() == (two_layers.model.config.inference == "ladder")


def test_learned_std(one_layer: Subject):
    """exp(soft_floor(log_std)) is the σ that the distortion is taken with, and it starts as configured."""
    model, x = one_layer.model, one_layer.x
    for log_std in (0.0, -1.5, -50.0):
        params = perturb(one_layer.params, "log_std", lambda leaf, value=log_std: jnp.full_like(leaf, value))
        result = one_layer.everything(params, x, draw_keys(10))
        std = math.exp(-6.0 + np.logaddexp(0.0, log_std + 6.0))
        log_likelihood = scipy.stats.norm.logpdf(np.asarray(x), np.asarray(result.decoded, np.float64), std)
        expected = -log_likelihood.reshape(NUM, -1).sum(axis=1)
        np.testing.assert_allclose(result.terms.distortion, expected, rtol=1e-4)
    start = quick_jit(lambda key: model.init(key, x[:1], key)["params"]["log_std"])(jax.random.key(0))
    assert start.shape == ()
    np.testing.assert_allclose(start, math.log(model.config.likelihood_std), rtol=1e-6)


# Reconstructions and samples


def test_reconstruction_by_one_layer_decodes_its_mean(one_layer: Subject):
    model, params, x = one_layer.model, one_layer.params, one_layer.x
    code = one_layer.everything(params, x, draw_keys(11)).codes[0]
    decoded = quick_jit(lambda params, z_1: model.apply(params, z_1, method="decode"))(params, code.mean[:4])
    (reconstruction,) = one_layer.reconstruct(params, x[:4])
    np.testing.assert_allclose(reconstruction, decoded, rtol=1e-5, atol=1e-5)


def test_reconstruction_from_the_top_needs_no_lower_posterior(two_layers: Subject):
    x = two_layers.x[:4]
    changed = perturb(two_layers.params, "posterior_0", lambda leaf: leaf + 0.3)
    before, after = (two_layers.reconstruct(params, x) for params in (two_layers.params, changed))
    np.testing.assert_array_equal(before[1], after[1])
    assert np.abs(np.asarray(before[0] - after[0])).max() > 0.01
    # Both read the posterior of the top layer, and only the one from the top needs the prior's mean.
    changed = perturb(two_layers.params, "posterior_1", lambda leaf: leaf + 0.3)
    after = two_layers.reconstruct(changed, x)
    assert min(np.abs(np.asarray(a - b)).max() for a, b in zip(before, after, strict=True)) > 0.01


@pytest.mark.parametrize("from_layer", [0, 3, -1])
def test_reconstruction_from_no_such_layer_raises(two_layers: Subject, from_layer: int):
    with pytest.raises(ValueError, match=f"1 … 2, got {from_layer}"):
        two_layers.model.apply(two_layers.params, two_layers.x[:1], from_layer, method="reconstruct")


def test_samples_at_temperature_zero_are_all_the_same(two_layers: Subject):
    params, (zero, one) = two_layers.params, (np.zeros(2), np.ones(2))
    cold = [np.asarray(two_layers.sample(params, jax.random.key(seed), zero)) for seed in (0, 1)]
    np.testing.assert_array_equal(cold[0], cold[1])
    np.testing.assert_allclose(cold[0], np.tile(cold[0][:1], (4, 1, 1, 1)), rtol=1e-6, atol=1e-6)
    warm = [np.asarray(two_layers.sample(params, jax.random.key(seed), one)) for seed in (0, 1)]
    assert np.abs(warm[0] - warm[1]).max() > 0.1
    assert np.abs(warm[0][0] - warm[0][1]).max() > 0.1


def test_temperature_of_each_layer(two_layers: Subject):
    key, sample = jax.random.key(2), two_layers.sample
    # With a prior of z_1 that no longer reads z_2, only the first temperature is left to matter.
    cut = perturb(two_layers.params, "prior_0", jnp.zeros_like)
    images_of = {pair: np.asarray(sample(cut, key, np.array(pair))) for pair in ((0.0, 1.0), (1.0, 0.0))}
    np.testing.assert_allclose(images_of[0.0, 1.0][1:], images_of[0.0, 1.0][:-1], rtol=1e-5, atol=1e-5)
    assert np.abs(images_of[1.0, 0.0][1:] - images_of[1.0, 0.0][:-1]).max() > 0.1
    # And with the prior that does, the second alone makes a difference.
    upper = np.asarray(sample(two_layers.params, key, np.array([0.0, 1.0])))
    assert np.abs(upper[1:] - upper[:-1]).max() > 0.01


def test_one_temperature_is_that_of_every_layer(one_layer: Subject):
    key, sample = jax.random.key(3), one_layer.sample
    once = np.asarray(sample(one_layer.params, key, 0.5))
    np.testing.assert_allclose(once, sample(one_layer.params, key, np.array([0.5])), rtol=1e-5, atol=1e-5)
    assert np.abs(once - sample(one_layer.params, key, 1.0)).max() > 0.01


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 2), (4, 1, 1, 1)], ids=str)
def test_temperatures_of_another_shape_raise(two_layers: Subject, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"\[2\]") as caught:
        two_layers.model.apply(two_layers.params, jax.random.key(0), 2, np.ones(shape), method="sample")
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("likelihood", ["bernoulli", "logistic_mixture", "gaussian_fixed_std"])
def test_drawn_pixels_have_the_sampled_means(make_config: MakeConfig, likelihood: str):
    """Latents held at their means, so that all images share p(x|z): its mean is what `sample` gives."""
    model = make_hvae(make_config(likelihood=likelihood, latent_shapes=((3,),)), (8, 8, 1))
    params, cold = random_params(model), 0.0
    apply: Callable[..., Any] = model.apply
    both = quick_jit(
        lambda key: [
            apply(params, key, num, cold, method=method) for num, method in ((1000, "draw"), (2, "sample"))
        ]
    )
    x, mean = (np.asarray(leaf, np.float64) for leaf in both(jax.random.key(1)))
    np.testing.assert_allclose(mean[0], mean[1], rtol=1e-6)
    assert (x.std(axis=0) > 0.0).any()
    standard_error = x.std(axis=0, ddof=1) / math.sqrt(len(x)) + 1e-6
    if likelihood == "bernoulli":
        assert set(np.unique(x)) == {0.0, 1.0}
        standard_error = np.sqrt(mean[0] * (1.0 - mean[0]) / len(x))
    if likelihood == "logistic_mixture":
        assert (np.abs(x * 255 - np.round(x * 255)) < 1e-3).all()
        assert (x.min() >= 0.0, x.max() <= 1.0) == (True, True)
    if likelihood == "gaussian_fixed_std":
        assert x.min() < 0.0  # not clipped
        assert (np.abs(x.std(axis=0) / 0.5 - 1.0) < 5.0 / math.sqrt(2 * len(x))).all()
    assert (np.abs(x.mean(axis=0) - mean[0]) < 5.0 * standard_error).all()


def test_drawn_images_have_the_latents_of_the_samples(make_config: MakeConfig):
    """With a pixel noise of next to nothing, what is drawn is what is sampled at the same key."""
    model = make_hvae(make_config(likelihood_std=1e-6), (8, 8, 1))
    params, key = random_params(model), jax.random.key(4)
    apply: Callable[..., Any] = model.apply
    both = quick_jit(lambda t: [apply(params, key, 4, t, method=method) for method in ("sample", "draw")])
    for temperature in (np.ones(2), np.array([0.3, 1.0])):
        means, drawn = map(np.asarray, both(temperature))
        assert np.abs(means[1:] - means[:-1]).max() > 0.01
        np.testing.assert_allclose(drawn, means, atol=2e-5)
    with pytest.raises(ValueError, match=r"\[2\]"):
        apply(params, key, 4, np.ones(3), method="draw")
