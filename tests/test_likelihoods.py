"""Likelihoods against SciPy, a float64 mixture in NumPy, and sums over all 256 values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from hvae_jax.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    GaussianPixels,
    Likelihood,
    LogisticMixture,
    make_likelihood,
    soft_floor,
)

EPS = float(np.finfo(np.float32).eps)
ROUNDING = 256 * EPS  # of a sum of 256 float32 numbers to one
GRID = np.arange(256) / 255.0
MIXTURE = LogisticMixture(3)
# What is compiled here runs a few times: most of LLVM's optimisation would not pay.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
log_prob = quick_jit(MIXTURE.log_prob)
sample = quick_jit(MIXTURE.sample)
mean = quick_jit(MIXTURE.mean)


def random(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=scale, size=shape)


def normal(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> jax.Array:
    return jnp.asarray(random(seed, shape, scale).astype(np.float32))


def pixels(x: np.ndarray) -> jax.Array:
    """`[N]` grey values or `[N, C]` colours as N images of one pixel each."""
    return jnp.asarray(x.reshape(len(x), 1, 1, -1).astype(np.float32))


def mixture_outputs(
    num: int, logits: object, means: object, log_scales: object, coefficients: object = ()
) -> jax.Array:
    """The same for `num` images of one pixel: `[K]`, `[C, K]`, `[C, K]` and, before tanh, `[C(C−1)/2, K]`."""
    parts = [np.ravel(np.asarray(part, np.float32)) for part in (logits, means, log_scales, coefficients)]
    flat = np.concatenate(parts)
    return jnp.asarray(np.broadcast_to(flat, (num, 1, 1, flat.size)))


def total(log_probs: jax.Array) -> float:
    """log Σ exp, in float64."""
    return float(np.logaddexp.reduce(np.asarray(log_probs, np.float64)))


# Bernoulli


def test_bernoulli_is_scipys():
    logits = normal(0, (4, 3, 3, 1), 3.0)
    x = np.random.default_rng(1).integers(0, 2, size=logits.shape)
    probability = scipy.special.expit(np.asarray(logits, np.float64))
    expected = scipy.stats.bernoulli.logpmf(x, probability).reshape(4, -1).sum(axis=1)
    got = jax.jit(Bernoulli().log_prob)(logits, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(Bernoulli().mean(logits), probability, rtol=1e-5)


def test_bernoulli_at_extreme_logits():
    logits, certain, other = (
        jnp.asarray(pair).reshape(2, 1, 1, 1) for pair in ([300.0, -300.0], [1.0, 0.0], [0.0, 1.0])
    )
    log_prob = jax.jit(Bernoulli().log_prob)
    assert (np.asarray(log_prob(logits, certain)) == 0.0).all()
    np.testing.assert_allclose(log_prob(logits, other), [-300.0, -300.0])
    gradient = quick_jit(jax.grad(lambda o: Bernoulli().log_prob(o, other).sum()))(logits)
    np.testing.assert_allclose(gradient.ravel(), [-1.0, 1.0])


def test_bernoulli_samples():
    num, logits = 20_000, np.array([-2.0, 0.0, 1.0, 3.0])
    outputs = jnp.asarray(np.broadcast_to(logits.reshape(1, 2, 2, 1), (num, 2, 2, 1)), jnp.float32)
    x = np.asarray(quick_jit(Bernoulli().sample)(jax.random.key(0), outputs))
    assert set(np.unique(x)) == {0.0, 1.0}
    p = scipy.special.expit(logits)
    standard_error = np.sqrt(p * (1.0 - p) / num)
    assert (np.abs(x.reshape(num, 4).mean(axis=0, dtype=np.float64) - p) < 5.0 * standard_error).all()


# Gaussian


@pytest.mark.parametrize("std", [0.71, 0.05])
def test_gaussian_is_scipys(std: float):
    outputs, x = normal(0, (4, 3, 3, 3)), normal(1, (4, 3, 3, 3))
    expected = scipy.stats.norm.logpdf(np.asarray(x, np.float64), np.asarray(outputs, np.float64), std)
    expected = expected.reshape(4, -1).sum(axis=1)
    np.testing.assert_allclose(jax.jit(GaussianPixels(std).log_prob)(outputs, x), expected, rtol=1e-5)
    learned = quick_jit(lambda std, outputs, x: GaussianPixels(std).log_prob(outputs, x))
    np.testing.assert_allclose(learned(std, outputs, x), expected, rtol=1e-5)
    np.testing.assert_array_equal(GaussianPixels(std).mean(outputs), outputs)


def test_gaussian_samples():
    num, std = 20_000, 0.3
    means = np.array([-0.5, 0.2, 1.4])
    outputs = jnp.asarray(np.broadcast_to(means.reshape(1, 1, 1, 3), (num, 1, 1, 3)), jnp.float32)
    x = np.asarray(quick_jit(GaussianPixels(std).sample)(jax.random.key(0), outputs), np.float64).reshape(
        num, 3
    )
    standardised = (x - means) / std
    assert (np.abs(standardised.mean(axis=0)) < 5.0 / np.sqrt(num)).all()
    assert (np.abs((standardised**2).mean(axis=0) - 1.0) < 5.0 * np.sqrt(2.0 / num)).all()


def test_soft_floor_value():
    log_std = np.array([-20.0, -8.0, -6.0, -5.0, 0.0, 2.0])
    expected = -6.0 + np.logaddexp(0.0, log_std + 6.0)
    # The sum is rounded at the size of the floor.
    error = np.abs(np.asarray(quick_jit(soft_floor)(jnp.asarray(log_std, jnp.float32))) - expected)
    assert (error < 6.0 * 2.0 * EPS).all()
    np.testing.assert_allclose(soft_floor(jnp.asarray(0.0), floor=0.0), np.log(2.0), rtol=1e-6)


def test_learned_std_never_falls_below_the_floor():
    log_std = jnp.asarray([-1e30, -1e4, -100.0, -30.0, -6.0, 0.0], jnp.float32)
    std = np.exp(np.asarray(quick_jit(soft_floor)(log_std), np.float64))
    assert (std >= np.exp(-6.0)).all()
    assert (np.diff(std[3:]) > 0.0).all()


# Discretised logistic mixture


def mixture_log_prob_by_hand(outputs: np.ndarray, x: np.ndarray, num_components: int) -> np.ndarray:
    """PixelCNN++ eq. 2-3 in float64, pixel by pixel, as plain differences of sigmoids."""
    batch, height, width, channels = x.shape
    k = num_components
    result = np.zeros(batch)
    for b, i, j in np.ndindex(batch, height, width):
        out, pixel = outputs[b, i, j].astype(np.float64), 2.0 * x[b, i, j].astype(np.float64) - 1.0
        weights = scipy.special.softmax(out[:k])
        means = out[k : k + channels * k].reshape(channels, k)
        scales = np.exp(out[k + channels * k : k + 2 * channels * k].reshape(channels, k))
        coefficients = np.tanh(out[k + 2 * channels * k :].reshape(-1, k))
        mass = weights
        for c in range(channels):
            mean = means[c]
            if c == 1:
                mean = mean + coefficients[0] * pixel[0]
            if c == 2:
                mean = mean + coefficients[1] * pixel[0] + coefficients[2] * pixel[1]
            upper = np.inf if pixel[c] > 0.999 else pixel[c] + 1.0 / 255.0
            lower = -np.inf if pixel[c] < -0.999 else pixel[c] - 1.0 / 255.0
            edges = [scipy.special.expit((edge - mean) / scales[c]) for edge in (upper, lower)]
            mass = mass * (edges[0] - edges[1])
        result[b] += np.log(mass.sum())
    return result


@pytest.mark.parametrize("channels", [1, 3])
def test_mixture_is_the_float64_formula(channels: int):
    rng = np.random.default_rng(2)
    x = rng.integers(0, 256, size=(6, 2, 3, channels)) / 255.0
    x[0], x[1] = 0.0, 1.0  # the open ends
    outputs = rng.normal(size=(6, 2, 3, MIXTURE.num_outputs(channels)))
    outputs, x = outputs.astype(np.float32), x.astype(np.float32)
    expected = mixture_log_prob_by_hand(outputs, x, 3)
    np.testing.assert_allclose(log_prob(jnp.asarray(outputs), jnp.asarray(x)), expected, rtol=1e-5)


GREY = {
    "random 0": (random(0, (3,)), random(1, (3,)), random(2, (3,))),
    "random 1": (random(3, (3,), 3.0), random(4, (3,), 0.3), random(5, (3,)) - 4.0),
    "sharp": ([0.0, 1.0, 2.0], [-0.5, 0.1, 0.9], [-7.0, -7.0, -7.0]),
    "sharper than allowed": ([0.0, 1.0, 2.0], [-0.5, 0.1, 0.9], [-7.5, -20.0, -1e4]),
    "on a boundary of bins": ([0.0, 0.0, 0.0], [1.0 / 255.0, -1.0 / 255.0, 0.0], [-7.0, -7.0, -5.0]),
    "flat": ([0.0, 1.0, 2.0], [-0.5, 0.1, 0.9], [3.0, 3.0, 3.0]),
    "far outside, sharp": ([0.0, 1.0, 2.0], [-40.0, 25.0, 40.0], [-7.0, -7.0, -7.0]),
    "far outside, flat": ([0.0, 1.0, 2.0], [-40.0, 25.0, 40.0], [3.0, 3.0, 3.0]),
    "all at once": ([-30.0, 0.0, 30.0], [-40.0, 0.0, 1.0], [3.0, 0.0, -7.0]),
}


@pytest.mark.parametrize("name", GREY)
def test_grey_mixture_sums_to_one(name: str):
    logits, means, log_scales = GREY[name]
    log_probs = log_prob(mixture_outputs(256, logits, means, log_scales), pixels(GRID))
    assert abs(total(log_probs)) < ROUNDING
    assert (np.asarray(log_probs) < ROUNDING).all()


COLOUR = {
    "random 0": [random(seed, (3, 3)) for seed in (10, 11, 12)],
    "random 1": [random(seed, (3, 3), 2.0) - shift for seed, shift in ((13, 0.0), (14, 2.0), (15, 0.0))],
    "sharp": [random(16, (3, 3), 0.5), np.full((3, 3), -4.0), random(17, (3, 3))],
}


@pytest.mark.parametrize("name", COLOUR)
def test_colour_mixture_sums_to_one(name: str):
    """Σ over x_2 and x_3 of P(x_1, x_2, x_3) is the grey mixture of channel 1, which sums to one."""
    logits = [0.3, -0.4, 0.9]
    means, log_scales, coefficients = COLOUR[name]
    second, third = (side.ravel() for side in np.meshgrid(GRID, GRID, indexing="ij"))
    for first in GRID[[0, 100, 255]]:
        x = pixels(np.stack([np.full_like(second, first), second, third], axis=1))
        joint = log_prob(mixture_outputs(len(x), logits, means, log_scales, coefficients), x)
        grey = log_prob(mixture_outputs(1, logits, means[0], log_scales[0]), pixels(np.array([first])))
        assert abs(total(joint) - total(grey)) < ROUNDING


def test_colour_conditional_of_the_last_channel_sums_to_one():
    """Σ over x_3 of P(x_1, x_2, x_3) does not change with anything that belongs to channel 3."""
    logits = [0.3, -0.4, 0.9]
    means, log_scales, coefficients = COLOUR["random 0"]
    for first, second in ((0.0, GRID[9]), (GRID[77], GRID[200]), (1.0, 0.0)):
        x = pixels(np.stack([np.full(256, first), np.full(256, second), GRID], axis=1))
        sums = []
        for shift in (0.0, -0.7, 2.0):
            belongs_to_third = np.array([0.0, 0.0, shift])[:, None]
            changed = (means + belongs_to_third, log_scales - belongs_to_third)
            # Rows of `coefficients`: x_1 in x_2, x_1 in x_3, x_2 in x_3.
            moved = np.add(coefficients, np.array([[0.0], [shift], [-shift]]))
            outputs = mixture_outputs(256, logits, *changed, moved)
            sums.append(total(log_prob(outputs, x)))
        np.testing.assert_allclose(sums[1:], sums[0], rtol=0.0, atol=ROUNDING)


def test_mixture_is_finite_at_extreme_parameters():
    """log_prob and its gradient, for colours, at every pair of mean and log scale and both ends of x."""
    extreme_means = (-1e3, -30.0, -1.0, 0.0, 1.0, 30.0, 1e3)
    extreme_log_scales = (-1e3, -30.0, -7.0, 0.0, 3.0, 10.0)
    values = GRID[[0, 1, 128, 254, 255]]
    cases = np.array([(m, s, x) for m in extreme_means for s in extreme_log_scales for x in values])
    means, log_scales, x = (np.repeat(column[:, None], 3, axis=1) for column in cases.T)
    logits, large = np.tile([-1e3, 0.0, 1e3], (len(cases), 1)), np.full_like(means, 30.0)
    outputs = np.concatenate([logits, *[means] * 3, *[log_scales] * 3, *[large] * 3], axis=1)

    def summed(outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_probs = MIXTURE.log_prob(outputs, pixels(x))
        return log_probs.sum(), log_probs

    (_, log_probs), gradient = quick_jit(jax.value_and_grad(summed, has_aux=True))(pixels(outputs))
    assert np.isfinite(np.asarray(log_probs)).all()
    assert np.isfinite(np.asarray(gradient)).all()


@pytest.mark.parametrize(
    "parameters",
    [
        ([0.5, 0.0, -0.5], [-1.0, 0.3, 0.9], [-2.5, -4.5, -1.5]),
        ([0.0, 0.0, 0.0], [0.1, 0.1, 0.1], [-2.5, -2.5, -2.5]),
    ],
    ids=["three apart", "three alike"],
)
def test_samples_have_the_probabilities_of_log_prob(parameters: tuple[list[float], list[float], list[float]]):
    """Grey: how often each value is drawn, the open ends included, the mean and the variance."""
    num = 20_000
    probability = np.exp(np.asarray(log_prob(mixture_outputs(256, *parameters), pixels(GRID)), np.float64))
    x = np.asarray(sample(jax.random.key(0), mixture_outputs(num, *parameters)), np.float64)
    counts = np.bincount(np.round(x * 255.0).astype(int).ravel(), minlength=256)
    # Five standard errors are a normal tail: for values drawn often enough to have one.
    often = probability * num > 100.0
    assert often.sum() > 20
    standard_error = np.sqrt(probability * (1.0 - probability) / num)
    assert (np.abs(counts / num - probability) < 5.0 * standard_error)[often].all()
    rest = probability[~often].sum()
    assert abs(counts[~often].sum() / num - rest) < 5.0 * np.sqrt(rest * (1.0 - rest) / num)
    expected = (probability * GRID).sum()
    second, fourth = ((probability * (GRID - expected) ** power).sum() for power in (2, 4))
    assert abs(x.mean() - expected) < 5.0 * np.sqrt(second / num)
    assert abs(((x - expected) ** 2).mean() - second) < 5.0 * np.sqrt((fourth - second**2) / num)


def test_colour_samples_have_the_probabilities_of_log_prob():
    """E_p[r/p] = 1 for any mixture r: it fails where samples couple channels unlike log_prob does."""
    num, logits = 20_000, [0.5, 0.0, -0.5]
    means, log_scales = random(20, (3, 3), 0.4), np.full((3, 3), -1.5)
    coefficients = random(21, (3, 3))
    outputs = mixture_outputs(num, logits, means, log_scales, coefficients)
    x = sample(jax.random.key(1), outputs)
    assert x.shape == (num, 1, 1, 3)
    levels = np.asarray(x, np.float64) * 255.0
    assert (np.abs(levels - np.round(levels)) < 255.0 * EPS).all()
    assert set(np.unique(np.round(levels))) <= set(range(256))
    own = np.asarray(log_prob(outputs, x), np.float64)
    assert np.isfinite(own).all()
    for row in range(3):
        # The coefficient of one channel in another, and the mean of the channel that reads it.
        other_coefficients, other_means = coefficients.copy(), means.copy()
        other_coefficients[row] += 0.3
        other_means[(1, 2, 2)[row]] -= 0.1
        other = log_prob(mixture_outputs(num, logits, other_means, log_scales, other_coefficients), x)
        weight = np.exp(np.asarray(other, np.float64) - own)
        assert abs(weight.mean() - 1.0) < 5.0 * weight.std(ddof=1) / np.sqrt(num)


def values_by_hand(mean: np.ndarray, scale: float) -> np.ndarray:
    """P(n), `[..., 256]`, of a discretised logistic in float64: differences of its distribution function."""
    edges = (2.0 * np.arange(1, 256) - 1.0) / 255.0 - 1.0
    below = scipy.special.expit((edges - mean[..., None]) / scale)
    ends = np.zeros((*mean.shape, 1)), np.ones((*mean.shape, 1))
    return np.diff(np.concatenate([ends[0], below, ends[1]], axis=-1))


def colour_mean_by_hand(means: np.ndarray, scales: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Of one component: sums over all 256 values of a channel, in float64, all of the earlier ones inside."""
    grid = 2.0 * GRID - 1.0
    first = values_by_hand(means[:1], scales[0])[0]
    second = values_by_hand(means[1] + coefficients[0] * grid, scales[1])  # [256, 256]
    third = 0.0
    for probability, x, row in zip(first, grid, second, strict=True):
        mean = means[2] + coefficients[1] * x + coefficients[2] * grid
        third += probability * (row * (values_by_hand(mean, scales[2]) @ GRID)).sum()
    return np.array([first @ GRID, first @ (second @ GRID), third])


