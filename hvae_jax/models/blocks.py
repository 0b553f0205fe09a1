"""The parts that the generative and inference networks are made of.

Parameters are float32. Each part computes in the type of its input, and what leaves the networks as
mean and standard deviation is float32 again.

Every convolution of the models is one *stage* of the image's way down, or its transpose on the way
up: kernel 4, stride 2, padding 1 where height and width are even, and kernel 4, stride 1, no padding where
they are odd. 32 → 16 → 8 → 4 and 28 → 14 → 7 → 4 are the published ones; images need not be square, as long
as both sides are even at the same stages. A stage's transpose restores the size exactly, so up and down
always meet.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from hvae_jax.categorical import Categorical
from hvae_jax.gaussian import Gaussian
from hvae_jax.mixture import Mixture
from hvae_jax.models import convolution
from hvae_jax.models import convolution_products as products

KERNEL_SIZE = 4
HEAD_KERNEL_SIZE = 3
# Far below any standard deviation worth its rate; keeps log(std) finite where softplus underflows.
MIN_STD = 1e-6


class Changes(Protocol):
    """What betas do to a network, see `conditioning`; each call makes weights of the module it is in."""

    def __call__(self, h: jax.Array) -> jax.Array:
        """To hidden maps and vectors `[B, ..., C]`."""
        ...

    def of_outputs(self, h: jax.Array) -> jax.Array:
        """To what becomes the mean and standard deviation of a latent, `[B, ..., C]`."""
        ...


# None where networks are not told the betas.
Condition = Changes | None


class Stage(NamedTuple):
    """One convolution of the way down from `size_in` to `size_out`, each (height, width) in pixels."""

    size_in: tuple[int, int]
    size_out: tuple[int, int]
    stride: int
    padding: int


def make_stages(size: tuple[int, int], num_stages: int) -> tuple[Stage, ...]:
    """The stages that take an image of this (height, width) down.

    Raises:
      ValueError: a side runs out before the stages do, or one is odd where the other is even.
    """
    stages = []
    for number in range(num_stages):
        left = f"{size[0]}×{size[1]} pixels are left after {number}"
        if size[0] % 2 != size[1] % 2:
            raise ValueError(f"{left}, one side even, the other odd, and no stage takes such a map down")
        stride, padding = (2, 1) if size[0] % 2 == 0 else (1, 0)
        height, width = ((side + 2 * padding - KERNEL_SIZE) // stride + 1 for side in size)
        if min(height, width) < 1:
            raise ValueError(f"num_stages={num_stages} is too many: {left}")
        stages.append(Stage(size, (height, width), stride, padding))
        size = height, width
    return tuple(stages)


def uniform_fan_in(fan_in: int) -> nn.initializers.Initializer:
    """U(−1/√fan_in, 1/√fan_in), for weights and biases: PyTorch's default, so the published code's."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
        # Flat, for XLA's sake: see gaussian.sample.
        flat = jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound)
        return flat.reshape(tuple(shape))

    return init


class Dense(nn.Module):
    """y = x W + b over the last axis."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = uniform_fan_in(x.shape[-1])
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        y = products.matmul(x, kernel.astype(x.dtype))
        return add_bias(y, self.param("bias", init, (self.features,)))


class Conv(nn.Module):
    """Convolution with bias, `[B, H, W, C]` → `[B, H', W', features]`."""

    features: int
    kernel_size: int
    stride: int
    padding: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, channels = self.kernel_size, x.shape[-1]
        init = uniform_fan_in(size * size * channels)
        kernel = self.param("kernel", init, (size, size, channels, self.features))
        y = convolution.conv(x, kernel.astype(x.dtype), stride=self.stride, padding=self.padding)
        return add_bias(y, self.param("bias", init, (self.features,)))


class ConvTranspose(nn.Module):
    """Transposed convolution with bias, `[B, H, W, C]` → `[B, H', W', features]`."""

    features: int
    kernel_size: int
    stride: int
    padding: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size, channels = self.kernel_size, x.shape[-1]
        # PyTorch takes the output channels for the fan of a transposed convolution.
        init = uniform_fan_in(size * size * self.features)
        kernel = self.param("kernel", init, (size, size, channels, self.features))
        y = convolution.conv_transpose(x, kernel.astype(x.dtype), stride=self.stride, padding=self.padding)
        return add_bias(y, self.param("bias", init, (self.features,)))


class Down(nn.Module):
    """`x` through `stages`, a convolution and ReLU each."""

    stages: tuple[Stage, ...]
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, condition: Condition = None) -> jax.Array:
        for stage in self.stages:
            x = hidden(Conv(self.channels, KERNEL_SIZE, stage.stride, stage.padding)(x), condition)
        return x


class Up(nn.Module):
    """`x` back through `stages`, the last of them first; ReLU after each."""

    stages: tuple[Stage, ...]
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, condition: Condition = None) -> jax.Array:
        for stage in reversed(self.stages):
            x = hidden(ConvTranspose(self.channels, KERNEL_SIZE, stage.stride, stage.padding)(x), condition)
        return x


class Lift(nn.Module):
    """A latent brought to a feature map of `size` pixels, to be joined with what lives there.

    A vector starts as a map at the bottom of `stages`; a map of `size` pixels stays as it is.
    """

    stages: tuple[Stage, ...]
    channels: int
    size: tuple[int, int]

    @nn.compact
    def __call__(self, z: jax.Array, condition: Condition = None) -> jax.Array:
        if z.ndim == 2:
            bottom = (*self.stages[-1].size_out, self.channels)
            z = hidden(Dense(math.prod(bottom))(z), condition).reshape(-1, *bottom)
        between = tuple(s for s in self.stages if s.size_in <= self.size and s.size_out >= z.shape[1:3])
        return Up(between, self.channels)(z, condition)


class Head(nn.Module):
    """Two arrays of `shape` per image from the same features, as one product.

    A vector comes from the flattened features, a map from a convolution with kernel 3.
    """

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, h: jax.Array, condition: Condition = None) -> tuple[jax.Array, jax.Array]:
        if len(self.shape) == 1:
            both = Dense(2 * self.shape[0])(flatten(h))
        else:
            both = Conv(2 * self.shape[-1], HEAD_KERNEL_SIZE, 1, 1)(h)
        first, second = jnp.split(outputs(both, condition), 2, axis=-1)
        return first, second


class LogitsHead(nn.Module):
    """A categorical distribution of `shape`, (K,) or (variables, K), from the flattened features."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, h: jax.Array) -> Categorical:
        logits = Dense(math.prod(self.shape))(flatten(h)).astype(jnp.float32)
        return Categorical(logits.reshape(-1, *self.shape))


