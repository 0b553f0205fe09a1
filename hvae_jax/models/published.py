"""The published networks, one module each, and the family that they are.

Their sizes and order of layers are those of Xiao and Bamler (2023) wherever those exist.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from hvae_jax import categorical, gaussian
from hvae_jax.categorical import Categorical
from hvae_jax.distributions import Distribution
from hvae_jax.errors import RunError
from hvae_jax.gaussian import Gaussian
from hvae_jax.models import blocks
from hvae_jax.models.conditioning import Condition, Conditioner
from hvae_jax.models.config import CATEGORICAL, MIXTURE, ModelConfig, check_image_shape

MIN_SIDE, MAX_SIDE = 8, 64
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
    def __call__(self, higher: list[jax.Array], condition: Condition | None = None) -> Gaussian:
        if self.depth == len(self.stages):
            flat = jnp.concatenate([blocks.flatten(z) for z in higher], axis=-1)
            return blocks.with_softplus_std(blocks.DenseHead(self.shape)(flat, condition))
        size = self.shape[0], self.shape[1]
        lifted = [blocks.Lift(self.stages, self.channels, size)(z, condition) for z in higher]
        h = blocks.Conv(self.channels, blocks.HEAD_KERNEL_SIZE, 1, 1)(jnp.concatenate(lifted, axis=-1))
        return blocks.with_softplus_std(blocks.Head(self.shape)(blocks.hidden(h, condition), condition))


class Posterior(nn.Module):
    """q(z_l | z_{>l}, x) as a network of its own (generalised top-down).

    x comes down to the side before the layer's own, the higher latents come up to it, one more
    convolution reads both.
    """

    shape: tuple[int, ...]
    stages: tuple[blocks.Stage, ...]
    depth: int
    channels: int
    kind: str

    @nn.compact
    def __call__(
        self, x: jax.Array, higher: list[jax.Array], condition: Condition | None = None
    ) -> Gaussian | Categorical:
        last = self.stages[self.depth - 1]
        h = blocks.Down(self.stages[: self.depth - 1], self.channels)(x, condition)
        lifted = [blocks.Lift(self.stages, self.channels, last.size_in)(z, condition) for z in higher]
        h = blocks.Down((last,), self.channels)(jnp.concatenate([*lifted, h], axis=-1), condition)
        if self.kind == CATEGORICAL:
            return blocks.LogitsHead(self.shape)(h)
        return blocks.with_softplus_std(blocks.Head(self.shape)(h, condition))


class Proposal(nn.Module):
    """What a ladder's bottom-up features propose for one layer: two arrays, mean first, or a categorical."""

    shape: tuple[int, ...]
    stages: tuple[blocks.Stage, ...]
    channels: int
    kind: str

    @nn.compact
    def __call__(
        self, features: jax.Array, condition: Condition | None = None
    ) -> tuple[jax.Array, jax.Array] | Categorical:
        h = blocks.Down(self.stages, self.channels)(features, condition)
        if self.kind == CATEGORICAL:
            return blocks.LogitsHead(self.shape)(h)
        return blocks.Head(self.shape)(h, condition)


class Decoder(nn.Module):
    """p(x|z_1): z_1 back through `stages`; no ReLU after the last. Returns the likelihood's outputs."""

    stages: tuple[blocks.Stage, ...]
    channels: int
    num_outputs: int
    is_mixture: bool

    @nn.compact
    def __call__(self, z_1: jax.Array, condition: Condition | None = None) -> jax.Array:
        stages, h = self.stages, z_1
        if h.ndim == 2:
            # As published, a vector enters one stage up; with a single stage there is no such place.
            stages = stages[:-1] or stages
            bottom = (*stages[-1].size_out, self.channels)
            h = blocks.hidden(blocks.Dense(math.prod(bottom))(h), condition).reshape(-1, *bottom)
        h = blocks.Up(stages[1:], self.channels)(h, condition)
        first = stages[0]
        size, stride, padding = blocks.KERNEL_SIZE, first.stride, first.padding
        if not self.is_mixture:
            return blocks.ConvTranspose(self.num_outputs, size, stride, padding)(h)
        # A mixture has many outputs per pixel: a wide last map and a kernel-3 convolution, as published.
        h = blocks.hidden(blocks.ConvTranspose(MIXTURE_CHANNELS, size, stride, padding)(h), condition)
        return blocks.Conv(self.num_outputs, blocks.HEAD_KERNEL_SIZE, 1, 1)(h)


