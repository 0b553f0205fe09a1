"""Likelihoods p(x|z): what a decoder's outputs say about an image x with values in [0, 1].

Each is a frozen dataclass with `num_outputs(channels)`, `log_prob(outputs, x)`, `mean(outputs)` and
`sample(key, outputs)`. `outputs` is `[B, H, W, num_outputs(C)]`, straight from the decoder.
"""

import dataclasses
import math
from typing import Protocol

import jax
import jax.numpy as jnp

from hvae_jax import discretised_logistic
from hvae_jax.gaussian import LOG_2PI, check_shapes, sum_events
from hvae_jax.keys import per_image_keys

# Of images: see `discretised_logistic.expectation_of_chain`.
MAX_CHANNELS = 4
LIKELIHOODS = ("bernoulli", "gaussian_fixed_std", "gaussian_learned_std", "logistic_mixture")


class Likelihood(Protocol):
    """What a model asks of its likelihood."""

    def num_outputs(self, channels: int) -> int:
        """Decoder outputs per pixel of an image with this many channels."""
        ...

    def log_prob(self, outputs: jax.Array, x: jax.Array) -> jax.Array:
        """log p(x|z), `[B]`, nats, summed over pixels and channels."""
        ...

    def mean(self, outputs: jax.Array) -> jax.Array:
        """E[x|z], `[B, H, W, C]`."""
        ...

    def sample(self, key: jax.Array, outputs: jax.Array) -> jax.Array:
        """A draw of x given z, `[B, H, W, C]`."""
        ...


@dataclasses.dataclass(frozen=True)
class Bernoulli:
    """Independent Bernoulli pixels; the outputs are logits.

    For binary x this is a probability; for grey x in between it is only the cross entropy.

    Example:
      >>> logits, x = jnp.zeros((1, 2, 2, 1)), jnp.ones((1, 2, 2, 1))
      >>> round(float(Bernoulli().log_prob(logits, x)[0]), 4)  # 4 · log ½
      -2.7726
    """

    def num_outputs(self, channels: int) -> int:
        """One logit per channel."""
        return channels

    def log_prob(self, outputs: jax.Array, x: jax.Array) -> jax.Array:
        """Σ x log σ(o) + (1 − x) log σ(−o), `[B]`, nats."""
        check_shapes(outputs=outputs, x=x)
        check_pixels(x)
        return sum_events(x * outputs - jax.nn.softplus(outputs))

    def mean(self, outputs: jax.Array) -> jax.Array:
        """σ(outputs), in [0, 1]."""
        return jax.nn.sigmoid(outputs)

    def sample(self, key: jax.Array, outputs: jax.Array) -> jax.Array:
        """Zeros and ones."""
        return (_uniform(key, outputs.shape) < self.mean(outputs)).astype(outputs.dtype)


@dataclasses.dataclass(frozen=True)
class GaussianPixels:
    """Independent Gaussian pixels with one standard deviation for all; the outputs are means.

    Attributes:
      std: a number, or a scalar array that is learned (see `soft_floor`). A density: log_prob can
        be positive.

    Example:
      >>> x = jnp.full((1, 2, 2, 3), 0.5)
      >>> round(float(GaussianPixels(std=0.71).log_prob(x, x)[0]), 4)  # −12 · log(0.71 √(2π))
      -6.9174
    """

    std: jax.Array | float

    def num_outputs(self, channels: int) -> int:
        """One mean per channel."""
        return channels

    def log_prob(self, outputs: jax.Array, x: jax.Array) -> jax.Array:
        """Σ log N(x; outputs, std²), `[B]`, nats."""
        check_shapes(outputs=outputs, x=x)
        check_pixels(x)
        log_std = jnp.log(self.std)
        num_dims = math.prod(x.shape[1:])
        squared_error = sum_events(jnp.square(x - outputs))
        return -0.5 * squared_error * jnp.exp(-2.0 * log_std) - num_dims * (log_std + 0.5 * LOG_2PI)

    def mean(self, outputs: jax.Array) -> jax.Array:
        """The outputs themselves: not clipped, so they can leave [0, 1]."""
        return outputs

    def sample(self, key: jax.Array, outputs: jax.Array) -> jax.Array:
        """Means plus pixel noise, not clipped."""
        keys = per_image_keys(key, outputs.shape[0])
        num_dims = math.prod(outputs.shape[1:])
        noise = jax.vmap(lambda k: jax.random.normal(k, (num_dims,), outputs.dtype))(keys)
        return outputs + self.std * noise.reshape(outputs.shape)


