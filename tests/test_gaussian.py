"""Gaussians against SciPy, closed forms in float64 and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from hvae_jax import gaussian
from hvae_jax.gaussian import Gaussian
from hvae_jax.keys import fold_in, per_image_keys

# Each as one program: operation by operation, every operation would be compiled for every shape.
log_prob, kl_divergence = jax.jit(gaussian.log_prob), jax.jit(gaussian.kl_divergence)
precision_weighted, sample = jax.jit(gaussian.precision_weighted), jax.jit(gaussian.sample)


def make_gaussian(seed: int, shape: tuple[int, ...] = (4, 2, 3)) -> Gaussian:
    """Random means, and standard deviations from e^−1 to e."""
    rng = np.random.default_rng(seed)
    mean, log_std = rng.normal(size=shape), rng.uniform(-1.0, 1.0, size=shape)
    return Gaussian(*(jnp.asarray(field.astype(np.float32)) for field in (mean, np.exp(log_std))))


def in_float64(p: Gaussian) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(p.mean, np.float64), np.asarray(p.std, np.float64)


def kl_by_hand(q: Gaussian, p: Gaussian) -> np.ndarray:
    """½ Σ [σ_q²/σ_p² + (μ_q − μ_p)²/σ_p² − 1 − ln(σ_q²/σ_p²)] per image, in float64."""
    (q_mean, q_std), (p_mean, p_std) = in_float64(q), in_float64(p)
    terms = (q_std**2 + (q_mean - p_mean) ** 2) / p_std**2 - 1.0 - 2.0 * np.log(q_std / p_std)
    return 0.5 * terms.reshape(len(terms), -1).sum(axis=1)


def test_log_prob_is_scipys():
    p, z = make_gaussian(0), make_gaussian(1).mean
    mean, std = in_float64(p)
    expected = scipy.stats.norm.logpdf(np.asarray(z, np.float64), mean, std).reshape(4, -1).sum(axis=1)
    np.testing.assert_allclose(log_prob(p, z), expected, rtol=1e-5)


def test_kl_is_the_closed_form():
    q, p = make_gaussian(0), make_gaussian(1)
    np.testing.assert_allclose(kl_divergence(q, p), kl_by_hand(q, p), rtol=1e-5)


def test_kl_is_the_mean_log_ratio():
    q, p = make_gaussian(0), make_gaussian(1)
    (q_mean, q_std), (p_mean, p_std) = in_float64(q), in_float64(p)
    z = q_mean + q_std * np.random.default_rng(2).normal(size=(20_000, *q_mean.shape))
    log_ratio = scipy.stats.norm.logpdf(z, q_mean, q_std) - scipy.stats.norm.logpdf(z, p_mean, p_std)
    log_ratio = log_ratio.reshape(20_000, 4, -1).sum(axis=2)
    standard_error = log_ratio.std(axis=0, ddof=1) / np.sqrt(20_000)
    error = np.abs(np.asarray(kl_divergence(q, p)) - log_ratio.mean(axis=0))
    assert (error < 5.0 * standard_error).all()


def test_kl_of_equals_is_exactly_zero():
    q = make_gaussian(0, (64, 50))
    for of_equals in (gaussian.kl_divergence, kl_divergence):
        assert (np.asarray(of_equals(q, q)) == 0.0).all()


def test_kl_is_positive_between_different_gaussians():
    q, p = make_gaussian(0, (256, 1)), make_gaussian(1, (256, 1))
    assert (np.asarray(kl_divergence(q, p)) > 0.0).all()
    nearly = Gaussian(q.mean, jnp.asarray(1.01 * np.asarray(q.std)))
    assert (np.asarray(kl_divergence(nearly, q)) > 0.0).all()


def test_kl_direction():
    # KL(N(1, 2²) ‖ N(0, 1)) = ½ (4 + 1 − 1) − ln 2, and the other way ½ (¼ + ¼ − 1) + ln 2.
    wide = Gaussian(jnp.array([[1.0]]), jnp.array([[2.0]]))
    unit = Gaussian(jnp.zeros((1, 1)), jnp.ones((1, 1)))
    np.testing.assert_allclose(kl_divergence(wide, unit), [2.0 - np.log(2.0)], rtol=1e-6)
    np.testing.assert_allclose(kl_divergence(unit, wide), [-0.25 + np.log(2.0)], rtol=1e-6)


def test_kl_of_tiny_and_huge_standard_deviations_is_the_closed_form_and_its_gradient_finite():
    """Stds whose squares are no float32 numbers; KL(N(0, 1e-25²) ‖ N(0, 1)) = 57.06 nats."""
    q_std, p_std = (np.ravel(grid) for grid in np.meshgrid([1e-25, 1e-19, 1e-6, 1.0, 1e5], [1.0, 1e10, 1e30]))
    shift = np.array([0.5] * len(q_std))
    q = Gaussian(jnp.asarray(shift, jnp.float32)[:, None], jnp.asarray(q_std, jnp.float32)[:, None])
    p = Gaussian(jnp.zeros_like(q.mean), jnp.asarray(p_std, jnp.float32)[:, None])
    kl = np.asarray(kl_divergence(q, p))
    assert kl[0] - 0.125 == pytest.approx(57.064627, rel=1e-6)
    np.testing.assert_allclose(kl, kl_by_hand(q, p), rtol=1e-6)
    gradient_fn = jax.jit(jax.grad(lambda q, p: gaussian.kl_divergence(q, p).sum(), (0, 1)))
    gradient = gradient_fn(q, p)
    # d/dσ_q = σ_q/σ_p² − 1/σ_q and d/dσ_p = 1/σ_p − (σ_q² + (μ_q − μ_p)²)/σ_p³.
    (q_mean, q_std), (_, p_std) = in_float64(q), in_float64(p)
    np.testing.assert_allclose(gradient[0].std, q_std / p_std**2 - 1 / q_std, rtol=1e-5)
    np.testing.assert_allclose(gradient[1].std, 1 / p_std - (q_std**2 + q_mean**2) / p_std**3, rtol=1e-5)
    # A prior as narrow as its posterior.
    narrow = Gaussian(jnp.zeros((1, 1)), jnp.full((1, 1), 1e-25))
    wider = Gaussian(narrow.mean, 3.0 * narrow.std)
    np.testing.assert_allclose(kl_divergence(wider, narrow), 4.0 - np.log(3.0), rtol=1e-5)
    both = gradient_fn(wider, narrow)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(both))


def test_log_prob_at_tiny_and_huge_standard_deviations_is_scipys_and_its_gradient_finite():
    std = np.array([1e-25, 1e-10, 1e10, 1e30])
    p = Gaussian(jnp.zeros((4, 1)), jnp.asarray(std, jnp.float32)[:, None])
    z = 2.0 * p.std
    expected = scipy.stats.norm.logpdf(in_float64(p)[1] * 2.0, 0.0, in_float64(p)[1])[:, 0]
    np.testing.assert_allclose(log_prob(p, z), expected, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda p: gaussian.log_prob(p, z).sum()))(p)
    np.testing.assert_allclose(gradient.std, 3.0 / in_float64(p)[1], rtol=1e-5)


def test_precision_weighted_of_tiny_and_huge_standard_deviations_is_the_surer_one():
    std = np.array([1e-25, 1e-25, 1.0, 1e30, 1e30, 1e-25])
    other = np.array([1.0, 1e25, 1e-30, 1.0, 1e-30, 1e-25])
    a, b = (
        Gaussian(jnp.full((6, 1), mean), jnp.asarray(stds, jnp.float32)[:, None])
        for mean, stds in ((1.0, std), (3.0, other))
    )
    product = precision_weighted(a, b)
    (_, std), (_, other) = in_float64(a), in_float64(b)
    np.testing.assert_allclose(product.mean, (other**2 + 3 * std**2) / (std**2 + other**2), rtol=1e-6)
    np.testing.assert_allclose(product.std, std * other / np.hypot(std, other), rtol=1e-6)

    def total(a: Gaussian, b: Gaussian) -> jax.Array:
        product = gaussian.precision_weighted(a, b)
        return product.mean.sum() + product.std.sum()

    gradient_fn = jax.jit(jax.grad(total, (0, 1)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient_fn(a, b)))
    # Equal ones, the means too: d std/d std^ = 2^(−3/2), though the smaller of two has a corner there.
    same = Gaussian(jnp.ones((1, 1)), jnp.full((1, 1), 2.0))
    np.testing.assert_allclose(gradient_fn(same, same)[0].std, 2**-1.5, rtol=1e-6)


def test_standard_is_zero_one():
    like = make_gaussian(0)
    unit = gaussian.standard(like)
    assert unit.mean.shape == unit.std.shape == like.mean.shape
    assert unit.mean.dtype == unit.std.dtype == like.mean.dtype
    assert (unit.mean == 0.0).all()
    assert (unit.std == 1.0).all()


def test_precision_weighted_is_the_published_formula():
    proposal, prior = make_gaussian(0), make_gaussian(1)
    product = precision_weighted(proposal, prior)
    (mean_q, std_q), (mean_p, std_p) = in_float64(proposal), in_float64(prior)
    var = 1.0 / (std_q**-2 + std_p**-2)
    np.testing.assert_allclose(product.mean, var * (mean_q / std_q**2 + mean_p / std_p**2), rtol=1e-5)
    np.testing.assert_allclose(product.std, np.sqrt(var), rtol=1e-6)


def test_precision_weighted_is_the_normalised_product():
    # log a(z) + log b(z) − log ab(z) is the same at every z, and is log N(μ_a; μ_b, σ_a² + σ_b²).
    a, b = make_gaussian(0, (3, 1)), make_gaussian(1, (3, 1))
    mean, std = in_float64(precision_weighted(a, b))
    (mean_a, std_a), (mean_b, std_b) = in_float64(a), in_float64(b)
    z = np.linspace(-3.0, 3.0, 7)
    normal = scipy.stats.norm
    constant = normal.logpdf(z, mean_a, std_a) + normal.logpdf(z, mean_b, std_b) - normal.logpdf(z, mean, std)
    expected = normal.logpdf(mean_a, mean_b, np.hypot(std_a, std_b))
    # The float32 rounding of mean and std, times what z's distance makes of it.
    bound = 16.0 * np.finfo(np.float32).eps * (1.0 + (np.abs(z) + np.abs(mean)) / std) ** 2
    assert (np.abs(constant - expected) < bound).all()


def test_sample_moments_and_shape():
    num = 20_000
    p = make_gaussian(0, (1, 5))
    wide = Gaussian(*(jnp.asarray(np.broadcast_to(field, (num, 5))) for field in p))
    mean, std = (field[0] for field in in_float64(p))
    for temperature in (1.0, 0.5):
        z = np.asarray(sample(jax.random.key(3), wide, temperature), np.float64)
        standardised = (z - mean) / (temperature * std)
        assert (np.abs(standardised.mean(axis=0)) < 5.0 / np.sqrt(num)).all()
        # Var[ε²] = 2 and Var[ε_i ε_j] = 1: the whole second moment, so the dimensions' independence too.
        second = standardised.T @ standardised / num
        standard_error = np.sqrt(1.0 + np.eye(5)) / np.sqrt(num)
        assert (np.abs(second - np.eye(5)) < 5.0 * standard_error).all()
        # And the whole shape, at the level of 5 standard errors.
        assert scipy.stats.kstest(standardised[:, 0], "norm").pvalue > 2.0 * scipy.stats.norm.sf(5.0)


def test_sample_at_temperature_zero_is_the_mean():
    p = make_gaussian(0)
    np.testing.assert_array_equal(sample(jax.random.key(0), p, 0.0), p.mean)


def test_sample_is_reparameterised():
    p = make_gaussian(0)
    key = jax.random.key(5)
    gradient = jax.jit(jax.grad(lambda p: gaussian.sample(key, p).sum()))(p)
    noise = (np.asarray(sample(key, p)) - p.mean) / p.std
    np.testing.assert_array_equal(gradient.mean, np.ones(p.mean.shape))
    np.testing.assert_allclose(gradient.std, noise, rtol=1e-4, atol=1e-6)


def test_draws_do_not_depend_on_the_rest_of_the_batch():
    """Images in other places, among one of them twice: equal bit for bit."""
    p, order = make_gaussian(0, (6, 2, 3)), np.array([4, 2, 2, 0, 5, 1])
    keys = per_image_keys(jax.random.key(6), 6)
    whole = np.asarray(sample(keys, p))
    moved = sample(keys[order], Gaussian(*(jnp.asarray(np.asarray(field)[order]) for field in p)))
    np.testing.assert_array_equal(moved, whole[order])
    # One key stands for the keys it is folded into, and different keys draw differently.
    np.testing.assert_array_equal(whole, sample(jax.random.key(6), p))
    assert len(np.unique(whole)) == whole.size


def test_fold_in_gives_new_keys():
    keys = per_image_keys(jax.random.key(0), 3)
    data = [jax.random.key_data(k) for k in (keys, fold_in(keys, 0), fold_in(keys, 1))]
    assert len(np.unique(np.concatenate(data), axis=0)) == 9


@pytest.mark.parametrize("shape", [(3,), (5,), (4, 1), (1,)])
def test_wrong_key_shapes_raise(shape: tuple[int, ...]):
    keys = jax.random.split(jax.random.key(0), shape)
    with pytest.raises(ValueError, match=r"\[4\]"):
        per_image_keys(keys, 4)
    with pytest.raises(ValueError, match=r"\[4\]"):
        gaussian.sample(keys, make_gaussian(0))


@pytest.mark.parametrize("shape", [(4, 2, 1), (1, 2, 3), (4, 6), (2, 3)])
def test_different_shapes_raise(shape: tuple[int, ...]):
    p, other = make_gaussian(0), make_gaussian(1, shape)
    calls = [
        lambda: gaussian.log_prob(p, other.mean),
        lambda: gaussian.kl_divergence(p, other),
        lambda: gaussian.kl_divergence(other, p),
        lambda: gaussian.precision_weighted(p, other),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"\(4, 2, 3\)") as caught:
            call()
        assert str(shape) in str(caught.value)