def test_grey_mixture_mean_is_the_sum_over_all_values():
    """Scales from a tenth of a bin to the whole grid, means inside, at and beyond both ends."""
    rng = np.random.default_rng(40)
    logits, means, log_scales = (
        rng.normal(size=(200, 3)),
        rng.normal(size=(200, 3)),
        rng.uniform(-8, 3, (200, 3)),
    )
    outputs = np.concatenate([logits, means, log_scales], axis=1).astype(np.float32)
    scales = np.exp(np.clip(outputs[:, 6:].astype(np.float64), -7.0, 7.0))
    expected = np.zeros(200)
    for i, (out, scale) in enumerate(zip(outputs.astype(np.float64), scales, strict=True)):
        weights = scipy.special.softmax(out[:3])
        for k in range(3):
            expected[i] += weights[k] * (values_by_hand(out[3 + k : 4 + k], scale[k])[0] @ GRID)
    np.testing.assert_allclose(np.ravel(mean(pixels(outputs))), expected, rtol=0.0, atol=ROUNDING)


def test_a_mean_near_the_end_of_the_grid_is_that_of_what_is_drawn():
    # Much of what this component draws is clipped to 1, so that its centre, 0.902, is far from its mean.
    outputs = mixture_outputs(1, [0.0] * 3, [[0.804] * 3], [[-0.53] * 3])
    expected = values_by_hand(np.full(1, 0.804), np.exp(-0.53))[0] @ GRID
    assert expected == pytest.approx(0.757, abs=0.001)
    assert float(mean(outputs).ravel()[0]) == pytest.approx(expected, abs=ROUNDING)


