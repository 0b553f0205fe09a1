"""Categorical variables and mixtures against SciPy, enumeration and numerical integration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from hvae_jax import categorical, distributions, gaussian, mixture
from hvae_jax.categorical import Categorical, Relaxation
from hvae_jax.gaussian import Gaussian
from hvae_jax.mixture import Mixture

NUM = 20_000


def make_categorical(seed: int, shape: tuple[int, ...] = (3, 2, 4)) -> Categorical:
    return Categorical(jnp.asarray(2.0 * np.random.default_rng(seed).normal(size=shape), jnp.float32))


def log_probs(p: Categorical) -> np.ndarray:
    return scipy.special.log_softmax(np.asarray(p.logits, np.float64), axis=-1)


def make_mixture(batch: int, event: tuple[int, ...] = ()) -> Mixture:
    """The same mixture for all of the batch."""
    rng = np.random.default_rng(1)
    fields = rng.normal(size=3), 2.0 * rng.normal(size=(3, *event)), rng.uniform(0.3, 1.5, (3, *event))
    return Mixture(*(jnp.broadcast_to(jnp.asarray(f, jnp.float32)[None], (batch, *f.shape)) for f in fields))


def test_categorical_rate_is_the_sum_over_all_values():
    """KL and log-probabilities of two variables, over the 4 × 4 values that they take together."""
    q, p = make_categorical(0), make_categorical(1)
    rate = np.zeros(3)
    for values in itertools.product(range(4), range(4)):
        z = jnp.broadcast_to(jnp.eye(4)[jnp.asarray(values)][None], (3, 2, 4))
        log_q, log_p = (log_probs(of)[:, [0, 1], values].sum(axis=1) for of in (q, p))
        np.testing.assert_allclose(categorical.log_prob(q, z), log_q, rtol=1e-5)
        rate += np.exp(log_q) * (log_q - log_p)
    np.testing.assert_allclose(distributions.rate(q, p, q.logits), rate, rtol=1e-5)
    uniform = categorical.uniform((3, 2, 4))
    entropy = scipy.stats.entropy(np.exp(log_probs(q)), axis=-1).sum(axis=1)
    np.testing.assert_allclose(categorical.kl_divergence(q, uniform), 2 * np.log(4) - entropy, rtol=1e-5)
    np.testing.assert_array_equal(categorical.kl_divergence(q, q), 0.0)


def test_categorical_draws_have_their_probabilities():
    p = Categorical(jnp.broadcast_to(make_categorical(2, (1, 5)).logits, (NUM, 5)))
    expected = np.exp(log_probs(p)[0])
    for temperature in (1.0, 0.5):
        z = np.asarray(categorical.sample(jax.random.key(0), p, temperature))
        np.testing.assert_array_equal(np.sort(z, axis=1), np.eye(5)[[-1] * NUM])  # one-hot
        of_this = expected ** (1 / temperature) / np.sum(expected ** (1 / temperature))
        error = np.sqrt(of_this * (1 - of_this) / NUM)
        assert (np.abs(z.mean(axis=0) - of_this) < 5 * error).all()
    at_zero = distributions.sample(jax.random.key(0), p, jnp.float32(0.0))
    np.testing.assert_array_equal(at_zero, distributions.center(p))
    np.testing.assert_array_equal(at_zero.argmax(axis=1), expected.argmax())


def test_relaxed_draws_near_the_exact_ones_and_move_with_the_logits():
    """At a low temperature the soft draw is the exact one; the gradient is nearly that of the expectation."""
    q, key = Categorical(jnp.broadcast_to(jnp.asarray([0.5, -0.3, 0.1])[None], (NUM, 3))), jax.random.key(1)
    exact = categorical.sample(key, q)
    hard = categorical.relaxed_sample(key, q, Relaxation(0.7, is_hard=True))
    np.testing.assert_array_equal(hard, exact)
    cold = categorical.relaxed_sample(key, q, Relaxation(1e-3))
    assert np.mean(np.abs(cold - exact).max(axis=1) < 1e-3) > 0.98
    warm = categorical.relaxed_sample(key, q, Relaxation(0.7))
    np.testing.assert_allclose(warm.sum(axis=1), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(warm.argmax(axis=1), exact.argmax(axis=1))
    values = jnp.asarray([1.0, -2.0, 0.5])

    def mean_value(logits: jax.Array, relaxation: Relaxation) -> jax.Array:
        p = Categorical(jnp.broadcast_to(logits[None], (NUM, 3)))
        return (categorical.relaxed_sample(key, p, relaxation) * values[None]).sum(axis=1).mean()

    logits = q.logits[0]
    of_expectation = jax.grad(lambda logits: (jax.nn.softmax(logits) * values).sum())(logits)
    for relaxation in (Relaxation(0.1), Relaxation(0.1, is_hard=True)):
        found = jax.grad(mean_value)(logits, relaxation)
        assert float(jnp.abs(found - of_expectation).max()) < 0.1 * float(jnp.abs(of_expectation).max())


def test_the_temperature_falls_by_the_epoch_to_its_floor():
    found = categorical.anneal(np.asarray([0.0, 50.0, 1000.0]), 0.007, 0.4)
    np.testing.assert_allclose(found, [1.0, np.exp(-0.35), 0.4], rtol=1e-6)


def test_mixture_log_prob_is_scipys_and_its_moments_those_of_its_draws():
    p = make_mixture(NUM, (2,))
    weights, means, stds = (np.asarray(field[0], np.float64) for field in p)
    z = distributions.sample(jax.random.key(2), p)
    of_component = scipy.stats.norm.logpdf(np.asarray(z, np.float64)[:, None], means, stds).sum(axis=2)
    expected = scipy.special.logsumexp(of_component + scipy.special.log_softmax(weights), axis=1)
    np.testing.assert_allclose(distributions.log_prob(p, z), expected, rtol=1e-4, atol=1e-5)
    mean, std = (np.asarray(field[0]) for field in mixture.moments(p))
    assert (np.abs(z.mean(axis=0) - mean) < 5 * std / np.sqrt(NUM)).all()
    fourth = np.mean((np.asarray(z) - mean) ** 4, axis=0)
    assert (np.abs(z.std(axis=0) ** 2 - std**2) < 5 * np.sqrt((fourth - std**4) / NUM)).all()
    heaviest = means[weights.argmax()]
    np.testing.assert_allclose(distributions.center(p)[0], heaviest, rtol=1e-6)
    np.testing.assert_allclose(distributions.sample(jax.random.key(2), p, 0.0)[0], heaviest, rtol=1e-6)


def test_a_mixtures_rate_is_unbiased():
    """Its mean over draws against the integral ∫ q log q/p; that of a distribution to itself is 0."""
    p, q = make_mixture(NUM, (1,)), Gaussian(jnp.full((NUM, 1), 0.4), jnp.full((NUM, 1), 0.7))
    weights, means, stds = (np.asarray(field[0], np.float64) for field in p)

    def integrand(z: float) -> float:
        log_q = scipy.stats.norm.logpdf(z, 0.4, 0.7)
        of_component = scipy.stats.norm.logpdf(z, means[:, 0], stds[:, 0])
        log_p = scipy.special.logsumexp(of_component + scipy.special.log_softmax(weights))
        return np.exp(log_q) * (log_q - log_p)

    expected, _ = scipy.integrate.quad(integrand, -6.0, 7.0)
    z = gaussian.sample(jax.random.key(3), q)
    drawn = np.asarray(distributions.rate(q, p, z), np.float64)
    assert abs(drawn.mean() - expected) < 5 * drawn.std(ddof=1) / np.sqrt(NUM)
    np.testing.assert_array_equal(distributions.rate(p, p, z), 0.0)


def test_discrete_and_continuous_have_no_rate_together():
    q, p = make_categorical(0, (3, 4)), Gaussian(jnp.zeros((3, 4)), jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="no rate of a posterior Categorical under a prior Gaussian"):
        distributions.rate(q, p, p.mean)
