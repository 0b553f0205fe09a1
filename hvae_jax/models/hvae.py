"""Hierarchical VAEs whose inference model factorises top-down, so that their rates split by layer.

Generative model p(z_L) p(z_{L-1}|z_L) … p(z_1|z_2..L) p(x|z_1). Lists run z_1 → z_L: entry l − 1 is
layer l. Sampling runs the other way, from the top layer z_L down to the data.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from hvae_jax import gaussian, likelihoods
from hvae_jax.errors import RunError
from hvae_jax.gaussian import Gaussian
from hvae_jax.keys import fold_in, per_image_keys
from hvae_jax.models import blocks, networks
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.values import MAX_SIZE, is_integer, is_number, shorten

INFERENCE = ("generalized_top_down", "ladder")
COMPUTE_DTYPES = ("float32", "bfloat16")
MIN_SIDE, MAX_SIDE = 8, 64


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What a config's `model` group says; every field is checked before any work starts.

    Attributes:
      inference: "generalized_top_down" (every q(z_l|z_{>l}, x) a network of its own) or "ladder"
        (precision-weighted product of the prior and what a shared bottom-up pass proposes).
      latent_shapes: one shape per layer, z_1 first; `(d,)` is a vector, `(side, side, c)` a map whose
        side is one that the stages pass through. Sides do not grow towards the top.
      channels: of every convolution.
      num_stages: convolutions between the image and the smallest feature map.
      likelihood: one of `likelihoods.LIKELIHOODS`.
      likelihood_std: σ of "gaussian_fixed_std"; "gaussian_learned_std" starts from it, within 1 %.
      num_mixture_components: of "logistic_mixture".
      compute_dtype: of the networks' products and activations. Parameters, draws, rates and likelihood
        are float32 whatever it is.
      remat: whether gradients compute the networks' activations a second time instead of keeping them:
        the same numbers in less memory, for about a third more time.

    Example:
      >>> config = ModelConfig(
      ...     inference="ladder",
      ...     latent_shapes=((2, 2, 16), (8,)),
      ...     channels=16,
      ...     num_stages=2,
      ...     likelihood="bernoulli",
      ...     likelihood_std=1.0,  # of the Gaussian likelihoods; every field is given
      ...     num_mixture_components=10,
      ...     compute_dtype="float32",
      ...     remat=False,
      ... )
      >>> len(config.latent_shapes)
      2
    """

    inference: str
    latent_shapes: tuple[tuple[int, ...], ...]
    channels: int
    num_stages: int
    likelihood: str
    likelihood_std: float
    num_mixture_components: int
    compute_dtype: str
    remat: bool

    def __post_init__(self) -> None:
        if self.inference == "bottom_up":
            raise RunError(
                "config.model.inference='bottom_up' is refused: q(z_1|x) q(z_2|z_1) has no rate per layer, "
                "since its KL divergence does not split along the layers of a top-down prior; "
                f"choose one of {INFERENCE}"
            )
        if self.inference not in INFERENCE:
            raise RunError(
                f"config.model.inference={shorten(self.inference)} is unknown; choose one of {INFERENCE}"
            )
        if self.likelihood not in likelihoods.LIKELIHOODS:
            raise RunError(
                f"config.model.likelihood={shorten(self.likelihood)} is unknown; "
                f"choose one of {likelihoods.LIKELIHOODS}"
            )
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise RunError(
                f"config.model.compute_dtype={shorten(self.compute_dtype)} is unknown; "
                f"choose one of {COMPUTE_DTYPES}"
            )
        if not isinstance(self.remat, bool):
            raise RunError(f"config.model.remat={shorten(self.remat)} must be True or False")
        for name in ("channels", "num_stages", "num_mixture_components"):
            value = getattr(self, name)
            if not is_integer(value, 1, MAX_SIZE):
                raise RunError(
                    f"config.model.{name}={shorten(value)} must be an integer of at least 1 and at most "
                    f"{MAX_SIZE}"
                )
        std = self.likelihood_std
        if not is_number(std) or std <= 0:
            raise RunError(
                f"config.model.likelihood_std={shorten(std)} must be a number, positive and finite"
            )
        shapes = self.latent_shapes
        if not isinstance(shapes, tuple) or not shapes or not all(map(_is_latent_shape, shapes)):
            raise RunError(
                f"config.model.latent_shapes={shorten(shapes)} must hold one shape per layer, z_1 first, "
                "each (dims,) or (side, side, channels), for example ((4, 4, 32), (32,))"
            )


class Layer(NamedTuple):
    """What inference says about one latent layer: posterior, prior and the draw that was passed on."""

    q: Gaussian
    p: Gaussian
    z: jax.Array


class Code(NamedTuple):
    """One layer's part of `HVAE.encode`: q(z_l|z_{>l}, x) and a draw from it, each `[B, ...]`."""

    mean: jax.Array
    std: jax.Array
    sample: jax.Array


