"""Pixels on a stack, under p(x|z): zeros and ones of a Bernoulli likelihood, bytes of a logistic mixture.

Images are uint8 `[N, H, W, C]`, 0 to 255; those of a Bernoulli likelihood are black and white, 0 and 255.
"""

from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from hvae_jax.codec.compiled import compiled
from hvae_jax.codec.stack import Stack
from hvae_jax.discretised_logistic import NUM_VALUES
from hvae_jax.errors import RunError
from hvae_jax.likelihoods import LogisticMixture
from hvae_jax.models.hvae import HVAE

# Of the distribution function of a pixel's 256 values.
PIXEL_BITS = 18
# Shares that each value has whatever its probability. Two, since rounding can take one from a value that has
# none: neighbours in float32 may come in the wrong order.
FLOOR = 2


class Pixels(Protocol):
    """How pixels are coded, given what the decoder says of a batch of B ≥ N images."""

    def borrowed_bits(self, image_shape: tuple[int, ...]) -> int:
        """Bits of an image, at most, that are popped before any are pushed."""
        ...

    def check(self, images: np.ndarray) -> None:
        """Raises RunError where images are not what the likelihood is of."""
        ...

    def push(self, stack: Stack, outputs: jax.Array, images: np.ndarray) -> np.ndarray:
        """The bits that each image took, `[N]`."""
        ...

    def pop(self, stack: Stack, outputs: jax.Array, num: int) -> np.ndarray:
        """N = num images."""
        ...


def make_pixels(model: HVAE) -> Pixels:
    """How pixels are coded under a model's likelihood.

    Raises:
      RunError: its pixels are not discrete.
    """
    config = model.config
    if config.likelihood == "bernoulli":
        return BinaryPixels()
    if config.likelihood == "logistic_mixture":
        return MixturePixels(LogisticMixture(config.num_mixture_components))
    raise RunError(
        f"config.model.likelihood={config.likelihood!r} is a density, of which there are no bits to send; "
        "train with bernoulli (binarised images) or logistic_mixture"
    )


class BinaryPixels:
    """Under a Bernoulli likelihood."""

    def borrowed_bits(self, image_shape: tuple[int, ...]) -> int:
        """None."""
        return 0

    def check(self, images: np.ndarray) -> None:
        """Raises RunError where images are not black and white."""
        if not np.isin(images, (0, 255)).all():
            raise RunError(
                "a bernoulli likelihood codes black and white images, 0 and 255; these have grey pixels: "
                "train with config.data.binarize=round, or with likelihood logistic_mixture"
            )

    def push(self, stack: Stack, outputs: jax.Array, images: np.ndarray) -> np.ndarray:
        """See `Pixels`."""
        num = len(images)
        numbers, probabilities = (images > 0).reshape(num, -1), self._probabilities(outputs)
        bits = np.zeros(num)
        for i in range(num):
            before = stack.num_bits
            stack.push_binary(numbers[i], probabilities[i])
            bits[i] = stack.num_bits - before
        return bits

    def pop(self, stack: Stack, outputs: jax.Array, num: int) -> np.ndarray:
        """See `Pixels`."""
        probabilities = self._probabilities(outputs)
        numbers = [stack.pop_binary(probabilities[i]) for i in range(num - 1, -1, -1)][::-1]
        return (255 * np.stack(numbers)).astype(np.uint8).reshape(num, *outputs.shape[1:])

    def _probabilities(self, outputs: jax.Array) -> np.ndarray:
        return expit(np.asarray(outputs, np.float64)).reshape(outputs.shape[0], -1)