def depth(stages: tuple[blocks.Stage, ...], shape: tuple[int, ...]) -> int:
    """How many stages lie between the image and a latent of this shape."""
    if len(shape) < 3:
        return len(stages)
    return [stage.size_out for stage in stages].index((shape[0], shape[1])) + 1


class Above(NamedTuple):
    """The state of the published networks: the latents above a layer.

    Attributes:
      batch_size: B.
      latents: z_{l+1} … z_L, categorical ones as vectors.
      condition: what the betas do to the networks that generate.
    """

    batch_size: int
    latents: tuple[jax.Array, ...]
    condition: Condition | None = None


class Features(NamedTuple):
    """What the posteriors of the published networks read of an image.

    Attributes:
      maps: x, and for a ladder the shared bottom-up pass over it, stage by stage.
      condition: what the betas do to the networks that infer.
    """

    maps: list[jax.Array]
    condition: Condition | None


class Published(nn.Module):
    """The networks of Xiao and Bamler (2023) for any number of layers, as `walk.Networks`.

    For two layers, a map z_1 at the smallest stage and a vector z_2, they are the published ones, layer for
    layer. Every prior and posterior reads all latents above it; x depends on z_1 alone.
    """

    image_shape: tuple[int, int, int]
    config: ModelConfig
    num_outputs: int  # per pixel, to the likelihood

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.config.latent_shapes)

    def setup(self) -> None:
        """Builds the networks of every layer, and the decoder p(x|z_1)."""
        config = self.config
        self.conditioner = Conditioner(config.conditioning)
        stages = blocks.make_stages(self.image_shape[:2], config.num_stages)
        shapes, kinds = config.latent_shapes, config.kinds
        depths = [depth(stages, shape) for shape in shapes]
        inner = range(len(shapes) - 1)

        def make(network: type[nn.Module], name: str, *arguments: Any) -> Any:
            # Rematerialised, a network's gradient keeps its inputs alone. Typed as what it is without.
            return (nn.remat(network) if config.remat else network)(*arguments, name=name)

        self.priors = [
            make(Prior, f"prior_{i}", shapes[i], stages, depths[i], config.channels) for i in inner
        ]
        if config.inference == "ladder":
            # Layer l leaves the shared pass one stage before its own side, the top layer at its side.
            self.shared = [
                make(blocks.Down, f"bottom_up_{i}", (stages[i],), config.channels) for i in range(max(depths))
            ]
            own = [stages[depths[i] - 1 : depths[i]] for i in inner] + [()]
            self.posteriors = [
                make(Proposal, f"posterior_{i}", shape, own[i], config.channels, kinds[i])
                for i, shape in enumerate(shapes)
            ]
        else:
            self.posteriors = [
                make(Posterior, f"posterior_{i}", shape, stages, depths[i], config.channels, kinds[i])
                for i, shape in enumerate(shapes)
            ]
        self.depths = depths
        if config.top_prior == MIXTURE:
            top = len(shapes) - 1
            name, size = f"prior_{top}", config.num_prior_components
            self.top_prior = blocks.MixturePrior(shapes[top], size, name=name)
        is_mixture = config.likelihood == "logistic_mixture"
        self.decoder = make(
            Decoder, "decoder", stages[: depths[0]], config.channels, self.num_outputs, is_mixture
        )

    @property
    def is_conditioned(self) -> bool:
        """Whether the networks are told the betas."""
        return self.config.is_conditioned

    def bottom_up(self, x: jax.Array, betas: jax.Array | None = None) -> Features:
        """x, and for a ladder the shared bottom-up pass over it, stage by stage."""
        maps, condition = [self._cast(x)], self.conditioner(betas)
        if self.config.inference == "ladder":
            for stage in self.shared:
                maps.append(stage(maps[-1], condition))
        return Features(maps, condition)

    def start(self, batch_size: int, betas: jax.Array | None = None) -> Above:
        """Nothing is above z_L."""
        return Above(batch_size, (), self.conditioner(betas, generates=True))

    def prior(self, layer: int, state: Above) -> tuple[Distribution, Above]:
        """N(0, I) for z_L, or a mixture; uniform where z_L is categorical."""
        if layer == self.num_layers:
            shape = (state.batch_size, *self.config.latent_shapes[-1])
            if self.config.kinds[-1] == CATEGORICAL:
                return categorical.uniform(shape), state
            if self.config.top_prior == MIXTURE:
                return self.top_prior(state.batch_size), state
            return Gaussian(jnp.zeros(shape), jnp.ones(shape)), state
        return self.priors[layer - 1](self._higher(state), state.condition), state

    def posterior(self, layer: int, state: Above, features: Features, p: Any) -> Distribution:
        """A network of its own, or a ladder's product of p and what `features` propose."""
        network: Any = self.posteriors[layer - 1]  # a Proposal for a ladder, else a Posterior
        maps, condition = features
        if self.config.inference != "ladder":
            return network(maps[0], self._higher(state), condition)
        depth = self.depths[layer - 1]
        if layer == self.num_layers:  # the top layer's posterior is what the bottom-up pass says
            proposal = network(maps[depth], condition)
            return proposal if isinstance(proposal, Categorical) else blocks.with_softplus_std(proposal)
        return gaussian.precision_weighted(blocks.with_softplus_var(network(maps[depth - 1], condition)), p)

    def below(self, layer: int, state: Above, z: jax.Array) -> Above:
        """z joins the latents above."""
        if self.config.kinds[layer - 1] == CATEGORICAL:
            z = blocks.flatten(z)
        return state._replace(latents=(z, *state.latents))

    def outputs(self, state: Above) -> jax.Array:
        """Of z_1 alone, in float32 for the likelihood."""
        return self.decoder(self._cast(state.latents[0]), state.condition).astype(jnp.float32)

    def _higher(self, state: Above) -> list[jax.Array]:
        return list(map(self._cast, state.latents))

    def _cast(self, a: jax.Array) -> jax.Array:
        """To the type that the networks compute in."""
        return a.astype(self.config.compute_dtype)