@pytest.mark.parametrize(
    ("seed", "spread", "log_scales", "most"),
    [(41, 0.6, (-7.0, -5.0), 0.2), (42, 0.6, (-5.0, -1.0), 0.2), (43, 1.0, (-2.0, 1.0), 0.7)],
    ids=["sharp", "usual", "over the whole grid"],
)
def test_colour_mean_is_the_sum_over_all_values(
    seed: int, spread: float, log_scales: tuple[float, float], most: float
):
    """Of one component, in grey levels; a mixture's is the weighted mean of those."""
    rng, one = np.random.default_rng(seed), LogisticMixture(1)
    for _ in range(2):
        parts = [rng.normal(size=3) * spread, rng.uniform(*log_scales, 3), rng.normal(size=3)]
        out = np.concatenate([[0.0], *parts]).astype(np.float32)
        means, log_scale, raw = np.split(out[1:].astype(np.float64), 3)
        expected = colour_mean_by_hand(means, np.exp(log_scale), np.tanh(raw))
        got = np.ravel(quick_mean(one, out))
        assert abs(255.0 * (got[0] - expected[0])) < 0.001
        assert (np.abs(255.0 * (got - expected)) < most).all(), (out, got, expected)


@functools.partial(quick_jit, static_argnums=0)
def quick_mean(likelihood: LogisticMixture, out: jax.Array) -> jax.Array:
    return likelihood.mean(out.reshape(1, 1, 1, -1))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [0.15, 1.0], ids=["inside", "clipped at both ends"])
