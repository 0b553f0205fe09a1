"""The published networks: their parameter counts, what they compute by NumPy, how parameters start."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
import scipy.signal
import scipy.stats
from random_models import images, quick_jit, random_params, shapes_of

from hvae_jax.models.config import ModelConfig
from hvae_jax.models.hvae import make_hvae

MakeConfig = Callable[..., ModelConfig]


@pytest.mark.parametrize(
    ("inference", "image_shape", "channels", "latent_shapes", "likelihood", "expected"),
    [
        ("generalized_top_down", (32, 32, 3), 32, ((4, 4, 32), (32,)), "gaussian_fixed_std", 475_811),
        ("ladder", (32, 32, 3), 32, ((4, 4, 32), (32,)), "gaussian_fixed_std", 408_131),
        ("generalized_top_down", (28, 28, 1), 16, ((4, 4, 16), (20,)), "bernoulli", 122_713),
    ],
)
def test_published_parameter_counts(
    make_config: MakeConfig,
    inference: str,
    image_shape: tuple[int, int, int],
    channels: int,
    latent_shapes: tuple[tuple[int, ...], ...],
    likelihood: str,
    expected: int,
):
    config = make_config(
        inference=inference,
        channels=channels,
        num_stages=3,
        latent_shapes=latent_shapes,
        likelihood=likelihood,
    )
    params, _ = shapes_of(make_hvae(config, image_shape))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


class Published:
    """Two-layer GHVAE and LVAE as published, in float64, one image at a time, without broadcasting.

    METHOD.md §4. Each part of the network is named after the Flax module that holds its weights.
    """

    def __init__(self, params: Any, image_shape: tuple[int, int, int]):
        self.params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
        # Kernel 4, stride 2, padding 1; where 28 pixels have come down to 7, stride 1, padding 0.
        self.stages = [(2, 1), (2, 1), (2, 1) if image_shape[0] == 32 else (1, 0)]
        self.bottom = (4, 4) if image_shape[0] == image_shape[1] else (4, 2)

    def weights(self, path: str) -> tuple[np.ndarray, np.ndarray]:
        node = self.params
        for name in path.split("/"):
            node = node[name]
        assert set(node) == {"kernel", "bias"}
        return node["kernel"], node["bias"]

    def linear(self, path: str, x: np.ndarray) -> np.ndarray:
        kernel, bias = self.weights(path)
        return np.einsum("i,io->o", x, kernel) + bias

    def conv(self, path: str, x: np.ndarray, stride: int, padding: int) -> np.ndarray:
        kernel, bias = self.weights(path)
        x = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
        out = []
        for o in range(kernel.shape[3]):
            taken = [
                scipy.signal.correlate2d(x[:, :, i], kernel[:, :, i, o], "valid") for i in range(x.shape[2])
            ]
            out.append(np.sum(taken, axis=0)[::stride, ::stride] + bias[o])
        return np.stack(out, axis=2)

    def conv_transpose(self, path: str, x: np.ndarray, stride: int, padding: int) -> np.ndarray:
        kernel, bias = self.weights(path)
        spread = np.zeros((stride * (x.shape[0] - 1) + 1, stride * (x.shape[1] - 1) + 1, x.shape[2]))
        spread[::stride, ::stride] = x
        out = []
        for o in range(kernel.shape[3]):
            given = [scipy.signal.convolve2d(spread[:, :, i], kernel[:, :, i, o]) for i in range(x.shape[2])]
            y = np.sum(given, axis=0) + bias[o]
            out.append(y[padding : y.shape[0] - padding, padding : y.shape[1] - padding])
        return np.stack(out, axis=2)

    def posterior_2(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """q(z_2|x) of the GHVAE."""
        h = relu(self.conv("posterior_1/Down_0/Conv_0", x, *self.stages[0]))
        h = relu(self.conv("posterior_1/Down_0/Conv_1", h, *self.stages[1]))
        h = relu(self.conv("posterior_1/Down_1/Conv_0", h, *self.stages[2]))
        assert h.shape[:2] == self.bottom
        return mean_and_softplus(self.linear("posterior_1/Head_0/Dense_0", h.ravel()))

    def posterior_1(self, x: np.ndarray, z_2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """q(z_1|z_2, x) of the GHVAE."""
        h = relu(self.conv("posterior_0/Down_0/Conv_0", x, *self.stages[0]))
        h = relu(self.conv("posterior_0/Down_0/Conv_1", h, *self.stages[1]))
        lifted = relu(self.linear("posterior_0/Lift_0/Dense_0", z_2)).reshape(*self.bottom, -1)
        lifted = relu(self.conv_transpose("posterior_0/Lift_0/Up_0/ConvTranspose_0", lifted, *self.stages[2]))
        assert lifted.shape == h.shape
        h = relu(self.conv("posterior_0/Down_1/Conv_0", np.concatenate([lifted, h], axis=2), *self.stages[2]))
        return mean_and_softplus(self.conv("posterior_0/Head_0/Conv_0", h, 1, 1))

    def ladder_posterior_2(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        h = relu(self.conv("bottom_up_2/Conv_0", self.shared(x), *self.stages[2]))
        return mean_and_softplus(self.linear("posterior_1/Head_0/Dense_0", h.ravel()))

    def ladder_posterior_1(self, x: np.ndarray, z_2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The proposal (mean^, var^) times the prior, by the formula of METHOD.md §2."""
        h = relu(self.conv("posterior_0/Down_0/Conv_0", self.shared(x), *self.stages[2]))
        mean, var = mean_and_softplus(self.conv("posterior_0/Head_0/Conv_0", h, 1, 1))
        mean_p, std_p = self.prior_1(z_2)
        var_p = std_p**2
        product = (mean * var_p + mean_p * var) / (var + var_p)
        return product, np.sqrt(var * var_p / (var + var_p))

    def shared(self, x: np.ndarray) -> np.ndarray:
        """d(x), 8×8×c, of the ladder's bottom-up pass."""
        h = relu(self.conv("bottom_up_0/Conv_0", x, *self.stages[0]))
        return relu(self.conv("bottom_up_1/Conv_0", h, *self.stages[1]))

    def prior_1(self, z_2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """p(z_1|z_2)."""
        # Flax numbers the modules as they are made, and the outer layer of f(g(x)) is made first.
        h = relu(self.linear("prior_0/DenseHead_0/Dense_0", z_2))
        mean, std = mean_and_softplus(self.linear("prior_0/DenseHead_0/Dense_1", h))
        assert len(h) == len(mean) // 2
        return mean.reshape(*self.bottom, -1), std.reshape(*self.bottom, -1)

    def decoder(self, z_1: np.ndarray) -> np.ndarray:
        """The means of p(x|z_1)."""
        h = relu(self.conv_transpose("decoder/Up_0/ConvTranspose_0", z_1, *self.stages[2]))
        h = relu(self.conv_transpose("decoder/Up_0/ConvTranspose_1", h, *self.stages[1]))
        return self.conv_transpose("decoder/ConvTranspose_0", h, *self.stages[0])


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0.0)


