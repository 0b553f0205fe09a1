"""Deep hierarchies: the networks of VDVAE (Child, 2021), whose layers share one running map.

What its authors' code calls them, here per side of the maps: `bottom_up` (its encoder's blocks), `top_down`
(its decoder's, of which `posterior`, `prior`, `project`, `residual` are `enc`, `prior`, `z_proj`, `resnet`)
and `start` (its `bias_xs`). x enters as 2 x − 1. Layers and blocks of one side are scanned, so that neither
compile time nor the size of a program grows with depth; the weights of all of them are one array.

Where the largest maps are smaller than the image, an image comes in and goes out as patches: s × s pixels are
the channels of one. Neither images nor maps need be square: a side is then the height, and maps of one height
have one width.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from hvae_jax.errors import RunError
from hvae_jax.gaussian import Gaussian
from hvae_jax.mixture import Mixture
from hvae_jax.models import blocks, convolution
from hvae_jax.models import convolution_products as products
from hvae_jax.models.conditioning import Condition, Conditioner, Initial, initial
from hvae_jax.models.config import MIXTURE, ModelConfig, check_image_shape

MIN_SIDE, MAX_SIDE = 8, 256
# A block's inner channels are the maps' divided by this.
BOTTLENECK = 4
# 1 × 1 instead of 3 × 3 convolutions on the smallest maps, and no learned start of the largest ones.
MAX_POINTWISE_SIDE, MAX_START_SIDE = 2, 64
# Only keeps log σ where its exponential is a float32.
MAX_LOG_STD = 30.0

Weights = Any


class Parameter(NamedTuple):
    """How one array of weights begins: uniform in ± scale / √fan_in, or the same number everywhere."""

    shape: tuple[int, ...]
    fan_in: int = 0
    scale: float = 0.0
    value: float = 0.0


class Running(NamedTuple):
    """The state of deep networks.

    Attributes:
      map: float32 `[B, side, side, channels]`.
      condition: what the betas do to the networks that generate.
      added: within a layer, what the prior's block adds to the map; None between layers.
      top_prior: above z_L, p(z_L) where the config has a mixture for it; None elsewhere.
    """

    map: jax.Array
    condition: Condition | None
    added: jax.Array | None = None
    top_prior: Mixture | None = None


class Features(NamedTuple):
    """What the posteriors read of an image.

    Attributes:
      maps: side → `[B, side, side, channels]`.
      condition: what the betas do to the networks that infer.
    """

    maps: dict[int, jax.Array]
    condition: Condition | None


class Deep(nn.Module):
    """The networks of VDVAE, as `walk.Networks` and `walk.RepeatedLayers`.

    A state is the running map. Layer l reads it for its prior, with the features of the image for its
    posterior, and adds what the prior's block has besides, z_l, and a residual block. x depends on all
    layers. Conditioned, the betas change the three inner maps of every block.
    """

    image_shape: tuple[int, int, int]
    config: ModelConfig
    num_outputs: int  # per pixel, to the likelihood

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.config.latent_shapes)

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The layers of each side, the smallest first; z_L by itself where its prior is of another kind."""
        (top, bottom), *others = self._sides
        if self.config.top_prior == MIXTURE and top > bottom:
            return (top, top), (top - 1, bottom), *others
        return self._sides

    @property
    def _sides(self) -> tuple[tuple[int, int], ...]:
        """The highest and the lowest layer of each side, the smallest side first."""
        return tuple((highest, lowest) for lowest, highest in reversed(self.config.groups))

    def setup(self) -> None:
        """Makes the weights; those of a side lead with its blocks or layers, in the order of the walk."""
        config = self.config
        width, inner = config.channels, max(config.channels // BOTTLENECK, 1)
        self.conditioner = Conditioner(config.conditioning)
        infers, generates = (initial(config.conditioning, self.num_layers, which) for which in (False, True))
        self.patch = _ratio(self.image_shape, config.latent_shapes[0])
        num_pixels = math.prod(self.patch)
        num_blocks = sum(num for _, num in config.blocks_by_side)
        self.input = self._make("input", _conv(self.image_shape[-1] * num_pixels, width, 3))
        sizes = {shape[0]: shape[:2] for shape in config.latent_shapes}
        self.up = {
            side: self._make(
                f"bottom_up_{side}", _block(sizes[side], width, inner, width, num, num_blocks**-0.5, infers)
            )
            for side, num in config.blocks_by_side
        }
        down, starts = {}, {}  # filled before Flax sees and freezes them
        for highest, lowest in self._sides:
            side, across, latent = config.latent_shapes[lowest - 1]
            size = side, across
            num, scale = highest - lowest + 1, self.num_layers**-0.5
            down[side] = self._make(
                f"top_down_{side}",
                {
                    "posterior": _block(size, 2 * width, inner, 2 * latent, num, 1.0, infers),
                    "prior": _block(size, width, inner, 2 * latent + width, num, 0.0, generates),
                    "project": _conv(latent, width, 1, num, scale),
                    "residual": _block(size, width, inner, width, num, scale, generates),
                },
            )
            if max(size) <= MAX_START_SIDE:
                starts[side] = self._make(f"start_{side}", Parameter((*size, width)))
        self.down, self.starts = down, starts
        if config.top_prior == MIXTURE:
            self.top_prior = blocks.MixturePrior(config.latent_shapes[-1], config.num_prior_components)
        self.output = self._make(
            "output",
            {
                "gain": Parameter((width,), value=1.0),
                "bias": Parameter((width,)),
                "conv": _conv(width, self.num_outputs * num_pixels, 1),
            },
        )

    def weights(self, highest: int, lowest: int) -> Weights:
        """Of these layers, which have the same side."""
        top = next(top for top, bottom in self._sides if bottom <= lowest <= top)
        weights = self.down[self.config.latent_shapes[lowest - 1][0]]
        return jax.tree.map(lambda leaf: leaf[top - highest : top - lowest + 1], weights)

    @property
    def is_conditioned(self) -> bool:
        """Whether the networks are told the betas."""
        return self.config.is_conditioned

    def bottom_up(self, x: jax.Array, betas: jax.Array | None = None) -> Features:
        """Features of every side. The last block of a side is on the way to the next smaller one."""
        condition = self.conditioner(betas)
        h = _conv_apply(self.input, self._cast(_to_patches(2.0 * x - 1.0, self.patch))).astype(jnp.float32)
        features, block = {}, self._block(condition)
        sizes = [size for size, _ in itertools.groupby(shape[:2] for shape in self.config.latent_shapes)]
        for size, smaller in itertools.zip_longest(sizes, sizes[1:]):
            side = size[0]

            def step(maps: tuple[jax.Array, jax.Array], weights: Weights) -> Any:
                return (maps[1], maps[1] + block(weights, maps[1])), None

            (before, h), _ = jax.lax.scan(step, (h, h), self.up[side])
            features[side] = h if smaller is None else before
            if smaller is not None:
                h = _pool(h, _ratio(size, smaller))
        return Features(features, condition)

    def start(self, batch_size: int, betas: jax.Array | None = None) -> Running:
        """The learned start of the smallest maps."""
        start = self.starts[self.config.latent_shapes[-1][0]]
        running = jnp.broadcast_to(start[None], (batch_size, *start.shape))
        top_prior = self.top_prior(batch_size) if self.config.top_prior == MIXTURE else None
        return Running(running, self.conditioner(betas, generates=True), top_prior=top_prior)

    def enter(self, highest: int, state: Running) -> Running:
        """The running map enlarged to the side of this layer, plus what is learned for that side."""
        shape = self.config.latent_shapes[highest - 1]
        side = shape[0]
        if side == state.map.shape[1]:  # the start, or z_L above was a run by itself
            return state
        running = _enlarge(state.map, _ratio(shape, state.map.shape[1:]))
        if side in self.starts:
            running = running + jnp.broadcast_to(self.starts[side][None], running.shape)
        return state._replace(map=running)

    def prior(self, layer: Weights, state: Running) -> tuple[Gaussian | Mixture, Running]:
        """Of the running map; the state for the rest of the layer has what is added to it as well."""
        h, latent = self._block(state.condition)(layer["prior"], state.map), _num_latent(layer)
        p = _gaussian(h[..., : 2 * latent]) if state.top_prior is None else state.top_prior
        return p, state._replace(added=h[..., 2 * latent :])

    def posterior(self, layer: Weights, state: Running, features: Features, p: Any) -> Gaussian:
        """Of the running map and the features of its side."""
        read = jnp.concatenate([state.map, features.maps[state.map.shape[1]]], axis=-1)
        return _gaussian(self._block(features.condition)(layer["posterior"], read))

    def below(self, layer: Weights, state: Running, z: jax.Array) -> Running:
        """The running map with z in it."""
        projected = _conv_apply(layer["project"], self._cast(z)).astype(jnp.float32)
        assert state.added is not None  # by `prior`
        running = state.map + state.added + projected
        running = running + self._block(state.condition)(layer["residual"], running)
        return Running(running, state.condition)

    def outputs(self, state: Running) -> jax.Array:
        """A linear map of the last running map, pixel by pixel."""
        gain, bias = (jnp.broadcast_to(self.output[name], state.map.shape) for name in ("gain", "bias"))
        outputs = _conv_apply(self.output["conv"], self._cast(state.map * gain + bias))
        return _from_patches(outputs.astype(jnp.float32), self.patch)

    def _make(self, name: str, parameters: Any) -> Weights:
        return self.param(name, lambda key: _init(key, parameters))

    def _cast(self, a: jax.Array) -> jax.Array:
        return a.astype(self.config.compute_dtype)

    def _block(self, condition: Condition | None) -> Any:
        """(weights, map) → the residual bottleneck block's branch, float32; rematerialised if so asked."""

        # Only what enters a GELU is kept for the backward pass, which computes it again: on CPUs, writing
        # its value and derivative of every layer to memory took longer.
        @functools.partial(jax.checkpoint, prevent_cse=False)
        def stage(weights: Weights, x: jax.Array) -> jax.Array:
            # GELU in float32, as every function but products.
            return _conv_apply(weights, self._cast(blocks.gelu(x.astype(jnp.float32))))

        def branch(weights: Weights, x: jax.Array, condition: Condition | None) -> jax.Array:
            x = self._cast(x)
            for number in (1, 2, 3, 4):
                if condition is not None and number > 1:
                    x = condition.apply(weights[f"change_{number}"], x)
                x = stage(weights[f"conv_{number}"], x)
            return x.astype(jnp.float32)

        block = jax.checkpoint(branch) if self.config.remat else branch
        return lambda weights, x: block(weights, x, condition)


def check(config: ModelConfig, image_shape: tuple[int, int, int]) -> None:
    """Raises RunError unless the networks that a config describes fit images of this shape."""
    check_image_shape(image_shape, MIN_SIDE, MAX_SIDE)
    shapes = [shape for shape, _ in itertools.groupby(config.latent_shapes)]
    for layer, shape in enumerate(config.latent_shapes, start=1):
        if len(shape) != 3:
            raise RunError(
                f"config.model.latent_shapes: layer {layer} is {shape}, but every layer of a deep network "
                "is a map (height, width, channels); (1, 1, channels) is a vector"
            )
    sides = [shape[0] for shape in shapes]
    for place, (larger, smaller) in enumerate(itertools.pairwise([image_shape, *shapes])):
        are_parts = larger[0] % smaller[0] == larger[1] % smaller[1] == 0
        if not are_parts or (place and larger[0] == smaller[0]):
            sizes = [f"{shape[0]}×{shape[1]}" for shape in (*shapes, image_shape)]
            raise RunError(
                f"config.model.latent_shapes: from z_1 to the top layer there are maps of "
                f"{', '.join(sizes[:-1])}; heights and widths must divide each other and the image's, "
                f"{sizes[-1]}, and heights must differ; layers of a size lie together and have equal channels"
            )
    if [side for side, _ in config.blocks_by_side] != sides:
        raise RunError(
            f"config.model.blocks_by_side={config.blocks_by_side} must have (side, number of blocks) for "
            f"each of the sides {sides} of config.model.latent_shapes, in this order"
        )


def _conv(channels_in: int, channels_out: int, size: int, num: int = 0, scale: float = 1.0) -> Any:
    """Weights of a convolution, or of `num` of them; biases begin as zeros."""
    leading = (num,) if num else ()
    kernel = (size, size) if size > 1 else ()
    return {
        "kernel": Parameter((*leading, *kernel, channels_in, channels_out), size * size * channels_in, scale),
        "bias": Parameter((*leading, channels_out)),
    }


def _block(
    map_size: tuple[int, ...],
    channels_in: int,
    inner: int,
    channels_out: int,
    num: int,
    last_scale: float,
    changes: Initial | None,
) -> Any:
    """Weights of `num` blocks; those of the changes that betas make have names of their own."""
    size = 1 if max(map_size) <= MAX_POINTWISE_SIDE else 3
    weights = {
        "conv_1": _conv(channels_in, inner, 1, num),
        "conv_2": _conv(inner, inner, size, num),
        "conv_3": _conv(inner, inner, size, num),
        "conv_4": _conv(inner, channels_out, 1, num, last_scale),
    }
    if changes is not None:
        of_maps = {
            "kernel": Parameter((num, changes.num_inputs, changes.num_changes * inner)),
            "bias": Parameter((num, changes.num_changes * inner), value=changes.bias),
        }
        weights |= {f"change_{number}": of_maps for number in (2, 3, 4)}
    return weights


def _init(key: jax.Array, parameters: Any) -> Weights:
    """Arrays for a pytree of `Parameter`s."""
    leaves, structure = jax.tree.flatten(parameters, is_leaf=lambda node: isinstance(node, Parameter))
    sizes = [math.prod(leaf.shape) if leaf.scale else 0 for leaf in leaves]
    # One flat draw for all: each would be compiled by itself.
    flat = jax.random.uniform(key, (sum(sizes),), jnp.float32, -1.0, 1.0)
    drawn = jnp.split(flat, list(itertools.accumulate(sizes))[:-1])
    arrays = [
        part.reshape(leaf.shape) * (leaf.scale * leaf.fan_in**-0.5)
        if leaf.scale
        else jnp.full(leaf.shape, leaf.value)
        for leaf, part in zip(leaves, drawn, strict=True)
    ]
    return jax.tree.unflatten(structure, arrays)


def _conv_apply(weights: Weights, x: jax.Array) -> jax.Array:
    """A convolution that keeps the side, in the type of x; a kernel without sides is a product."""
    kernel = weights["kernel"].astype(x.dtype)
    if kernel.ndim == 2:
        return blocks.add_bias(products.matmul(x, kernel), weights["bias"])
    y = convolution.conv(x, kernel, stride=1, padding=kernel.shape[0] // 2)
    return blocks.add_bias(y, weights["bias"])


def _gaussian(h: jax.Array) -> Gaussian:
    mean, log_std = jnp.split(h, 2, axis=-1)
    return Gaussian(mean, jnp.exp(jnp.clip(log_std, -MAX_LOG_STD, MAX_LOG_STD)))


def _num_latent(layer: Weights) -> int:
    return layer["project"]["kernel"].shape[-2]


def _ratio(larger: tuple[int, ...], smaller: tuple[int, ...]) -> tuple[int, int]:
    """How often the height and the width of one shape are in those of another."""
    return larger[0] // smaller[0], larger[1] // smaller[1]


def _pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Means of as many pixels, down and across."""
    return _in_parts(x, size).mean(axis=(2, 4))


def _in_parts(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """`[B, H, W, C]` → `[B, H / down, down, W / across, across, C]`."""
    (batch, height, width, channels), (down, across) = x.shape, size
    return x.reshape(batch, height // down, down, width // across, across, channels)


def _enlarge(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Every pixel as often, down and across."""
    (batch, height, width, channels), (down, across) = x.shape, size
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, down, width, across, channels))
    return x.reshape(batch, height * down, width * across, channels)


def _to_patches(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """`[B, H, W, C]` → `[B, H / down, W / across, down · across · C]`."""
    if size == (1, 1):
        return x
    x = _in_parts(x, size).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(*x.shape[:3], -1)


def _from_patches(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The inverse of `_to_patches`."""
    if size == (1, 1):
        return x
    (batch, height, width, channels), (down, across) = x.shape, size
    x = x.reshape(batch, height, width, down, across, channels // (down * across))
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * down, width * across, -1)