def test_mixture_mean_is_the_mean_of_samples(channels: int, size: float):
    num, logits = 20_000, [0.5, 0.0, -0.5]
    means, coefficients = random(22, (4, 3), size), random(23, (6, 3), 2 * size)
    means, coefficients = means[:channels], coefficients[: channels * (channels - 1) // 2]
    log_scales = np.full((channels, 3), -4.0 if size < 1.0 else -1.0)
    outputs = mixture_outputs(num, logits, means, log_scales, coefficients)
    x = np.asarray(sample(jax.random.key(2), outputs), np.float64).reshape(num, channels)
    assert (0.0 in x and 1.0 in x) == (size == 1.0)
    expected = np.asarray(mean(outputs[:1])).ravel()
    assert (np.abs(x.mean(axis=0) - expected) < 5.0 * x.std(axis=0, ddof=1) / np.sqrt(num)).all()


def test_mixture_mean_is_finite_and_in_range_at_extreme_parameters():
    cases = [(m, s) for m in (-1e30, -1e3, -1.0, 0.0, 1.0, 1e3, 1e30) for s in (-1e3, -7.0, 0.0, 7.0, 1e3)]
    outputs = [[0.0] * 3 + [m] * 9 + [s] * 9 + [30.0] * 9 for m, s in cases]
    found = np.asarray(mean(pixels(np.array(outputs))))
    assert ((found >= 0.0) & (found <= 1.0)).all()  # which no NaN is
    assert found[:5].max() < ROUNDING
    assert found[-5:].min() > 1.0 - ROUNDING


def test_samples_of_a_sharp_mixture_are_its_mean():
    means = np.linspace(-1.2, 1.2, 13)
    one = LogisticMixture(1)
    outputs = np.stack([np.zeros(13), means, np.full(13, -9.0)], axis=1).astype(np.float32)
    outputs = jnp.asarray(outputs.reshape(13, 1, 1, 3))
    # The scale is held at e^−7, a ninth of a bin: its draws are in one bin, or in two that share it out.
    found, centre = np.ravel(quick_jit(one.mean)(outputs)), np.clip(0.5 + 0.5 * means, 0.0, 1.0)
    assert (np.abs(found - centre) < 0.16 / 255.0).all()
    # Half a bin of rounding, and the farthest that any of 13 draws lies, short of 5 standard errors.
    spread = 0.5 * np.exp(-7.0) * scipy.stats.logistic.isf(scipy.stats.norm.sf(5.0))
    samples = np.ravel(quick_jit(one.sample)(jax.random.key(3), outputs))
    assert (np.abs(samples - centre) <= 0.5 / 255.0 + spread).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, bool])
