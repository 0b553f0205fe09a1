"""Layers that are not Gaussian: models whose log p(x) is known, and the published networks with them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from linear_gaussian import SIGMA, B, S

from hvae_jax import Categorical, Gaussian, GaussianPixels, Hierarchy, Mixture, RunError, make_hvae
from hvae_jax.categorical import Relaxation, uniform
from hvae_jax.distributions import Distribution
from hvae_jax.models import blocks
from hvae_jax.models.hierarchy import CategoricalCode, Code

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

MEANS = np.asarray([-1.5, 0.2, 1.1])
LOG_WEIGHTS = np.log(np.asarray([0.2, 0.5, 0.3]))
X = jnp.asarray([[-2.0], [0.3], [1.7]])
NUM = 10_000


class Clusters:
    """p(z_2) uniform over three values, p(z_1|z_2) = N(MEANS[z_2], S²), x = B z_1 + noise.

    q(z_1|z_2, x) is exact, q(z_2|x) where `log_tilt` is 0.
    """

    num_layers = 2

    def __init__(self, log_tilt: jax.Array | float = 0.0) -> None:
        self.log_tilt = jnp.stack([jnp.asarray(log_tilt), jnp.zeros(()), jnp.zeros(())])

    def bottom_up(self, x: jax.Array) -> jax.Array:
        return x

    def start(self, batch_size: int) -> jax.Array:
        return jnp.zeros((batch_size, 3))

    def prior(self, layer: int, state: jax.Array) -> tuple[Distribution, jax.Array]:
        if layer == 2:
            return uniform(state.shape), state
        mean = (state * jnp.asarray(MEANS, jnp.float32)[None]).sum(axis=1, keepdims=True)
        return Gaussian(mean, jnp.full_like(mean, S)), state

    def posterior(self, layer: int, state: jax.Array, features: jax.Array, p: Any) -> Distribution:
        if layer == 2:
            error = features - B * jnp.asarray(MEANS, jnp.float32)[None]
            return Categorical(-0.5 * error**2 / (SIGMA**2 + B**2 * S**2) + self.log_tilt[None])
        precision = 1 / S**2 + B**2 / SIGMA**2
        mean = (p.mean / S**2 + B / SIGMA**2 * features) / precision
        return Gaussian(mean, jnp.full_like(mean, precision**-0.5))

    def below(self, layer: int, state: jax.Array, z: jax.Array) -> jax.Array:
        return z

    def outputs(self, state: jax.Array) -> jax.Array:
        return B * state


class Lumps(Clusters):
    """p(z_1) = Σ_m w_m N(MEANS[m], S²), one layer; the exact posterior is a mixture, too."""

    num_layers = 1

    def prior(self, layer: int, state: jax.Array) -> tuple[Distribution, jax.Array]:
        mean = jnp.broadcast_to(jnp.asarray(MEANS, jnp.float32)[None, :, None], (len(state), 3, 1))
        logits = jnp.broadcast_to(jnp.asarray(LOG_WEIGHTS, jnp.float32)[None], (len(state), 3))
        return Mixture(logits, mean, jnp.full_like(mean, S)), state

    def posterior(self, layer: int, state: jax.Array, features: jax.Array, p: Any) -> Distribution:
        error = features - B * p.mean[:, :, 0]
        precision = 1 / S**2 + B**2 / SIGMA**2
        mean = (p.mean / S**2 + B / SIGMA**2 * features[:, None]) / precision
        std = jnp.full_like(mean, precision**-0.5)
        return Mixture(p.logits - 0.5 * error**2 / (SIGMA**2 + B**2 * S**2), mean, std)


def log_joint(x: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """log w_m + log p(x|m), `[N, 3]`."""
    return log_weights + scipy.stats.norm.logpdf(x[:, None], B * MEANS, np.sqrt(SIGMA**2 + B**2 * S**2))


@pytest.mark.parametrize(
    ("networks", "log_weights"), [(Clusters(), np.full(3, -np.log(3))), (Lumps(), LOG_WEIGHTS)]
)
def test_with_the_exact_posterior_every_importance_weight_is_the_evidence(networks, log_weights):
    model = Hierarchy(networks, GaussianPixels(SIGMA))
    expected = scipy.special.logsumexp(log_joint(np.asarray(X[:, 0]), log_weights), axis=1)
    log_weight = quick_jit(model.log_weight)
    for seed in range(3):
        np.testing.assert_allclose(log_weight(X, jax.random.key(seed)), expected, rtol=1e-4)
    terms = quick_jit(model.terms)(jnp.repeat(X, NUM, axis=0), jax.random.key(0))
    elbo = -np.asarray(terms.distortion + terms.rates.sum(axis=1), np.float64).reshape(3, NUM)
    error = elbo.std(axis=1, ddof=1) / np.sqrt(NUM)
    # A Monte Carlo rate under the exact posterior does not even vary: only rounding is left.
    assert (np.abs(elbo.mean(axis=1) - expected) < 5 * error + 1e-5).all()


def test_the_elbo_of_another_posterior_is_lower_by_its_divergence():
    """log p(x) − ELBO = KL[q(z_2|x) ‖ p(z_2|x)], enumerated; and R_2 = log 3 − H[q]."""
    model = Hierarchy(Clusters(log_tilt=1.5), GaussianPixels(SIGMA))
    x = np.asarray(X[:, 0], np.float64)
    joint = log_joint(x, np.full(3, -np.log(3)))
    evidence = scipy.special.logsumexp(joint, axis=1)
    q = scipy.special.softmax(joint + np.asarray([1.5, 0.0, 0.0]), axis=1)
    gap = scipy.special.rel_entr(q, np.exp(joint - evidence[:, None])).sum(axis=1)
    terms = quick_jit(model.terms)(jnp.repeat(X, NUM, axis=0), jax.random.key(0))
    elbo = -np.asarray(terms.distortion + terms.rates.sum(axis=1), np.float64).reshape(3, NUM)
    error = elbo.std(axis=1, ddof=1) / np.sqrt(NUM)
    assert (np.abs(elbo.mean(axis=1) - (evidence - gap)) < 5 * error).all()
    rate = np.log(3) - scipy.stats.entropy(q, axis=1)
    np.testing.assert_allclose(terms.rates[::NUM, 1], rate, rtol=1e-4)


def test_codes_and_latents_that_are_set():
    model, key = Hierarchy(Clusters(), GaussianPixels(SIGMA)), jax.random.key(0)

    def ask(key: jax.Array) -> Any:
        made = model.generate(key, 2, latents={2: jnp.asarray([0.0, 0.0, 1.0])}, temperature=0.0)
        return model.encode(X, key), model.encode(X, key, 0.0), made.mean

    (low, top), (_, at_zero), mean = quick_jit(ask)(key)
    assert isinstance(low, Code)
    assert isinstance(top, CategoricalCode)
    probs = scipy.special.softmax(log_joint(np.asarray(X[:, 0]), np.zeros(3)), axis=1)
    np.testing.assert_allclose(top.mean, probs, rtol=1e-4)
    np.testing.assert_array_equal(np.sort(top.sample, axis=1), [[0.0, 0.0, 1.0]] * 3)
    np.testing.assert_array_equal(at_zero.sample, np.eye(3)[probs.argmax(axis=1)])
    np.testing.assert_allclose(mean, np.full((2, 1), B * MEANS[2]), rtol=1e-6)
    (code,) = quick_jit(Hierarchy(Lumps(), GaussianPixels(SIGMA)).encode)(X, key)
    assert isinstance(code, Code)
    assert code.std.shape == (3, 1)


def touched(gradients: Any) -> set[str]:
    """Networks whose parameters have a gradient that is not 0."""
    groups = gradients["params"].items()
    return {name for name, tree in groups if any(np.asarray(leaf).any() for leaf in jax.tree.leaves(tree))}


@pytest.mark.long
@pytest.mark.parametrize("inference", ["generalized_top_down", "ladder"])
def test_published_networks_with_a_categorical_top_layer(make_config, inference):
    shapes = {"latent_shapes": ((4, 4, 2), (2, 3)), "latent_kinds": ("gaussian", "categorical")}
    model = make_hvae(make_config(inference=inference, gumbel_hard=True, **shapes), (8, 8, 1))
    x, key = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1)), jax.random.key(0)
    params = quick_jit(model.init)(key, x, key)

    def relaxed(params: Any) -> Any:
        return model.apply(params, x, key, 0.5)

    def ask(params: Any) -> Any:
        codes = model.apply(params, x, key, method="encode")
        of_distortion = jax.grad(lambda p: relaxed(p).distortion.sum())(params)
        of_rate = jax.grad(lambda p: relaxed(p).rates[:, 1].sum())(params)
        return codes, model.apply(params, x, key), relaxed(params), of_distortion, of_rate

    (_, code), exact, hard, of_distortion, of_rate = quick_jit(ask)(params)
    for a, b in zip(exact, hard, strict=True):  # straight-through: the same values
        np.testing.assert_allclose(a, b, rtol=1e-6)
    probs = np.asarray(code.probs, np.float64)
    assert probs.shape == (4, 2, 3)
    rate = (np.log(3) - scipy.stats.entropy(probs, axis=-1)).sum(axis=1)
    np.testing.assert_allclose(exact.rates[:, 1], rate, rtol=1e-3, atol=1e-6)
    shared = {"bottom_up_0", "bottom_up_1"} if inference == "ladder" else set()
    assert touched(of_rate) == {"posterior_1"} | shared
    assert "posterior_1" in touched(of_distortion)  # through the relaxed draw


@pytest.mark.long
def test_published_networks_with_a_mixture_prior(make_config):
    model = make_hvae(make_config(top_prior="mixture", num_prior_components=3), (8, 8, 1))
    x, key = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1)), jax.random.key(0)
    params = quick_jit(model.init)(key, x, key)
    sizes = {name: leaf.shape for name, leaf in params["params"].pop("prior_1").items()}
    assert sizes == {"logits": (3,), "mean": (3, 3), "raw_std": (3, 3)}
    plain = make_hvae(make_config(), (8, 8, 1))
    expected = jax.eval_shape(plain.init, key, x, key)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected)
    # One component, the standard normal: what is without it, up to the rate's noise.
    model = make_hvae(make_config(top_prior="mixture", num_prior_components=1), (8, 8, 1))
    one = {"logits": jnp.zeros(1), "mean": jnp.zeros((1, 3)), "raw_std": jnp.full((1, 3), np.log(np.e - 1))}
    both = {"params": {**params["params"], "prior_1": one}}

    def compare(params: Any) -> Any:
        return model.apply(params, x, key), model.apply(params, x, key, method="infer")

    with_one, (_, top) = quick_jit(compare)(both)
    without = quick_jit(plain.apply)(params, x, key)
    np.testing.assert_allclose(with_one.distortion, without.distortion, rtol=1e-6)
    np.testing.assert_allclose(with_one.rates[:, 0], without.rates[:, 0], rtol=1e-6)
    ratio = scipy.stats.norm.logpdf(top.z, top.q.mean, top.q.std) - scipy.stats.norm.logpdf(top.z)
    np.testing.assert_allclose(with_one.rates[:, 1], ratio.sum(axis=1), rtol=1e-3, atol=1e-4)

    def rate(params: Any) -> jax.Array:
        terms: Any = model.apply(params, x, key)
        return terms.rates[:, 1].sum()

    assert touched(quick_jit(jax.grad(rate))(both)) == {"posterior_1", "prior_1"}


@pytest.mark.long
def test_deep_networks_with_a_mixture_prior(make_config):
    """A mixture for z_L alone, of two layers of its side: all but R_L is as without it."""
    changes = {
        "inference": "deep",
        "latent_shapes": ((4, 4, 2), (4, 4, 2), (1, 1, 3), (1, 1, 3)),
        "num_prior_components": 2,
    }
    model = make_hvae(make_config(**changes, top_prior="mixture"), (8, 8, 1))
    plain = make_hvae(make_config(**changes), (8, 8, 1))
    x, key = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1)), jax.random.key(0)
    params = quick_jit(model.init)(key, x, key)
    sizes = {name: leaf.shape for name, leaf in params["params"].pop("top_prior").items()}
    assert sizes == {"logits": (2,), "mean": (2, 1, 1, 3), "raw_std": (2, 1, 1, 3)}
    expected = jax.eval_shape(plain.init, key, x, key)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, expected)

    generator = np.random.default_rng(0)
    mean = generator.normal(size=(2, 1, 1, 3)).astype(np.float32)
    raw = np.full((2, 1, 1, 3), 0.3, np.float32)
    mixed = {"logits": jnp.asarray([0.5, -0.5]), "mean": mean, "raw_std": raw}
    both = {"params": {**params["params"], "top_prior": mixed}}

    def compare(params: Any) -> Any:
        drawn = model.apply(params, key, 2000, method="sample")
        return model.apply(params, x, key), model.apply(params, x, key, method="infer"), drawn

    terms, layers, drawn = quick_jit(compare)(both)
    without = quick_jit(plain.apply)(params, x, key)
    np.testing.assert_allclose(terms.distortion, without.distortion, rtol=1e-5)
    np.testing.assert_allclose(terms.rates[:, :3], without.rates[:, :3], rtol=1e-4, atol=1e-6)
    top = layers[-1]
    std = np.logaddexp(0.0, raw) + blocks.MIN_STD
    z = np.asarray(top.z)[:, None]
    log_weights = scipy.special.log_softmax([0.5, -0.5])
    parts = scipy.stats.norm.logpdf(z, mean[None], std[None]).sum(axis=(2, 3, 4)) + log_weights
    log_q = scipy.stats.norm.logpdf(top.z, top.q.mean, top.q.std).sum(axis=(1, 2, 3))
    rate = log_q - scipy.special.logsumexp(parts, axis=1)
    np.testing.assert_allclose(terms.rates[:, 3], rate, rtol=1e-3, atol=1e-4)
    assert drawn.shape == (2000, 8, 8, 1)

    def rate_of_top(params: Any) -> jax.Array:
        terms: Any = model.apply(params, x, key)
        return terms.rates[:, 3].sum()

    grads = quick_jit(jax.grad(rate_of_top))(both)["params"]
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["top_prior"]))
    moved = {name for name, tree in grads.items() if any(np.abs(g).max() > 0 for g in jax.tree.leaves(tree))}
    # The prior of z_L sees nothing; its posterior the features of the image and the start.
    assert moved == {"top_prior", "input", "bottom_up_4", "bottom_up_1", "top_down_1", "start_1"}
    assert not any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["top_down_1"]["prior"]))


def test_only_a_relaxed_draw_lets_the_distortion_move_the_posterior_above():
    """The layers below see z_2, nothing else of q(z_2|x); and R_2 does not depend on the relaxation."""

    def terms(log_tilt: jax.Array, relaxation: Relaxation | None) -> Any:
        model = Hierarchy(Clusters(log_tilt), GaussianPixels(SIGMA))
        return model.terms(X, jax.random.key(0), relaxation)

    def slopes(log_tilt: jax.Array) -> Any:
        return [jax.jacfwd(terms)(log_tilt, relaxation) for relaxation in (None, Relaxation(0.7))]

    exact, soft = quick_jit(slopes)(jnp.asarray(0.5))
    np.testing.assert_array_equal(exact.distortion, 0.0)
    np.testing.assert_array_equal(exact.rates[:, 0], 0.0)
    assert np.abs(soft.distortion).min() > 0
    np.testing.assert_array_equal(exact.rates[:, 1], soft.rates[:, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_kinds": ("gaussian",)}, "has 1 entries for the 2 layers"),
        ({"latent_kinds": ("gaussian", "binary")}, "must hold one of"),
        ({"latent_kinds": "categorical"}, "must hold one of"),
        ({"latent_kinds": ("categorical", "gaussian")}, "only the top layer"),
        ({"latent_kinds": ("gaussian", "categorical"), "inference": "deep"}, "only the top layer"),
        (
            {"latent_kinds": ("gaussian", "categorical"), "latent_shapes": ((4, 4, 2), (1,))},
            "with 2 values or more",
        ),
        ({"latent_shapes": ((4, 4, 2), (2, 3))}, "each .dims,."),
        ({"gumbel_hard": 1}, "gumbel_hard=1 must be True or False"),
        ({"gumbel_schedule": (0.007, 0.0)}, "lowest temperature"),
        ({"gumbel_schedule": 0.4}, "lowest temperature"),
        ({"top_prior": "flow"}, "choose one of"),
        (
            {
                "top_prior": "mixture",
                "latent_kinds": ("gaussian", "categorical"),
                "latent_shapes": ((4, 4, 2), (3,)),
            },
            "of a Gaussian top layer",
        ),
        ({"num_prior_components": 0}, "num_prior_components=0"),
    ],
)
def test_configs_that_are_refused(make_config, changes, message):
    with pytest.raises(RunError, match=message):
        make_config(**changes)
