"""The objective against a loop, and the identity ∂loss/∂β_l = mean rate of layer l."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hvae_jax.objective import LayerwiseTerms, bits_per_dim, layerwise_elbo

BETAS = np.array([0.1, 1.0, 3.0], np.float32)


@pytest.fixture
def terms() -> LayerwiseTerms:
    rng = np.random.default_rng(0)
    distortion, rates = rng.normal(80.0, 10.0, size=5), rng.gamma(2.0, 5.0, size=(5, 3))
    return LayerwiseTerms(jnp.asarray(distortion, jnp.float32), jnp.asarray(rates, jnp.float32))


def test_layerwise_elbo_is_the_loop(terms: LayerwiseTerms):
    distortion, rates = (np.asarray(field, np.float64) for field in terms)
    expected = []
    for image in range(5):
        loss = distortion[image]
        for layer in range(3):
            loss += BETAS[layer] * rates[image, layer]
        expected.append(-loss)
    forms: list[Any] = [BETAS, BETAS.tolist(), tuple(BETAS.tolist()), jnp.array(BETAS)]
    for betas in forms:
        np.testing.assert_allclose(layerwise_elbo(terms, betas), expected, rtol=1e-6)


def test_no_betas_are_ones(terms: LayerwiseTerms):
    elbo = layerwise_elbo(terms)
    assert elbo.shape == (5,)
    np.testing.assert_allclose(elbo, layerwise_elbo(terms, jnp.ones(3)), rtol=1e-6)
    np.testing.assert_allclose(elbo, layerwise_elbo(terms, np.ones(3, int)), rtol=1e-6)


def test_every_image_may_have_betas_of_its_own(terms: LayerwiseTerms):
    betas = np.random.default_rng(1).uniform(0.1, 3.0, (5, 3)).astype(np.float32)
    found = layerwise_elbo(terms, betas)
    for i, own in enumerate(betas):
        alone = LayerwiseTerms(terms.distortion[i : i + 1], terms.rates[i : i + 1])
        np.testing.assert_allclose(found[i : i + 1], layerwise_elbo(alone, own), rtol=1e-6)


def test_the_docstring_example():
    terms = LayerwiseTerms(distortion=jnp.array([90.0]), rates=jnp.array([[5.0, 10.0]]))
    assert layerwise_elbo(terms).item() == -105.0
    assert layerwise_elbo(terms, np.array([2.0, 0.5])).item() == -105.0
    # Layer 1 has the first multiplier.
    assert layerwise_elbo(terms, np.array([2.0, 0.0])).item() == -100.0


def test_derivative_by_a_beta_is_the_mean_rate(terms: LayerwiseTerms):
    gradient = jax.grad(lambda betas: -layerwise_elbo(terms, betas).mean())(jnp.array(BETAS))
    np.testing.assert_allclose(gradient, np.asarray(terms.rates, np.float64).mean(axis=0), rtol=1e-6)


def test_derivative_by_the_terms_is_the_betas(terms: LayerwiseTerms):
    gradient = jax.grad(lambda terms: -layerwise_elbo(terms, BETAS).sum())(terms)
    np.testing.assert_array_equal(gradient.distortion, np.ones(5))
    np.testing.assert_array_equal(gradient.rates, np.tile(BETAS, (5, 1)))


def test_integers_and_half_precision_keep_betas_as_they_are():
    distortion, rates = jnp.array([90, 80]), jnp.array([[5, 10], [7, 2]])
    expected = [-(90 + 5 * 0.2154 + 10 * 1.7), -(80 + 7 * 0.2154 + 2 * 1.7)]
    for dtype in (jnp.int32, jnp.bfloat16, jnp.float32):  # whose bfloat16 of 0.2154 is 0.2158
        found = layerwise_elbo(LayerwiseTerms(distortion.astype(dtype), rates.astype(dtype)), (0.2154, 1.7))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    halves = LayerwiseTerms(distortion / 2, rates / 2)
    np.testing.assert_allclose(layerwise_elbo(halves, np.array([1, 2])), [-57.5, -45.5], rtol=1e-6)


def test_rates_are_weighed_by_no_matrix_product(terms: LayerwiseTerms):
    """Accelerators make products of bfloat16 parts by default: only sums and products of numbers here."""
    program = str(jax.make_jaxpr(jax.value_and_grad(lambda b: layerwise_elbo(terms, b).sum()))(jnp.ones(3)))
    assert "mul" in program
    assert "dot_general" not in program


def test_jit_and_a_stack_of_betas(terms: LayerwiseTerms):
    stack = jnp.array([BETAS.tolist(), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (2.0, 0.5, 0.1)])
    solo = np.stack([layerwise_elbo(terms, betas) for betas in stack])
    packed = jax.jit(jax.vmap(layerwise_elbo, (None, 0)))(terms, stack)
    assert packed.shape == (4, 5)
    np.testing.assert_allclose(packed, solo, rtol=1e-6)
    np.testing.assert_array_equal(solo[2], -np.asarray(terms.distortion))
    np.testing.assert_allclose(jax.jit(layerwise_elbo)(terms), solo[1], rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2,), (4,), (1, 3), (4, 3), (3, 1)], ids=str)
def test_wrong_betas_raise(terms: LayerwiseTerms, shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"\(3,\)") as caught:
        layerwise_elbo(terms, np.ones(shape))
    assert str(shape) in str(caught.value)


def test_a_scalar_beta_of_one_layer_raises():
    terms = LayerwiseTerms(jnp.zeros(2), jnp.ones((2, 1)))
    with pytest.raises(ValueError, match=r"\(1,\).*got \(\)"):
        layerwise_elbo(terms, 1.0)


@pytest.mark.parametrize(
    ("distortion", "rates"),
    [
        ((5,), (5,)),
        ((5, 1), (5, 3)),
        ((), (5, 3)),
        ((1,), (5, 3)),
        ((3,), (5, 3)),
        ((5,), (5, 3, 1)),
        ((), ()),
    ],
)
def test_wrong_terms_raise(distortion: tuple[int, ...], rates: tuple[int, ...]):
    with pytest.raises(ValueError, match="distortion must") as caught:
        layerwise_elbo(LayerwiseTerms(jnp.zeros(distortion), jnp.zeros(rates)))
    assert str(distortion) in str(caught.value)
    assert str(rates) in str(caught.value)


def test_bits_per_dim_value():
    # 256 equally likely values are 8 bits, that is, ln 256 nats, per dimension.
    np.testing.assert_allclose(bits_per_dim(12 * np.log(256.0), 12), 8.0, rtol=1e-6)
    assert bits_per_dim(jnp.ones((2, 3)), 7).shape == (2, 3)


def test_layer_rates_sum_to_the_total_in_bits(terms: LayerwiseTerms):
    parts = bits_per_dim(terms.distortion, 784) + bits_per_dim(terms.rates, 784).sum(axis=1)
    np.testing.assert_allclose(parts, bits_per_dim(-layerwise_elbo(terms), 784), rtol=1e-6)


@pytest.mark.parametrize("num_dims", [0, -3])
def test_bits_per_dim_of_nothing_raises(num_dims: int):
    with pytest.raises(ValueError, match=str(num_dims)):
        bits_per_dim(1.0, num_dims)