def test_integers_are_no_pixels(name: str, dtype: type):
    likelihood: Likelihood = make_likelihood(name, std=0.5, num_components=2)
    outputs = jnp.zeros((4, 2, 3, likelihood.num_outputs(3)))
    with pytest.raises(ValueError, match=f"x has dtype {np.dtype(dtype).name}, .*divide .* by 255"):
        likelihood.log_prob(outputs, jnp.zeros((4, 2, 3, 3), dtype))


def test_num_outputs():
    for k in (1, 5, 10):
        assert [LogisticMixture(k).num_outputs(c) for c in (1, 2, 3, 4)] == [3 * k, 6 * k, 10 * k, 15 * k]
    for likelihood in (Bernoulli(), GaussianPixels(1.0)):
        assert [likelihood.num_outputs(channels) for channels in (1, 3)] == [1, 3]


# All of them


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(name: str, channels: int):
    likelihood: Likelihood = make_likelihood(name, std=0.5, num_components=2)
    outputs = jax.ShapeDtypeStruct((4, 2, 3, likelihood.num_outputs(channels)), jnp.float32)
    x = jax.eval_shape(likelihood.sample, jax.random.key(0), outputs)
    assert x == jax.eval_shape(likelihood.mean, outputs)
    assert x.shape == (4, 2, 3, channels)
    assert jax.eval_shape(likelihood.log_prob, outputs, x).shape == (4,)