def mean_and_softplus(both: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, raw = np.split(both, 2, axis=-1)
    return mean, np.logaddexp(0.0, raw)


def kl_by_hand(q: tuple[np.ndarray, np.ndarray], p: tuple[np.ndarray, np.ndarray]) -> float:
    ratio = (q[1] / p[1]) ** 2
    return 0.5 * float((ratio + ((q[0] - p[0]) / p[1]) ** 2 - 1.0 - np.log(ratio)).sum())


@pytest.mark.parametrize(
    ("inference", "image_shape"),
    [
        ("generalized_top_down", (32, 32, 3)),
        ("generalized_top_down", (28, 28, 1)),
        ("generalized_top_down", (28, 20, 2)),
        ("ladder", (32, 32, 3)),
    ],
)
def test_two_layers_are_the_published_networks(
    make_config: MakeConfig, inference: str, image_shape: tuple[int, int, int]
):
    z_1 = (4, 4 if image_shape[0] == image_shape[1] else 2, 4)
    config = make_config(inference=inference, latent_shapes=(z_1, (5,)), num_stages=3)
    model = make_hvae(config, image_shape)
    params, x = random_params(model), images(model, 1)

    @quick_jit
    def evaluate(params: Any, x: jax.Array) -> Any:
        key = jax.random.key(2)
        layers: Any = model.apply(params, x, key, method="infer")
        decoded = model.apply(params, layers[0].z, method="decode")
        upper = model.apply(params, x, 2, method="reconstruct")
        return model.apply(params, x, key), layers, decoded, upper

    terms, layers, decoded, upper = jax.tree.map(lambda leaf: np.asarray(leaf[0]), evaluate(params, x))
    published, image = Published(params, image_shape), np.asarray(x[0], np.float64)
    z_1, z_2 = (layer.z.astype(np.float64) for layer in layers)
    if inference == "ladder":
        q_1, q_2 = published.ladder_posterior_1(image, z_2), published.ladder_posterior_2(image)
    else:
        q_1, q_2 = published.posterior_1(image, z_2), published.posterior_2(image)
    p_1, p_2 = published.prior_1(z_2), (np.zeros(5), np.ones(5))
    means = published.decoder(z_1)
    mean_of_upper = published.decoder(published.prior_1(q_2[0])[0])
    got = [*layers[0].q, *layers[0].p, *layers[1].q, decoded, upper]
    for a, b in zip(got, [*q_1, *p_1, *q_2, means, mean_of_upper], strict=True):
        assert np.ptp(b) > 0.01  # a hundred times the tolerance: there is something to see
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layers[1].p, p_2)
    # And so the terms: layer 1 first.
    rates = [kl_by_hand(q_1, p_1), kl_by_hand(q_2, p_2)]
    np.testing.assert_allclose(terms.rates, rates, rtol=1e-4)
    log_likelihood = scipy.stats.norm.logpdf(image, means, config.likelihood_std).sum()
    np.testing.assert_allclose(terms.distortion, -log_likelihood, rtol=1e-4)


def test_parameters_start_as_pytorchs_do(make_config: MakeConfig):
    """U(−1/√fan, 1/√fan) for weights and biases; the fan of a transposed convolution is its outputs'."""
    # Numbers of channels that all differ; a convolution, one that is transposed, layers of all to all.
    model = make_hvae(make_config(channels=8, num_stages=1, latent_shapes=((3,),)), (8, 8, 3))
    params = quick_jit(model.init)(jax.random.key(0), images(model, 1), jax.random.key(1))["params"]
    checked = 0
    for path, kernel in jax.tree_util.tree_leaves_with_path(params):
        names = [entry.key for entry in path]
        if names[-1] != "kernel":
            continue
        layer = params
        for name in names[:-1]:
            layer = layer[name]
        is_transposed = names[-2].startswith("ConvTranspose")
        fan = kernel.size // kernel.shape[-2 if is_transposed else -1]
        for leaf in layer.values():
            scaled = np.abs(np.asarray(leaf)) * math.sqrt(fan)
            assert scaled.max() <= 1.0 + 1e-6
            if leaf.size > 100:  # P(all of 100 in the inner 85 %) < 1e-7
                assert scaled.max() > 0.85
                checked += 1
    assert checked >= 4
