"""The engine on networks that are no module: a linear-Gaussian model in closed form, scanned layers."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from linear_gaussian import MATCHED_V, SIGMA, A, B, S

from hvae_jax import Bernoulli, GaussianPixels, distributions
from hvae_jax.gaussian import Gaussian
from hvae_jax.models.hierarchy import Hierarchy
from hvae_jax.models.walk import RepeatedLayers

# What is compiled here runs once or twice: most of LLVM's optimisation would not pay.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# Of the exact posterior: q(z_2|x) = N(M x, 1 / PRECISION_2), q(z_1|z_2, x) = N(A z_2 + G (x − A B z_2), …).
PRECISION_1 = 1 / S**2 + B**2 / SIGMA**2
PRECISION_2 = 1 + A**2 * B**2 / (SIGMA**2 + B**2 * S**2)
G = B / (SIGMA**2 * PRECISION_1)
M = A * B / ((SIGMA**2 + B**2 * S**2) * PRECISION_2)
NUM = 20_000


class LinearGaussian:
    """p(z_2) = N(0, 1), p(z_1|z_2) = N(A z_2, S²), x = B z_1 + noise; the posteriors are exact."""

    num_layers = 2

    def bottom_up(self, x: jax.Array) -> jax.Array:
        return x

    def start(self, batch_size: int) -> jax.Array:
        return jnp.zeros((batch_size, 1))

    def prior(self, layer: int, state: jax.Array) -> tuple[Gaussian, jax.Array]:
        return gaussian(A * state, S if layer == 1 else 1.0), state

    def posterior(self, layer: int, state: jax.Array, features: jax.Array, p: Gaussian) -> Gaussian:
        if layer == 2:
            return gaussian(M * features, PRECISION_2**-0.5)
        return gaussian(p.mean + G * (features - B * p.mean), PRECISION_1**-0.5)

    def below(self, layer: int, state: jax.Array, z: jax.Array) -> jax.Array:
        return z

    def outputs(self, state: jax.Array) -> jax.Array:
        return B * state


def gaussian(mean: jax.Array, std: float) -> Gaussian:
    return Gaussian(mean, jnp.full_like(mean, std))


LINEAR = Hierarchy(LinearGaussian(), GaussianPixels(SIGMA))
X = jnp.asarray([[-2.0], [0.3], [1.7]])


def test_with_the_exact_posterior_every_importance_weight_is_the_evidence():
    log_p = scipy.stats.norm.logpdf(np.asarray(X[:, 0]), scale=math.sqrt(MATCHED_V))
    log_weight = quick_jit(LINEAR.log_weight)
    for seed in range(3):
        np.testing.assert_allclose(log_weight(X, jax.random.key(seed)), log_p, rtol=1e-5)


def test_terms_are_those_of_the_closed_form():
    """D and both rates of one x, as METHOD has them before the mean over x."""
    value = 1.3
    x = jnp.full((NUM, 1), value)
    terms = quick_jit(LINEAR.terms)(x, jax.random.key(0))
    rate_2 = 0.5 * (1 / PRECISION_2 + (M * value) ** 2 - 1 + math.log(PRECISION_2))
    error = ((1 - A * B * M) * value) ** 2 + A**2 * B**2 / PRECISION_2
    rate_1 = 0.5 * (1 / (PRECISION_1 * S**2) + G**2 * error / S**2 - 1 + math.log(PRECISION_1 * S**2))
    noise = (1 - B * G) ** 2 * error + B**2 / PRECISION_1
    distortion = 0.5 * math.log(2 * math.pi * SIGMA**2) + noise / (2 * SIGMA**2)
    assert_mean(terms.distortion, distortion)
    assert_mean(terms.rates[:, 0], rate_1)
    np.testing.assert_allclose(terms.rates[:, 1], rate_2, rtol=1e-5)


def test_terms_above_a_layer_leave_the_lower_ones_to_the_prior():
    """L^{>1} in closed form, with z_1 drawn from p(z_1|z_2) and at its mean."""
    value = 1.3
    x, key = jnp.full((NUM, 1), value), jax.random.key(1)
    above = quick_jit(LINEAR.terms_above, static_argnums=(2, 3))
    whole = quick_jit(LINEAR.terms)(x, key)
    for temperature, variance in ((1.0, S**2), (0.0, 0.0)):
        terms = above(x, key, 1, temperature)
        squared = ((1 - A * B * M) * value) ** 2 + B**2 * (A**2 / PRECISION_2 + variance)
        assert_mean(terms.distortion, 0.5 * math.log(2 * math.pi * SIGMA**2) + squared / (2 * SIGMA**2))
        np.testing.assert_array_equal(terms.rates[:, 0], 0.0)
        np.testing.assert_array_equal(terms.rates[:, 1], whole.rates[:, 1])
    with pytest.raises(ValueError, match="0 … 2, got 3"):
        LINEAR.terms_above(x, key, 3)


def assert_mean(draws: jax.Array, expected: float) -> None:
    values = np.asarray(draws, np.float64)
    standard_error = values.std(ddof=1) / math.sqrt(len(values))
    assert 0 < abs(values.mean() - expected) < 5.0 * standard_error


def test_reconstructions_of_the_linear_model():
    np.testing.assert_allclose(LINEAR.reconstruct(X, 2), A * B * M * X, rtol=1e-5)
    z_1 = A * M * X + G * (X - A * B * M * X)
    np.testing.assert_allclose(LINEAR.reconstruct(X), B * z_1, rtol=1e-5)


def test_latents_that_are_set():
    key = jax.random.key(3)
    z_2 = jnp.asarray([0.5])
    at_means = LINEAR.generate(key, 4, latents={2: z_2}, temperature=0.0)
    np.testing.assert_allclose(at_means.mean, jnp.full((4, 1), A * B * 0.5), rtol=1e-6)
    assert np.ptp(np.asarray(at_means.draw)) > 0.01  # pixels keep their noise
    # The noise of z_1 is the same whatever z_2 is, one for all images or each its own.
    free = LINEAR.generate(key, 4)
    own = LINEAR.generate(key, 4, latents={2: jnp.arange(4.0)[:, None]})
    shared = LINEAR.generate(key, 4, latents={2: z_2})
    noise = [np.asarray(made.latents[0] - A * made.latents[1]) for made in (free, own, shared)]
    np.testing.assert_allclose(noise[1], noise[0], atol=1e-6)
    np.testing.assert_allclose(noise[2], noise[0], atol=1e-6)
    np.testing.assert_array_equal(own.latents[1][:, 0], np.arange(4.0))
    np.testing.assert_array_equal(shared.latents[1][:, 0], np.full(4, 0.5))
    # `sample` and `draw` are its fields; all latents set are what is decoded.
    np.testing.assert_array_equal(LINEAR.sample(key, 4, latents={2: z_2}), shared.mean)
    np.testing.assert_array_equal(LINEAR.draw(key, 4, latents={2: z_2}), shared.draw)
    np.testing.assert_array_equal(LINEAR.decode(shared.latents), shared.mean)


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        ({3: jnp.zeros(1)}, "1 … 2, got 3"),
        ({2: jnp.zeros(2)}, r"has shape \(2,\); it must be \(1,\), or \(4, 1\)"),
        ({1: jnp.zeros((3, 1))}, r"has shape \(3, 1\)"),
    ],
)
def test_latents_that_do_not_fit_raise(latents: dict[int, jax.Array], message: str):
    with pytest.raises(ValueError, match=message):
        LINEAR.generate(jax.random.key(0), 4, latents=latents)
    with pytest.raises(ValueError, match="2 layers, z_1 first, got 1"):
        LINEAR.decode([jnp.zeros((4, 1))])


def test_interpolation_moves_codes():
    x, y = X[:2], X[1:]
    weights = np.asarray([0.0, 0.25, 1.0])
    whole = LINEAR.interpolate(x, y, weights)
    np.testing.assert_allclose(whole[0], LINEAR.reconstruct(x), rtol=1e-6)
    np.testing.assert_allclose(whole[2], LINEAR.reconstruct(y), rtol=1e-6)
    codes = [(A * M + G * (1 - A * B * M)) * image for image in (x, y)]
    np.testing.assert_allclose(whole[1], B * (0.75 * codes[0] + 0.25 * codes[1]), rtol=1e-5)
    # The top layer alone, with z_1 at the prior's mean; z_1 alone, with z_2 as x has it.
    top = LINEAR.interpolate(x, y, weights, layer=2)
    np.testing.assert_allclose(top[1], A * B * M * (0.75 * x + 0.25 * y), rtol=1e-5)
    np.testing.assert_allclose(LINEAR.interpolate(x, y, weights, layer=1), whole, rtol=1e-5)
    wrong: list[Any] = [(x, X, weights), (x, y, 0.5), (x, y, weights, 3)]
    for arguments in wrong:
        with pytest.raises(ValueError, match=r"shape|weights must be|1 … 2, got 3"):
            LINEAR.interpolate(*arguments)


# Runs of equal layers


@dataclasses.dataclass
class Chain:
    """Layers that differ in their weights alone; a state becomes one wider between the runs."""

    all_weights: Any  # leaves lead with the layers, the top one first
    runs: tuple[tuple[int, int], ...]
    num_calls: list[int] = dataclasses.field(default_factory=lambda: [0])

    @property
    def num_layers(self) -> int:
        return self.runs[0][0]

    def weights(self, highest: int, lowest: int) -> Any:
        top = self.num_layers
        return jax.tree.map(lambda leaf: leaf[top - highest : top - lowest + 1], self.all_weights)

    def enter(self, highest: int, state: jax.Array) -> jax.Array:
        return jnp.pad(state, ((0, 0), (0, 1)))

    def bottom_up(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(x)

    def start(self, batch_size: int) -> jax.Array:
        return jnp.ones((batch_size, 2))

    def prior(self, layer: Any, state: jax.Array) -> tuple[Gaussian, tuple[jax.Array, jax.Array]]:
        self.num_calls[0] += 1
        width = state.shape[1]
        mean, log_std, rest = jnp.split(jnp.tanh(state @ layer["prior"][:width]), [2, 4], axis=1)
        return Gaussian(mean, jnp.exp(log_std)), (state, rest)

    def posterior(self, layer: Any, state: Any, features: jax.Array, p: Gaussian) -> Gaussian:
        read = jnp.concatenate([state[0], features], axis=1)
        mean, log_std = jnp.split(jnp.tanh(read @ layer["posterior"][: read.shape[1]]), 2, axis=1)
        return Gaussian(mean + p.mean, jnp.exp(log_std))

    def below(self, layer: Any, state: Any, z: jax.Array) -> jax.Array:
        width = state[0].shape[1]
        return state[0] + jnp.sin(state[1] @ layer["rest"][:, :width] + z @ layer["z"][:, :width])

    def outputs(self, state: jax.Array) -> jax.Array:
        return state[:, :3]


class Unrolled:
    """The same layers, one after another: not `RepeatedLayers`."""

    def __init__(self, chain: Chain):
        self.chain, self.num_layers = chain, chain.num_layers
        self.bottom_up, self.start, self.outputs = chain.bottom_up, chain.start, chain.outputs

    def prior(self, layer: int, state: Any) -> Any:
        if layer in [top for top, _ in self.chain.runs]:
            state = self.chain.enter(layer, state)
        return self.chain.prior(self.of(layer), state)

    def posterior(self, layer: int, state: Any, features: Any, p: Gaussian) -> Gaussian:
        return self.chain.posterior(self.of(layer), state, features, p)

    def below(self, layer: int, state: Any, z: jax.Array) -> Any:
        return self.chain.below(self.of(layer), state, z)

    def of(self, layer: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[0], self.chain.weights(layer, layer))


def make_chain(runs: tuple[tuple[int, int], ...]) -> Chain:
    rng, num = np.random.default_rng(0), runs[0][0]
    shapes = {"prior": (6, 8), "posterior": (9, 4), "rest": (4, 6), "z": (2, 6)}
    weights = {name: jnp.asarray(rng.normal(size=(num, *s)), jnp.float32) for name, s in shapes.items()}
    return Chain(weights, runs)


def test_scanned_layers_are_the_layers_one_after_another():
    chain = make_chain(((6, 6), (5, 3), (2, 1)))
    assert isinstance(chain, RepeatedLayers)
    x, key = jnp.asarray(np.random.default_rng(1).random((3, 3)), jnp.float32), jax.random.key(0)
    given = {6: jnp.ones(2), 4: jnp.ones((3, 2)), 3: jnp.zeros((3, 2)), 1: jnp.zeros(2)}
    temperatures = np.linspace(0.1, 1.0, 6)

    def everything(networks: Any, x: jax.Array) -> Any:
        model = Hierarchy(networks, Bernoulli())
        return {
            "terms": model.terms(x, key),
            "above": model.terms_above(x, key, 4, 0.5),
            "log_weight": model.log_weight(x, key),
            "infer": model.infer(x, key, temperatures),
            "reconstruct": model.reconstruct(x, 2),
            "set": model.generate(key, 3, given, 0.0),
            "own": model.generate(key, 3, given, temperatures),
        }

    scanned, unrolled = (
        quick_jit(functools.partial(everything, networks))(x) for networks in (chain, Unrolled(chain))
    )
    assert jax.tree.structure(scanned) == jax.tree.structure(unrolled)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(scanned), jax.tree.leaves(unrolled), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path))
    np.testing.assert_array_equal(scanned["set"].latents[3], np.ones((3, 2)))


def test_a_deeper_run_is_traced_no_more_often():
    calls = []
    for num_layers in (4, 40):
        chain = make_chain(((num_layers, num_layers), (num_layers - 1, 1)))
        jax.eval_shape(Hierarchy(chain, Bernoulli()).terms, jnp.zeros((2, 3)), jax.random.key(0))
        calls.append(chain.num_calls[0])
    assert calls[0] == calls[1] <= 4


@pytest.mark.parametrize("runs", [((3, 1),), ((12, 8), (7, 1))], ids=["3 layers", "12 layers"])
def test_rates_are_the_mean_log_ratio_of_many_layers(runs: tuple[tuple[int, int], ...]):
    """E log q(z|x) − log p(z) by Monte Carlo, layer by layer and through the importance weight."""
    model, x = Hierarchy(make_chain(runs), Bernoulli()), jnp.full((4000, 3), 0.7)

    @quick_jit
    def draw(x: jax.Array) -> Any:
        key = jax.random.key(5)
        log_prob, layers = distributions.log_prob, model.infer(x, key)
        ratios = [log_prob(layer.q, layer.z) - log_prob(layer.p, layer.z) for layer in layers]
        return model.terms(x, key), jnp.stack(ratios, axis=1), model.log_weight(x, key)

    terms, ratios, log_weight = jax.tree.map(lambda a: np.asarray(a, np.float64), draw(x))
    left = terms.distortion + terms.rates.sum(axis=1) + log_weight
    for differences in (*(terms.rates - ratios).T, left):
        standard_error = differences.std(ddof=1) / math.sqrt(len(x))
        assert standard_error > 1e-4
        assert abs(differences.mean()) < 5.0 * standard_error