class MixturePixels:
    """Under a mixture of discretised logistics: channel by channel, each given those before it."""

    def __init__(self, likelihood: LogisticMixture) -> None:
        """Of a likelihood."""
        self._likelihood = likelihood

    def borrowed_bits(self, image_shape: tuple[int, ...]) -> int:
        """What lies within the shares of one channel's values."""
        return image_shape[0] * image_shape[1] * PIXEL_BITS

    def check(self, images: np.ndarray) -> None:
        """Any bytes will do."""

    def push(self, stack: Stack, outputs: jax.Array, images: np.ndarray) -> np.ndarray:
        """See `Pixels`."""
        num = len(images)
        padded = np.zeros((outputs.shape[0], *images.shape[1:]), np.uint8)
        padded[:num] = images
        bits = np.zeros(num)
        for channel in range(images.shape[-1] - 1, -1, -1):
            starts_of = self._starts(outputs, padded, channel)
            here = padded[..., channel].astype(np.int32)
            starts, ends = starts_of(here), starts_of(here + 1)
            widths = ends - starts
            stack.reserve(float(np.log2(widths[:num]).sum()))
            within = []
            for i in range(num):
                before = stack.num_bits
                within.append(stack.pop_below(widths[i]))
                bits[i] += stack.num_bits - before
            for i in range(num):
                before = stack.num_bits
                stack.push_uniform(starts[i] + within[i], PIXEL_BITS)
                bits[i] += stack.num_bits - before
        return bits

    def pop(self, stack: Stack, outputs: jax.Array, num: int) -> np.ndarray:
        """See `Pixels`."""
        batch, height, width = outputs.shape[:3]
        channels = next(c for c in (1, 3) if self._likelihood.num_outputs(c) == outputs.shape[-1])
        images = np.zeros((batch, height, width, channels), np.uint8)
        for channel in range(channels):
            starts_of = self._starts(outputs, images, channel)
            numbers = np.zeros((batch, height * width), np.int64)
            for i in range(num - 1, -1, -1):
                numbers[i] = stack.pop_uniform(height * width, PIXEL_BITS)
            # The largest value whose share begins at the number or before it, bit by bit from the top.
            found = np.zeros((batch, height, width), np.int32)
            for bit in reversed(range((NUM_VALUES - 1).bit_length())):
                higher = found + 2**bit
                is_there = (starts_of(higher) <= numbers).reshape(found.shape)
                found = np.where(is_there, higher, found)
            starts, ends = starts_of(found), starts_of(found + 1)
            for i in range(num - 1, -1, -1):
                stack.push_below(numbers[i] - starts[i], ends[i] - starts[i])
            images[:num, ..., channel] = found[:num]
        return images[:num]

    def _starts(self, outputs: jax.Array, images: np.ndarray, channel: int) -> "_Starts":
        earlier = jnp.asarray(images[..., :channel])
        return _Starts(_conditional(self._likelihood, outputs, earlier))


class _Starts:
    """Values `[B, H, W]` → where their shares of 2^PIXEL_BITS begin, int64 `[B, H W]`."""

    def __init__(self, components: tuple[jax.Array, jax.Array, jax.Array]) -> None:
        self._components = components

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        starts = np.asarray(_begin(*self._components, jnp.asarray(numbers)), np.int64)
        return starts.reshape(len(starts), -1)


@compiled(static_argnums=0)
def _conditional(
    likelihood: LogisticMixture, outputs: jax.Array, earlier: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    return likelihood.conditional(outputs, earlier.astype(jnp.float32) / 255.0)


@compiled()
def _begin(weights: jax.Array, means: jax.Array, scales: jax.Array, numbers: jax.Array) -> jax.Array:
    """Value n's share begins at P(x < n), rounded, and the floors of values below it; 256 is the end."""
    edge = (2.0 * numbers.astype(jnp.float32) - 1.0) / 255.0 - 1.0
    below = (weights * jax.nn.sigmoid((edge[..., None] - means) / scales)).sum(axis=-1)
    begin = jnp.rint(jnp.clip(below, 0.0, 1.0) * (2**PIXEL_BITS - FLOOR * NUM_VALUES))
    begin = begin.astype(jnp.int32) + FLOOR * numbers
    begin = jnp.where(numbers <= 0, 0, begin)
    return jnp.where(numbers >= NUM_VALUES, 2**PIXEL_BITS, begin)