class HVAE(nn.Module):
    """A hierarchical VAE of any number of layers; `make_hvae` checks what it is made from.

    For two layers, a map z_1 at the smallest stage and a vector z_2, both inference classes are the
    published networks of Xiao and Bamler (2023), layer for layer. L = 1 is the plain VAE.

    Example:
      >>> sizes = (((2, 2, 4), (3,)), 4, 2)
      >>> config = ModelConfig("generalized_top_down", *sizes, "bernoulli", 1.0, 10, "float32", False)
      >>> model = make_hvae(config, image_shape=(8, 8, 1))
      >>> x, key = jnp.zeros((5, 8, 8, 1)), jax.random.key(0)
      >>> params = jax.eval_shape(model.init, key, x, key)  # only shapes; model.init(key, x, key) draws them
      >>> terms = jax.eval_shape(model.apply, params, x, key)
      >>> terms.distortion.shape, terms.rates.shape
      ((5,), (5, 2))
    """

    image_shape: tuple[int, int, int]
    config: ModelConfig

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.config.latent_shapes)

    def setup(self) -> None:
        """Builds the networks: `prior` p(z_l|z_{>l}), `posterior` q(z_l|z_{>l}, x), `decoder` p(x|z_1)."""
        config = self.config
        stages = blocks.make_stages(self.image_shape[0], config.num_stages)
        shapes = config.latent_shapes
        depths = [networks.depth(stages, shape) for shape in shapes]
        inner = range(len(shapes) - 1)
        # Rematerialised, a network's gradient keeps its inputs alone. Typed as what it is without.
        wrap: Any = nn.remat if config.remat else lambda network: network
        self.prior = [wrap(networks.Prior)(shapes[i], stages, depths[i], config.channels) for i in inner]
        if config.inference == "ladder":
            # Layer l leaves the shared pass one stage before its own side, the top layer at its side.
            self.bottom_up = [wrap(blocks.Down)((stage,), config.channels) for stage in stages[: max(depths)]]
            own = [stages[depths[i] - 1 : depths[i]] for i in inner]
            self.posterior = [wrap(networks.Proposal)(shapes[i], own[i], config.channels) for i in inner] + [
                wrap(networks.Proposal)(shapes[-1], (), config.channels)
            ]
        else:
            self.posterior = [
                wrap(networks.Posterior)(shape, stages, depth, config.channels)
                for shape, depth in zip(shapes, depths, strict=True)
            ]
        likelihood = likelihoods.make_likelihood(
            config.likelihood, std=config.likelihood_std, num_components=config.num_mixture_components
        )
        num_outputs = likelihood.num_outputs(self.image_shape[-1])
        if config.likelihood == "gaussian_learned_std":
            start = math.log(config.likelihood_std)
            self.log_std = self.param("log_std", lambda _: jnp.asarray(start, jnp.float32))
        is_mixture = config.likelihood == "logistic_mixture"
        self.decoder = wrap(networks.Decoder)(stages[: depths[0]], config.channels, num_outputs, is_mixture)

    def __call__(self, x: jax.Array, key: jax.Array) -> LayerwiseTerms:
        """D and R_1 … R_L of each image, with one posterior draw per image.

        Args:
          x: `[B, H, W, C]`, values in [0, 1], floating point.
          key: a typed key, or `[B]` of them, one per image.

        Returns:
          distortion `[B]` and rates `[B, L]`, nats; each rate's KL is analytic.

        Raises:
          ValueError: x has another shape, or integers in it (8-bit pixels that nobody divided by 255).
        """
        layers = self._infer(x, key)
        rates = [gaussian.kl_divergence(layer.q, layer.p) for layer in layers]
        log_likelihood = self._likelihood().log_prob(self._outputs(layers[0].z), x)
        return LayerwiseTerms(-log_likelihood, jnp.stack(rates, axis=1))

    def log_weight(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """log p(x, z) − log q(z|x) at one posterior draw: the importance weight of `x`.

        Args:
          x: `[B, H, W, C]`.
          key: a typed key, or `[B]` of them, one per image.

        Returns:
          `[B]`, nats. Its mean is the ELBO; log E exp is log p(x) (Burda et al., 2016).
        """
        layers = self._infer(x, key)
        log_weight = self._likelihood().log_prob(self._outputs(layers[0].z), x)
        for layer in layers:
            log_weight += gaussian.log_prob(layer.p, layer.z) - gaussian.log_prob(layer.q, layer.z)
        return log_weight

    def encode(self, x: jax.Array, key: jax.Array, temperature: float = 1.0) -> list[Code]:
        """Posterior of every layer, z_1 first, given the draws of the layers above it.

        Args:
          x: `[B, H, W, C]`.
          key: a typed key, or `[B]` of them, one per image.
          temperature: scales the draws' standard deviations; at 0 a draw is its mean, so that every
            layer's posterior is given the means of the layers above it.

        Returns:
          L entries of `mean`, `std`, `sample`, each `[B, *latent_shapes[l − 1]]`.
        """
        return [Code(layer.q.mean, layer.q.std, layer.z) for layer in self._infer(x, key, temperature)]

    def decode(self, z_1: jax.Array) -> jax.Array:
        """E[x|z_1], `[B, H, W, C]`, not clipped."""
        return self._likelihood().mean(self._outputs(z_1))

    def reconstruct(self, x: jax.Array, from_layer: int = 1) -> jax.Array:
        """E[x|z_1] with the posterior means of layers L … from_layer and the prior means below.

        Args:
          x: `[B, H, W, C]`.
          from_layer: 1 … L. 1 uses every layer's code; L only that of the top layer.

        Returns:
          `[B, H, W, C]`, not clipped.

        Raises:
          ValueError: no such layer.
        """
        if not 1 <= from_layer <= self.num_layers:
            raise ValueError(f"from_layer must be in 1 … {self.num_layers}, got {from_layer}")
        features = self._features(x)
        means: list[jax.Array] = []
        for index in reversed(range(self.num_layers)):
            p = self._prior(index, means)
            q = None
            if index + 1 >= from_layer:
                q = self._posterior(index, features, means, p)
                p = q if p is None else p
            assert p is not None
            means.insert(0, p.mean if q is None else q.mean)
        return self.decode(means[0])

    def sample(self, key: jax.Array, num: int, temperature: jax.Array | float = 1.0) -> jax.Array:
        """E[x|z_1] for latents drawn from the prior: means of pixels, which `draw` draws.

        Args:
          key: a typed key.
          num: B.
          temperature: scales the prior's standard deviations; a number, or `[L]`, z_1 first.

        Returns:
          `[B, H, W, C]`, not clipped.

        Raises:
          ValueError: temperature is neither a number nor `[L]`.
        """
        return self.decode(self._draw_z_1(per_image_keys(key, num), temperature))

    def draw(self, key: jax.Array, num: int, temperature: jax.Array | float = 1.0) -> jax.Array:
        """x drawn from the model: latents as `sample` draws them at the same key, pixels from p(x|z_1).

        Args:
          key: a typed key.
          num: B.
          temperature: of the latents alone, as in `sample`. Pixels keep their noise: at 0 all images share
            the prior's mean and differ still.

        Returns:
          `[B, H, W, C]`: zeros and ones of a Bernoulli likelihood, values on the grid n/255 of a logistic
          mixture, any number, not clipped, of a Gaussian.

        Raises:
          ValueError: temperature is neither a number nor `[L]`.

        Example:
          >>> sizes = (((2, 2, 4), (3,)), 4, 2)
          >>> config = ModelConfig("generalized_top_down", *sizes, "bernoulli", 1.0, 10, "float32", False)
          >>> model, x, key = make_hvae(config, (8, 8, 1)), jnp.zeros((1, 8, 8, 1)), jax.random.key(0)
          >>> params = jax.eval_shape(model.init, key, x, key)  # only shapes, as in the example of HVAE
          >>> jax.eval_shape(lambda p: model.apply(p, key, num=5, method="draw"), params).shape
          (5, 8, 8, 1)
        """
        keys = per_image_keys(key, num)
        outputs = self._outputs(self._draw_z_1(keys, temperature))
        return self._likelihood().sample(fold_in(keys, self.num_layers), outputs)

    def _draw_z_1(self, keys: jax.Array, temperature: jax.Array | float) -> jax.Array:
        """z_1 of the prior, `[B, ...]`; layer l draws with its index, l − 1, folded into `keys` `[B]`."""
        temperature = jnp.asarray(temperature, jnp.float32)
        if temperature.shape not in ((), (self.num_layers,)):
            raise ValueError(
                f"temperature must be one number or [{self.num_layers}], got {temperature.shape}"
            )
        temperature = jnp.broadcast_to(temperature, (self.num_layers,))
        latents: list[jax.Array] = []
        for index in reversed(range(self.num_layers)):
            p = self._prior(index, latents)
            if p is None:
                shape = (len(keys), *self.config.latent_shapes[index])
                p = Gaussian(jnp.zeros(shape), jnp.ones(shape))
            latents.insert(0, gaussian.sample(fold_in(keys, index), p, temperature[index]))
        return latents[0]

    def _infer(self, x: jax.Array, key: jax.Array, temperature: float = 1.0) -> list[Layer]:
        features = self._features(x)
        keys = per_image_keys(key, x.shape[0])
        layers: list[Layer] = []
        for index in reversed(range(self.num_layers)):
            higher = [layer.z for layer in layers]
            p = self._prior(index, higher)
            q = self._posterior(index, features, higher, p)
            z = gaussian.sample(fold_in(keys, index), q, temperature)
            layers.insert(0, Layer(q, gaussian.standard(q) if p is None else p, z))
        return layers

    def _features(self, x: jax.Array) -> list[jax.Array]:
        """What inference reads: x, and for a ladder the shared bottom-up pass over it, stage by stage."""
        if x.shape[1:] != self.image_shape:
            raise ValueError(f"x must be [B, {', '.join(map(str, self.image_shape))}], got {x.shape}")
        likelihoods.check_pixels(x)
        features = [self._cast(x)]
        if self.config.inference == "ladder":
            for stage in self.bottom_up:
                features.append(stage(features[-1]))
        return features

    def _prior(self, index: int, higher: list[jax.Array]) -> Gaussian | None:
        """p(z_l|z_{>l}); None stands for the top layer's N(0, I)."""
        return self.prior[index](list(map(self._cast, higher))) if higher else None

    def _posterior(
        self, index: int, features: list[jax.Array], higher: list[jax.Array], p: Gaussian | None
    ) -> Gaussian:
        network: Any = self.posterior[index]  # a Proposal for a ladder, else a Posterior
        if self.config.inference != "ladder":
            return network(features[0], list(map(self._cast, higher)))
        side = self.config.latent_shapes[index]
        depth = networks.depth(blocks.make_stages(self.image_shape[0], self.config.num_stages), side)
        if p is None:  # the top layer's posterior is what the bottom-up pass says
            return blocks.with_softplus_std(network(features[depth]))
        proposal = blocks.with_softplus_var(network(features[depth - 1]))
        return gaussian.precision_weighted(proposal, p)

    def _outputs(self, z_1: jax.Array) -> jax.Array:
        """What the decoder says of x, in float32 for the likelihood."""
        return self.decoder(self._cast(z_1)).astype(jnp.float32)

    def _cast(self, a: jax.Array) -> jax.Array:
        """To the type that the networks compute in."""
        return a.astype(self.config.compute_dtype)

    def _likelihood(self) -> likelihoods.Likelihood:
        std: jax.Array | float = self.config.likelihood_std
        if self.config.likelihood == "gaussian_learned_std":
            std = jnp.exp(likelihoods.soft_floor(self.log_std))
        return likelihoods.make_likelihood(
            self.config.likelihood, std=std, num_components=self.config.num_mixture_components
        )


def make_hvae(config: ModelConfig, image_shape: tuple[int, int, int]) -> HVAE:
    """An HVAE for images of this shape.

    Args:
      config: what to build; checked when it was made.
      image_shape: height, width, channels.

    Raises:
      RunError: the config does not fit such images.

    Example:
      >>> sizes = (((4, 4, 16), (20,)), 16, 3)
      >>> config = ModelConfig("generalized_top_down", *sizes, "bernoulli", 1.0, 10, "float32", False)
      >>> make_hvae(config, image_shape=(28, 28, 1)).num_layers  # the published network for MNIST
      2
    """
    if not isinstance(image_shape, tuple | list) or [*map(is_integer, image_shape)] != [True] * 3:
        raise RunError(f"images of shape {image_shape!r} are not supported: give (height, width, channels)")
    height, width, channels = image_shape
    if height != width or not MIN_SIDE <= height <= MAX_SIDE or channels not in (1, 3):
        raise RunError(
            f"images of shape {image_shape} are not supported: they must be square, {MIN_SIDE} to {MAX_SIDE} "
            "pixels a side, with 1 or 3 channels"
        )
    try:
        stages = blocks.make_stages(height, config.num_stages)
    except ValueError as error:
        raise RunError(f"config.model.num_stages={config.num_stages}: {error}") from error
    sides = [stage.side_out for stage in stages]
    for layer, shape in enumerate(config.latent_shapes, start=1):
        if len(shape) == 3 and shape[0] not in sides:
            raise RunError(
                f"config.model.latent_shapes: layer {layer} is {shape}, but images of side {height} pass "
                f"through the sides {sides} (config.model.num_stages={config.num_stages}); use one of these"
            )
    depths = [networks.depth(stages, shape) for shape in config.latent_shapes]
    if depths != sorted(depths):
        raise RunError(
            f"config.model.latent_shapes={config.latent_shapes}: sides must not grow towards the top layer, "
            "the last entry (a vector counts as the smallest side)"
        )
    return HVAE((height, width, channels), config)


def _is_latent_shape(shape: object) -> bool:
    return (
        isinstance(shape, tuple)
        and all(is_integer(size, 1, MAX_SIZE) for size in shape)
        and (len(shape) == 1 or (len(shape) == 3 and shape[0] == shape[1]))
    )