def check(config: ModelConfig, image_shape: tuple[int, int, int]) -> None:
    """Raises RunError unless the networks that a config describes fit images of this shape."""
    check_image_shape(image_shape, MIN_SIDE, MAX_SIDE)
    height, width, _ = image_shape
    try:
        stages = blocks.make_stages((height, width), config.num_stages)
    except ValueError as error:
        fitting = [side for side in range(MIN_SIDE, MAX_SIDE + 1) if _fits(height, side, config.num_stages)]
        hint = f"; with images {height} pixels high, these widths fit: {fitting}" if fitting else ""
        raise RunError(f"config.model.num_stages={config.num_stages}: {error}{hint}") from error
    sizes = [stage.size_out for stage in stages]
    for layer, shape in enumerate(config.latent_shapes, start=1):
        if len(shape) == 3 and shape[:2] not in sizes:
            raise RunError(
                f"config.model.latent_shapes: layer {layer} is {shape}, but images of {height}×{width} "
                f"pixels pass through maps of {', '.join(f'{h}×{w}' for h, w in sizes)} "
                f"(config.model.num_stages={config.num_stages}); use one of these"
            )
    depths = [depth(stages, shape) for shape in config.latent_shapes]
    if depths != sorted(depths):
        raise RunError(
            f"config.model.latent_shapes={config.latent_shapes}: sides must not grow towards the top layer, "
            "the last entry (a vector counts as the smallest side)"
        )


def _fits(height: int, width: int, num_stages: int) -> bool:
    try:
        return bool(blocks.make_stages((height, width), num_stages))
    except ValueError:
        return False
