"""The networks of an HVAE, one module each: prior, both kinds of posterior, decoder.

Their sizes and order of layers are the published ones (Xiao and Bamler, 2023) wherever those exist.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from hvae_jax.gaussian import Gaussian
from hvae_jax.models import blocks

MIXTURE_CHANNELS = 128


class Prior(nn.Module):
    """p(z_l | z_{>l}) for a layer below the top.

    The smallest maps and vectors come from a small dense network of all higher latents, as published;
    larger maps from convolutions, since a dense network would dwarf the rest of the model.
    """

    shape: tuple[int, ...]
    stages: tuple[blocks.Stage, ...]
    depth: int
    channels: int

    @nn.compact
    def __call__(self, higher: list[jax.Array]) -> Gaussian:
        if self.depth == len(self.stages):
            flat = jnp.concatenate([blocks.flatten(z) for z in higher], axis=-1)
            return blocks.with_softplus_std(blocks.DenseHead(self.shape)(flat))
        lifted = [blocks.Lift(self.stages, self.channels, self.shape[0])(z) for z in higher]
        h = blocks.Conv(self.channels, blocks.HEAD_KERNEL_SIZE, 1, 1)(jnp.concatenate(lifted, axis=-1))
        return blocks.with_softplus_std(blocks.Head(self.shape)(nn.relu(h)))


class Posterior(nn.Module):
    """q(z_l | z_{>l}, x) as a network of its own (generalised top-down).

    x comes down to the side before the layer's own, the higher latents come up to it, one more
    convolution reads both.
    """

    shape: tuple[int, ...]
    stages: tuple[blocks.Stage, ...]
    depth: int
    channels: int

    @nn.compact
    def __call__(self, x: jax.Array, higher: list[jax.Array]) -> Gaussian:
        last = self.stages[self.depth - 1]
        h = blocks.Down(self.stages[: self.depth - 1], self.channels)(x)
        lifted = [blocks.Lift(self.stages, self.channels, last.side_in)(z) for z in higher]
        h = blocks.Down((last,), self.channels)(jnp.concatenate([*lifted, h], axis=-1))
        return blocks.with_softplus_std(blocks.Head(self.shape)(h))


class Proposal(nn.Module):
    """What a ladder's bottom-up features propose for one layer: two arrays, mean first."""

    shape: tuple[int, ...]
    stages: tuple[blocks.Stage, ...]
    channels: int

    @nn.compact
    def __call__(self, features: jax.Array) -> tuple[jax.Array, jax.Array]:
        return blocks.Head(self.shape)(blocks.Down(self.stages, self.channels)(features))


class Decoder(nn.Module):
    """p(x|z_1): z_1 back through `stages`; no ReLU after the last. Returns the likelihood's outputs."""

    stages: tuple[blocks.Stage, ...]
    channels: int
    num_outputs: int
    is_mixture: bool

    @nn.compact
    def __call__(self, z_1: jax.Array) -> jax.Array:
        stages, h = self.stages, z_1
        if h.ndim == 2:
            # As published, a vector enters one stage up; with a single stage there is no such place.
            stages = stages[:-1] or stages
            side = stages[-1].side_out
            h = nn.relu(blocks.Dense(side * side * self.channels)(h)).reshape(-1, side, side, self.channels)
        h = blocks.Up(stages[1:], self.channels)(h)
        first = stages[0]
        size, stride, padding = blocks.KERNEL_SIZE, first.stride, first.padding
        if not self.is_mixture:
            return blocks.ConvTranspose(self.num_outputs, size, stride, padding)(h)
        # A mixture has many outputs per pixel: a wide last map and a kernel-3 convolution, as published.
        h = nn.relu(blocks.ConvTranspose(MIXTURE_CHANNELS, size, stride, padding)(h))
        return blocks.Conv(self.num_outputs, blocks.HEAD_KERNEL_SIZE, 1, 1)(h)


def depth(stages: tuple[blocks.Stage, ...], shape: tuple[int, ...]) -> int:
    """How many stages lie between the image and a latent of this shape."""
    if len(shape) == 1:
        return len(stages)
    return [stage.side_out for stage in stages].index(shape[0]) + 1