@pytest.mark.parametrize(
    "likelihood", [Bernoulli(), GaussianPixels(0.5), MIXTURE], ids=lambda p: type(p).__name__
)
def test_draws_do_not_depend_on_the_rest_of_the_batch(likelihood: Likelihood):
    """Two images among two others, then in other places among the same one twice: equal bit for bit."""
    outputs = normal(30, (4, 2, 2, likelihood.num_outputs(3)))
    keys = jax.random.split(jax.random.key(5), 4)
    draw, order = quick_jit(likelihood.sample), np.array([3, 1, 3, 0])
    x, again = np.asarray(draw(keys, outputs)), np.asarray(draw(keys[order], outputs[order]))
    np.testing.assert_array_equal(again, x[order])
    assert (x[0] != x[1]).any()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_shapes_that_do_not_fit_raise(name: str):
    likelihood: Likelihood = make_likelihood(name, std=0.5, num_components=2)
    num_outputs = likelihood.num_outputs(3)
    x = jnp.zeros((4, 2, 3, 3))
    shapes = [
        (4, 2, 3, num_outputs + 1),
        (4, 2, 3, 1),
        (4, 3, 2, num_outputs),
        (1, 2, 3, num_outputs),
        (2, 3, num_outputs),
    ]
    for shape in shapes:
        with pytest.raises(ValueError, match="shape") as caught:
            likelihood.log_prob(jnp.zeros(shape), x)
        assert str(shape) in str(caught.value)
        assert str(x.shape) in str(caught.value)


def test_mixture_outputs_that_fit_no_image_raise():
    for call in (MIXTURE.mean, lambda outputs: MIXTURE.sample(jax.random.key(0), outputs)):
        with pytest.raises(ValueError, match="20 per pixel"):
            call(jnp.zeros((4, 2, 3, 20)))


def test_an_unknown_name_raises():
    with pytest.raises(ValueError, match="poisson"):
        make_likelihood("poisson", std=1.0, num_components=2)
