"""Hierarchical VAEs as Flax modules: a config's networks and likelihood, and the engine's questions of them.

Generative model p(z_L) p(z_{L-1}|z_L) … p(z_1|z_2..L) p(x|z). Lists run z_1 → z_L: entry l − 1 is
layer l. Sampling runs the other way, from the top layer z_L down to the data.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import ArrayLike

from hvae_jax import likelihoods
from hvae_jax.categorical import Relaxation
from hvae_jax.errors import RunError
from hvae_jax.models import conditioning, deep, published
from hvae_jax.models.config import DEEP, ModelConfig
from hvae_jax.models.hierarchy import CategoricalCode, Code, Generated, Hierarchy, Temperature
from hvae_jax.models.walk import Layer
from hvae_jax.objective import LayerwiseTerms
from hvae_jax.values import is_integer

Latents = Mapping[int, ArrayLike]
# `[L]`, z_1 first, or `[B, L]`, a vector for each image.
Betas = ArrayLike | Sequence[float]


class HVAE(nn.Module):
    """A hierarchical VAE of any number of layers; `make_hvae` checks what it is made from.

    Its parameters are those of `networks`, and `log_std` where the likelihood learns one. Its methods are
    those of `Hierarchy`, which says what each takes, gives and raises. L = 1 is the plain VAE.

    Every method takes `betas`, `[L]` or `[B, L]`, where `config.conditioning` has the networks told them;
    they may also lie beside the parameters (`conditioning.at`). ValueError without, or where others get some.

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
        """Builds `networks`, and `log_std` where it is learned."""
        config = self.config
        num_outputs = self._make_likelihood(config.likelihood_std).num_outputs(self.image_shape[-1])
        family = deep.Deep if config.inference == DEEP else published.Published
        self.networks = family(self.image_shape, config, num_outputs)
        # The networks' parameters lie beside `log_std`, not in a group of their own.
        nn.share_scope(self, self.networks)
        if config.likelihood == "gaussian_learned_std":
            start = math.log(config.likelihood_std)
            self.log_std = self.param("log_std", lambda _: jnp.asarray(start, jnp.float32))

    def __call__(
        self,
        x: jax.Array,
        key: jax.Array,
        gumbel_temperature: jax.Array | float | None = None,
        *,
        betas: Betas | None = None,
    ) -> LayerwiseTerms:
        """D and R_1 … R_L of each image, with one posterior draw per image.

        Args:
          x: `[B, H, W, C]`, values in [0, 1], floating point.
          key: a typed key, or `[B]` of them, one per image.
          gumbel_temperature: of a categorical layer's relaxed draws, which training needs for its gradients;
            None draws exactly.
          betas: that conditioned networks are told. The rates are not weighed with them.

        Returns:
          distortion `[B]` and rates `[B, L]`, nats; each rate's KL is analytic, but for the layers of the
          config's `monte_carlo_rates`.

        Raises:
          ValueError: x has another shape, or integers in it (8-bit pixels that nobody divided by 255).
        """
        relaxation = None
        if gumbel_temperature is not None:
            relaxation = Relaxation(gumbel_temperature, self.config.gumbel_hard)
        return self._hierarchy(betas).terms(self._check(x), key, relaxation)

    def terms_above(
        self,
        x: jax.Array,
        key: jax.Array,
        layer: int,
        prior_temperature: float = 1.0,
        *,
        betas: Betas | None = None,
    ) -> LayerwiseTerms:
        """The terms of L^{>k}, k = `layer`: z_1 … z_k from the conditional prior; see `Hierarchy`."""
        return self._hierarchy(betas).terms_above(self._check(x), key, layer, prior_temperature)

    def log_weight(self, x: jax.Array, key: jax.Array, *, betas: Betas | None = None) -> jax.Array:
        """log p(x, z) − log q(z|x) at one posterior draw, `[B]`, nats: the importance weight of `x`."""
        return self._hierarchy(betas).log_weight(self._check(x), key)

    def infer(
        self, x: jax.Array, key: jax.Array, temperature: Temperature = 1.0, *, betas: Betas | None = None
    ) -> list[Layer]:
        """Posterior, prior and draw of every layer, z_1 first."""
        return self._hierarchy(betas).infer(self._check(x), key, temperature)

    def encode(
        self, x: jax.Array, key: jax.Array, temperature: Temperature = 1.0, *, betas: Betas | None = None
    ) -> list[Code | CategoricalCode]:
        """Posterior of every layer, z_1 first, given the draws of the layers above it.

        Args:
          x: `[B, H, W, C]`.
          key: a typed key, or `[B]` of them, one per image.
          temperature: scales the draws' standard deviations; at 0 a draw is its mean, so that every
            layer's posterior is given the means of the layers above it.

        Returns:
          L entries of `mean`, `std`, `sample`, each `[B, *latent_shapes[l − 1]]`; of a categorical layer
          `probs`, which are its `mean`, and `sample`.
        """
        return self._hierarchy(betas).encode(self._check(x), key, temperature)

    def decode(self, z: jax.Array | Sequence[jax.Array], *, betas: Betas | None = None) -> jax.Array:
        """E[x|z], `[B, H, W, C]`, not clipped.

        Args:
          z: z_1 … z_L, each `[B, ...]`; or z_1 alone, on which x depends in the published networks.

        Raises:
          ValueError: z_1 alone, of a deep network.
        """
        if isinstance(z, Sequence):
            return self._hierarchy(betas).decode(z)
        if self.config.inference == DEEP:
            raise ValueError(f"x depends on all layers of a deep network: give z_1 … z_{self.num_layers}")
        networks: Any = self.networks  # the published ones
        state = networks.start(z.shape[0], self._hierarchy(betas).told(z.shape[0]))
        return self._likelihood().mean(networks.outputs(networks.below(1, state, z)))

    def reconstruct(self, x: jax.Array, from_layer: int = 1, *, betas: Betas | None = None) -> jax.Array:
        """E[x|z] with the posterior means of layers L … from_layer and the prior means below.

        Args:
          x: `[B, H, W, C]`.
          from_layer: 1 … L. 1 uses every layer's code; L only that of the top layer.

        Returns:
          `[B, H, W, C]`, not clipped.

        Raises:
          ValueError: no such layer.
        """
        return self._hierarchy(betas).reconstruct(self._check(x), from_layer)

    def generate(
        self,
        key: jax.Array,
        num: int,
        latents: Latents | None = None,
        temperature: Temperature = 1.0,
        *,
        betas: Betas | None = None,
    ) -> Generated:
        """Images from the prior with the latents of any layers set: pixels' means, a draw, and all latents.

        Args:
          key: a typed key.
          num: B.
          latents: {layer: z}, each for one image, `latent_shapes[l − 1]`, or `[B, ...]`.
          temperature: of the layers that are drawn; a number, or `[L]`, z_1 first. 0 takes their means.

        Raises:
          ValueError: no such layer, or a z or temperature of another shape.

        Example:
          >>> sizes = (((2, 2, 4), (3,)), 4, 2)
          >>> config = ModelConfig("generalized_top_down", *sizes, "bernoulli", 1.0, 10, "float32", False)
          >>> model, x, key = make_hvae(config, (8, 8, 1)), jnp.zeros((1, 8, 8, 1)), jax.random.key(0)
          >>> params = jax.eval_shape(model.init, key, x, key)  # only shapes, as in the example of HVAE
          >>> def of_one_top(params, z_2):  # what z_1 makes of one z_2
          ...     return model.apply(params, key, num=5, latents={2: z_2}, method="generate")
          >>> made = jax.eval_shape(of_one_top, params, jnp.zeros(3))
          >>> made.mean.shape, made.latents[0].shape
          ((5, 8, 8, 1), (5, 2, 2, 4))
        """
        return self._hierarchy(betas).generate(key, num, latents, temperature)

    def sample(
        self,
        key: jax.Array,
        num: int,
        temperature: Temperature = 1.0,
        latents: Latents | None = None,
        *,
        betas: Betas | None = None,
    ) -> jax.Array:
        """E[x|z] for latents drawn from the prior: means of pixels, which `draw` draws.

        Args:
          key: a typed key.
          num: B.
          temperature: scales the prior's standard deviations; a number, or `[L]`, z_1 first.
          latents: that are set, as in `generate`.

        Returns:
          `[B, H, W, C]`, not clipped.

        Raises:
          ValueError: temperature is neither a number nor `[L]`; a z of another shape.
        """
        return self._hierarchy(betas).sample(key, num, temperature, latents)

    def draw(
        self,
        key: jax.Array,
        num: int,
        temperature: Temperature = 1.0,
        latents: Latents | None = None,
        *,
        betas: Betas | None = None,
    ) -> jax.Array:
        """x drawn from the model: latents as `sample` draws them at the same key, pixels from p(x|z).

        Args:
          key: a typed key.
          num: B.
          temperature: of the latents alone, as in `sample`. Pixels keep their noise: at 0 all images share
            the prior's mean and differ still.
          latents: that are set, as in `generate`.

        Returns:
          `[B, H, W, C]`: zeros and ones of a Bernoulli likelihood, values on the grid n/255 of a logistic
          mixture, any number, not clipped, of a Gaussian.

        Raises:
          ValueError: temperature is neither a number nor `[L]`; a z of another shape.
        """
        return self._hierarchy(betas).draw(key, num, temperature, latents)

    def interpolate(
        self,
        x: jax.Array,
        y: jax.Array,
        weights: ArrayLike | Sequence[float],
        layer: int | None = None,
        *,
        betas: Betas | None = None,
    ) -> jax.Array:
        """E[x|z] from x's codes to y's, `[N, B, H, W, C]`: of one layer, or of all; see `Hierarchy`."""
        return self._hierarchy(betas).interpolate(self._check(x), self._check(y), weights, layer)

    def _hierarchy(self, betas: Betas | None) -> Hierarchy:
        if betas is None:
            betas = self._own_betas()
        return Hierarchy(self.networks, self._likelihood(), betas)

    def _own_betas(self) -> Betas | None:
        """Those beside the parameters; where parameters are only made, any."""
        if not self.config.is_conditioned:
            return None
        if self.is_initializing():
            return (1.0,) * self.num_layers
        has_own = self.has_variable(conditioning.COLLECTION, "betas")
        return self.get_variable(conditioning.COLLECTION, "betas") if has_own else None

    def _check(self, x: jax.Array) -> jax.Array:
        if x.shape[1:] != self.image_shape:
            raise ValueError(f"x must be [B, {', '.join(map(str, self.image_shape))}], got {x.shape}")
        likelihoods.check_pixels(x)
        return x

    def _likelihood(self) -> likelihoods.Likelihood:
        if self.config.likelihood == "gaussian_learned_std":
            return self._make_likelihood(jnp.exp(likelihoods.soft_floor(self.log_std)))
        return self._make_likelihood(self.config.likelihood_std)

    def _make_likelihood(self, std: jax.Array | float) -> likelihoods.Likelihood:
        config = self.config
        return likelihoods.make_likelihood(
            config.likelihood, std=std, num_components=config.num_mixture_components
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
    shape: Any = image_shape
    if not isinstance(shape, tuple | list) or [*map(is_integer, shape)] != [True] * 3:
        raise RunError(f"images of shape {shape!r} are not supported: give (height, width, channels)")
    height, width, channels = shape
    check = deep.check if config.inference == DEEP else published.check
    check(config, (height, width, channels))
    return HVAE((height, width, channels), config)