def soft_floor(log_std: jax.Array, floor: float = -6.0) -> jax.Array:
    """floor + softplus(log_std − floor): keeps a learned log σ from running away.

    Source: Rybkin et al., Simple and Effective VAE Training with Calibrated Decoders, 2021.
    """
    return floor + jax.nn.softplus(log_std - floor)


@dataclasses.dataclass(frozen=True)
class LogisticMixture:
    """Discretised mixture of logistics over 256 values; colour channels are coupled linearly.

    Each channel's mean depends on the pixel's earlier channels, x_1, x_2, …, with coefficients
    that each component has of its own. Source: Salimans et al., PixelCNN++, 2017, eq. 2-3.
    Outputs per pixel, for C channels and K components: K mixture logits, then per channel K means,
    K log scales, and K coefficients for each earlier channel. x must lie on the grid n/255.

    Attributes:
      num_components: K.

    Example:
      >>> mixture, x = LogisticMixture(num_components=10), jnp.zeros((1, 4, 4, 3))
      >>> outputs = jnp.zeros((1, 4, 4, mixture.num_outputs(channels=3)))
      >>> outputs.shape[-1], mixture.log_prob(outputs, x).shape
      (100, (1,))
    """

    num_components: int

    def num_outputs(self, channels: int) -> int:
        """K (1 + 2 C + C (C − 1) / 2): 3 K, 6 K, 10 K, 15 K for one to four channels."""
        return self.num_components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def log_prob(self, outputs: jax.Array, x: jax.Array) -> jax.Array:
        """log Σ_k π_k Π_c P_k(x_c | x_{<c}), summed over pixels, `[B]`, nats."""
        channels = x.shape[-1]
        if outputs.shape != (*x.shape[:-1], self.num_outputs(channels)):
            raise ValueError(f"outputs of shape {outputs.shape} do not fit x of shape {x.shape}")
        check_pixels(x)
        logits, means, log_scales, coefficients = self._split(outputs, channels)
        x = 2.0 * x - 1.0
        means = self._couple(means, coefficients, x, channels)
        log_probs = discretised_logistic.log_prob(x[..., None], means, log_scales)
        mixture = jax.nn.logsumexp(jax.nn.log_softmax(logits) + log_probs.sum(axis=-2), axis=-1)
        return sum_events(mixture)

    def conditional(self, outputs: jax.Array, earlier: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """p(x_c | x_{<c}, z), which is a mixture again: its components' weights, means and scales.

        Args:
          outputs: `[B, H, W, num_outputs(C)]`.
          earlier: the channels before c, `[B, H, W, c]`.

        Returns:
          `[B, H, W, K]` each, of logistics over [−1, 1]; the weights sum to 1 over the components.
        """
        channel = earlier.shape[-1]
        logits, means, log_scales, coefficients = self._split(outputs, self._channels(outputs))
        x = 2.0 * earlier - 1.0
        log_weights = jax.nn.log_softmax(logits)
        means = self._couple(means[..., : channel + 1, :], coefficients, x, channel + 1)
        if channel:
            log_scales_before = log_scales[..., :channel, :]
            log_probs = discretised_logistic.log_prob(
                x[..., None], means[..., :channel, :], log_scales_before
            )
            log_weights = jax.nn.log_softmax(log_weights + log_probs.sum(axis=-2))
        return jnp.exp(log_weights), means[..., channel, :], jnp.exp(log_scales[..., channel, :])

    def mean(self, outputs: jax.Array) -> jax.Array:
        """E[x|z] = Σ_k π_k E_k[x] of the clipped mixture on the grid, as `sample` draws it.

        Exact for grey images and the first channel. A later channel is averaged over few draws of those
        before it, spread evenly, and is off by less than 0.15 of a grey level at usual parameters
        (`discretised_logistic.expectation_of_chain`).
        """
        channels = self._channels(outputs)
        logits, means, log_scales, coefficients = self._split(outputs, channels)
        by_channel = [means[..., c, :] for c in range(channels)]
        scales = [jnp.exp(log_scales[..., c, :]) for c in range(channels)]
        expected = discretised_logistic.expectation_of_chain(by_channel, scales, coefficients)
        weights = jax.nn.softmax(logits)[..., None, :]
        mean = (weights * jnp.stack(expected, axis=-2)).sum(axis=-1)
        return jnp.clip(0.5 + 0.5 * mean, 0.0, 1.0)

    def sample(self, key: jax.Array, outputs: jax.Array) -> jax.Array:
        """A component per pixel, then its channels in turn; values on the grid n/255."""
        channels = self._channels(outputs)
        logits, means, log_scales, coefficients = self._split(outputs, channels)
        keys = jax.vmap(lambda k: jax.random.split(k, 2))(per_image_keys(key, outputs.shape[0]))
        gumbel = -jnp.log(-jnp.log(_uniform(keys[:, 0], logits.shape)))
        chosen = jax.nn.one_hot(jnp.argmax(logits + gumbel, axis=-1), self.num_components)
        uniform = _uniform(keys[:, 1], (*logits.shape[:-1], channels))
        logistic = jnp.log(uniform) - jnp.log1p(-uniform)
        drawn: list[jax.Array] = []
        for c in range(channels):
            mean = (means[..., c, :] * chosen).sum(axis=-1)
            for i in range(c):
                mean = mean + (coefficients[c][i] * chosen).sum(axis=-1) * drawn[i]
            scale = jnp.exp((log_scales[..., c, :] * chosen).sum(axis=-1))
            # Rounded before later channels see it: log_prob conditions on the value on the grid.
            drawn.append(discretised_logistic.snap(mean + scale * logistic[..., c]))
        return 0.5 + 0.5 * jnp.stack(drawn, axis=-1)

    def _channels(self, outputs: jax.Array) -> int:
        for channels in range(1, MAX_CHANNELS + 1):
            if outputs.shape[-1] == self.num_outputs(channels):
                return channels
        raise ValueError(
            f"outputs have {outputs.shape[-1]} per pixel, which fits no number of channels from 1 to "
            f"{MAX_CHANNELS}"
        )

    def _split(
        self, outputs: jax.Array, channels: int
    ) -> tuple[jax.Array, jax.Array, jax.Array, list[list[jax.Array]]]:
        k = self.num_components
        logits, rest = outputs[..., :k], outputs[..., k:]
        parts = rest.reshape(*rest.shape[:-1], -1, k)
        means, log_scales = parts[..., :channels, :], parts[..., channels : 2 * channels, :]
        flat = jnp.tanh(parts[..., 2 * channels :, :])
        coefficients, start = [], 0
        for c in range(channels):
            coefficients.append([flat[..., start + i, :] for i in range(c)])
            start += c
        # A scale below exp(−7) is under a tenth of a bin: no sharper distribution exists on the grid.
        # Above exp(7) all 256 values are alike; the cap keeps the width of a bin above zero in float32.
        return logits, means, jnp.clip(log_scales, -7.0, 7.0), coefficients

    def _couple(
        self, means: jax.Array, coefficients: list[list[jax.Array]], x: jax.Array, channels: int
    ) -> jax.Array:
        coupled = []
        for c in range(channels):
            earlier = [coefficients[c][i] * x[..., i, None] for i in range(c)]
            coupled.append(sum(earlier, means[..., c, :]))
        return jnp.stack(coupled, axis=-2)


def check_pixels(x: jax.Array) -> None:
    """Images are floating point: of integers, nobody can say whether they are 0 … 255 or zeros and ones.

    Raises:
      ValueError: they are not.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"x has dtype {x.dtype}, but must hold floating point values in [0, 1]: divide pixels of 0 … 255 "
            "by 255, and turn zeros and ones into float32"
        )


def make_likelihood(name: str, *, std: jax.Array | float, num_components: int) -> Likelihood:
    """The likelihood called `name`, one of LIKELIHOODS.

    Args:
      name: as in a model's config.
      std: of the Gaussian ones, fixed or learned; others ignore it.
      num_components: of the logistic mixture; others ignore it.

    Raises:
      ValueError: an unknown name.
    """
    if name == "bernoulli":
        return Bernoulli()
    if name in ("gaussian_fixed_std", "gaussian_learned_std"):
        return GaussianPixels(std)
    if name == "logistic_mixture":
        return LogisticMixture(num_components)
    raise ValueError(f"likelihood must be one of {LIKELIHOODS}, got {name!r}")


def _uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform draws in (0, 1), `shape`, from one key or `[B]` of them."""
    keys = per_image_keys(key, shape[0])
    size = math.prod(shape[1:])
    tiny = float(jnp.finfo(jnp.float32).tiny)
    draws = jax.vmap(lambda k: jax.random.uniform(k, (size,), minval=tiny))(keys)
    return draws.reshape(shape)
