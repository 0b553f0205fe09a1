"""The models against the published networks in NumPy, Monte Carlo rates, and their contracts."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.stats

from hvae_jax import distributions
from hvae_jax.errors import RunError
from hvae_jax.models.config import PUBLISHED, ModelConfig
from hvae_jax.models.hierarchy import Code
from hvae_jax.models.hvae import HVAE, make_hvae
from hvae_jax.models.walk import Layer
from hvae_jax.objective import LayerwiseTerms

# What is compiled here runs once or twice: most of LLVM's optimisation would not pay.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

MakeConfig = Callable[..., ModelConfig]
NUM = 1000  # images in a batch that a test compiles for


def random_params(model: HVAE) -> dict[str, Any]:
    """Parameters large enough that every one of them matters, and made without compiling `init`."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        scale = 1.2 / math.sqrt(math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
        return jnp.asarray((scale * rng.normal(size=leaf.shape)).astype(np.float32))

    return jax.tree.map(draw, shapes_of(model)[0])


def shapes_of(model: HVAE, batch: int = 2) -> tuple[Any, Any]:
    """Shapes of the parameters and of the terms."""
    x = jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.float32)
    terms, params = jax.eval_shape(model.init_with_output, jax.random.key(0), x, jax.random.key(1))
    return params, terms


def images(model: HVAE, batch: int) -> jax.Array:
    x = np.random.default_rng(0).uniform(size=(batch, *model.image_shape))
    return jnp.asarray(x.astype(np.float32))


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


# The published networks


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


# Configs


def test_bottom_up_is_refused_with_the_reason(make_config: MakeConfig):
    with pytest.raises(
        RunError, match=r"config\.model\.inference='bottom_up'.*does not split along the layers"
    ):
        make_config(inference="bottom_up")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("inference", "top_up"),
        ("likelihood", "poisson"),
        ("channels", 0),
        ("channels", 2.0),
        ("num_stages", 0),
        ("num_stages", "3"),
        ("num_mixture_components", 0),
        ("num_mixture_components", None),
        ("compute_dtype", "float16"),
        ("compute_dtype", None),
        ("remat", 1),
        ("likelihood_std", 0.0),
        ("likelihood_std", -0.5),
        ("likelihood_std", math.nan),
        ("likelihood_std", math.inf),
        ("latent_shapes", ()),
        ("latent_shapes", (3,)),
        ("latent_shapes", [(3,)]),
        ("latent_shapes", ((),)),
        ("latent_shapes", ((0,),)),
        ("latent_shapes", ((3.0,),)),
        ("latent_shapes", ((4, 4),)),
        ("latent_shapes", ((4, 4, 2), (-3,))),
    ],
    ids=str,
)
def test_a_bad_field_is_named(make_config: MakeConfig, field: str, value: object):
    with pytest.raises(RunError) as caught:
        make_config(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"config.model.{field}=")
    assert str(value) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "image_shape", "field"),
    [
        ({"num_stages": 4}, (8, 8, 1), "num_stages"),
        ({"num_stages": 3, "latent_shapes": ((3,),)}, (12, 12, 1), "num_stages"),
        ({"latent_shapes": ((8, 8, 2), (3,))}, (8, 8, 1), "latent_shapes"),
        ({"latent_shapes": ((4, 2, 2), (3,))}, (8, 8, 1), "latent_shapes.* layer 1 .* maps of 4×4, 2×2"),
        ({}, (8, 10, 1), r"num_stages=2: 4×5 pixels are left .* widths fit: \[8, 12, 16"),
        ({"latent_shapes": ((4, 4, 2), (3,)), "num_stages": 2}, (28, 28, 1), "latent_shapes"),
        ({"latent_shapes": ((3,), (4, 4, 2))}, (8, 8, 1), "latent_shapes"),
        ({"latent_shapes": ((2, 2, 2), (4, 4, 2))}, (8, 8, 1), "latent_shapes"),
    ],
    ids=str,
)
def test_latents_that_do_not_fit_the_image_are_named(
    make_config: MakeConfig, changes: dict[str, object], image_shape: tuple[int, int, int], field: str
):
    with pytest.raises(RunError, match=f"config.model.{field}"):
        make_hvae(make_config(**changes), image_shape)


@pytest.mark.parametrize("image_shape", [(8, 66, 1), (7, 7, 1), (65, 65, 3), (8, 8, 0), (8, 8, 5)], ids=str)
def test_images_that_are_not_supported_are_named(make_config: MakeConfig, image_shape: tuple[int, int, int]):
    with pytest.raises(RunError) as caught:
        make_hvae(make_config(), image_shape)
    assert f"images of shape {image_shape}" in str(caught.value)