class MixturePrior(nn.Module):
    """A learned mixture of Gaussians for z_L: equal weights, means from N(0, I), and stds of 1 at first."""

    shape: tuple[int, ...]
    num_components: int

    @nn.compact
    def __call__(self, batch_size: int) -> Mixture:
        num, shape = self.num_components, (self.num_components, *self.shape)

        def draw(key: jax.Array) -> jax.Array:
            return jax.random.normal(key, (math.prod(shape),)).reshape(shape)  # flat: see gaussian.sample

        logits = self.param("logits", lambda _: jnp.zeros(num))
        mean = self.param("mean", draw)
        raw = self.param("raw_std", lambda _: jnp.full(shape, math.log(math.e - 1.0)))  # softplus⁻¹(1)
        std = nn.softplus(raw) + MIN_STD
        return Mixture(*(jnp.broadcast_to(a[None], (batch_size, *a.shape)) for a in (logits, mean, std)))


class DenseHead(nn.Module):
    """A hidden layer half as wide as the latent, ReLU, and two arrays of `shape` per image."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, h: jax.Array, condition: Condition = None) -> tuple[jax.Array, jax.Array]:
        size = math.prod(self.shape)
        h = hidden(Dense(max(size // 2, 1))(flatten(h)), condition)
        both = outputs(Dense(2 * size)(h), condition)
        first, second = jnp.split(both, 2, axis=-1)
        return first.reshape(-1, *self.shape), second.reshape(-1, *self.shape)


def hidden(h: jax.Array, condition: Condition) -> jax.Array:
    """ReLU of a hidden map or vector, after what the betas do to it."""
    return nn.relu(h if condition is None else condition(h))


def outputs(h: jax.Array, condition: Condition) -> jax.Array:
    """What becomes a mean and a standard deviation, after what the betas do to it."""
    return h if condition is None else condition.of_outputs(h)


@jax.custom_jvp
def gelu(x: jax.Array) -> jax.Array:
    """x Φ(x), Φ the standard normal's distribution function; exact, as PyTorch's.

    The value and derivative of `jax.nn.gelu` take three times as long on CPUs, where deep networks spent
    almost half of a step in them.
    """
    return x * _normal_cdf(x)


@gelu.defjvp
def _gelu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    (x,), (tangent,) = primals, tangents
    cdf = _normal_cdf(x)
    density = jnp.exp(-0.5 * jnp.square(x)) * (1.0 / math.sqrt(2.0 * math.pi))
    return x * cdf, (cdf + x * density) * tangent


def _normal_cdf(x: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jax.lax.erf(x * math.sqrt(0.5)))


def with_softplus_std(head: tuple[jax.Array, jax.Array]) -> Gaussian:
    """A Gaussian whose standard deviation is softplus of the second array."""
    mean, raw = to_float32(head)
    return Gaussian(mean, nn.softplus(raw) + MIN_STD)


def with_softplus_var(head: tuple[jax.Array, jax.Array]) -> Gaussian:
    """A Gaussian whose *variance* is softplus of the second array: a ladder's proposal."""
    mean, raw = to_float32(head)
    return Gaussian(mean, jnp.sqrt(nn.softplus(raw) + MIN_STD**2))


def to_float32(head: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Both arrays as float32: rates and draws are computed in it whatever the networks compute in."""
    return head[0].astype(jnp.float32), head[1].astype(jnp.float32)


def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """`[..., F]` + `[F]`, broadcast by name so that it passes where rank promotion is an error."""
    # Added in the bias's own float32: its gradient is a sum over many pixels, too long for bfloat16.
    return (y.astype(bias.dtype) + jnp.broadcast_to(bias, y.shape)).astype(y.dtype)


def flatten(x: jax.Array) -> jax.Array:
    """`[B, ...]` → `[B, N]`."""
    return x.reshape(x.shape[0], -1)
