"""The engine of every hierarchy: all that can be asked of networks and a likelihood, whatever they are.

Terms and importance weights, codes, reconstructions, samples with some latents set, interpolations: each is
one `walk` over the layers. Layers have the numbers 1 … L; lists over layers run z_1 → z_L.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from hvae_jax import categorical, distributions, mixture
from hvae_jax.categorical import Categorical, Relaxation
from hvae_jax.distributions import Distribution
from hvae_jax.keys import fold_in, per_image_keys
from hvae_jax.likelihoods import Likelihood
from hvae_jax.mixture import Mixture
from hvae_jax.models.conditioning import spread
from hvae_jax.models.walk import GIVEN, POSTERIOR, PRIOR, Layer, Networks, Source, bottom_up, walk
from hvae_jax.objective import LayerwiseTerms

# A number for every layer, or `[L]`, z_1 first.
Temperature = ArrayLike | Sequence[float]


class Code(NamedTuple):
    """One layer's part of `encode`: mean and std of q(z_l|z_{>l}, x) and a draw from it, each `[B, ...]`."""

    mean: jax.Array
    std: jax.Array
    sample: jax.Array


class CategoricalCode(NamedTuple):
    """The same of a categorical layer: its values' probabilities, and a one-hot draw, each `[B, ..., K]`."""

    probs: jax.Array
    sample: jax.Array

    @property
    def mean(self) -> jax.Array:
        """The probabilities, which are E[z]."""
        return self.probs


class Generated(NamedTuple):
    """What `generate` makes.

    Attributes:
      mean: E[x|z], `[B, ...]`: the pixels' means, not clipped.
      draw: x drawn from p(x|z), the same shape.
      latents: z_1 … z_L, each `[B, ...]`.
    """

    mean: jax.Array
    draw: jax.Array
    latents: list[jax.Array]


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """A hierarchical VAE: networks and a likelihood.

    Attributes:
      networks: with their parameters in them. Those that are also `RepeatedLayers` are scanned.
      likelihood: p(x|z); see `likelihoods` for what it must have.
      betas: that conditioned networks are told (`walk.Networks`): `[L]`, or `[B, L]`, a vector for each of
        the images that a method takes or makes. ValueError where they lack them, or others are given some.

    Example:
      Networks of one's own, for vectors x `[B, 6]`. Here a state is what the next layer reads of those above.
      >>> import dataclasses
      >>> from hvae_jax import Gaussian, GaussianPixels
      >>> @dataclasses.dataclass
      ... class MyNetworks:
      ...     params: dict
      ...     num_layers = 2
      ...     num_latents = {1: 4, 2: 3}
      ...
      ...     def bottom_up(self, x):
      ...         return x
      ...
      ...     def start(self, batch_size):
      ...         return jnp.zeros((batch_size, 0))
      ...
      ...     def prior(self, layer, state):
      ...         if layer == 2:
      ...             zeros = jnp.zeros((len(state), 3))
      ...             return Gaussian(zeros, 1.0 + zeros), state
      ...         return self.gaussian("p_1", state), state
      ...
      ...     def posterior(self, layer, state, features, p):
      ...         return self.gaussian(f"q_{layer}", jnp.concatenate([features, state], axis=1))
      ...
      ...     def below(self, layer, state, z):
      ...         return z
      ...
      ...     def outputs(self, state):
      ...         return state @ self.params["x"]
      ...
      ...     def gaussian(self, name, h):
      ...         mean, log_std = jnp.split(h @ self.params[name], 2, axis=1)
      ...         return Gaussian(mean, jnp.exp(log_std))
      >>> shapes = {"q_2": (6, 6), "q_1": (9, 8), "p_1": (3, 8), "x": (4, 6)}
      >>> params = {name: jnp.full(shape, 0.1) for name, shape in shapes.items()}
      >>> def terms_fn(params, x, key):  # what `hvae_jax.own` and `training` take, and `layerwise_elbo`
      ...     return Hierarchy(MyNetworks(params), GaussianPixels(std=0.5)).terms(x, key)
      >>> terms_fn(params, jnp.ones((5, 6)), jax.random.key(0)).rates.shape
      (5, 2)
      >>> model = Hierarchy(MyNetworks(params), GaussianPixels(std=0.5))
      >>> model.generate(jax.random.key(1), 8, latents={2: jnp.ones(3)}).mean.shape
      (8, 6)
    """

    networks: Networks
    likelihood: Likelihood
    betas: ArrayLike | Sequence[float] | None = None

    @property
    def num_layers(self) -> int:
        """L."""
        return self.networks.num_layers

    def told(self, num: int, copies: int = 1) -> jax.Array | None:
        """The betas of `num` images, and of their copies after them, `[num · copies, L]`; None for networks
        that are not conditioned.

        Raises:
          ValueError: conditioned networks lack betas, others are given some, or they have another shape.
        """
        if not getattr(self.networks, "is_conditioned", False):
            if self.betas is not None:
                raise ValueError("these networks are not conditioned on the betas: they take none")
            return None
        if self.betas is None:
            raise ValueError(
                "these networks are conditioned on the betas: give betas, [L] or one vector for each image, "
                "[B, L], or parameters that have them (models.conditioning.at)"
            )
        return spread(self.betas, num, self.num_layers, copies)

    def terms(self, x: jax.Array, key: jax.Array, relaxation: Relaxation | None = None) -> LayerwiseTerms:
        """D and R_1 … R_L, with one posterior draw for each of x.

        Args:
          x: `[B, ...]`.
          key: a typed key, or `[B]` of them, one per image.
          relaxation: for training where a layer is categorical: its draw has no gradient otherwise. D and the
            rates of the layers below it are then those at a relaxed draw.

        Returns:
          distortion `[B]` and rates `[B, L]`, nats. Each rate's KL is analytic, but that of a mixture, which
          is a Monte Carlo estimate: log q(z) − log p(z) at the draw.
        """
        return self._terms(x, key, [Source(POSTERIOR)] * self.num_layers, relaxation)

    def terms_above(
        self, x: jax.Array, key: jax.Array, layer: int, prior_temperature: float = 1.0
    ) -> LayerwiseTerms:
        """The terms of L^{>k} = E[log p(x|z) − Σ_{l>k} KL], z_1 … z_k from the conditional prior.

        Source: Havtorn et al., Hierarchical VAEs Know What They Don't Know, 2021, eq. 7. At k = 0 these are
        the terms of the ELBO, and ELBO − L^{>k} is what x needs its low layers for.

        Args:
          x: `[B, ...]`.
          key: a typed key, or `[B]` of them. Layers above k draw what they draw in `terms`.
          layer: k, 0 … L.
          prior_temperature: of the layers up to k; 0 takes their means.

        Returns:
          distortion `[B]` and rates `[B, L]`, nats. The rates of layers 1 … k are 0.

        Raises:
          ValueError: no such layer.
        """
        self._check_layer("layer", layer, lowest=0)
        sources = [Source(PRIOR, prior_temperature)] * layer
        sources += [Source(POSTERIOR)] * (self.num_layers - layer)
        return self._terms(x, key, sources)

    def log_weight(self, x: jax.Array, key: jax.Array) -> jax.Array:
        """log p(x, z) − log q(z|x) at one posterior draw: the importance weight of x.

        Args:
          x: `[B, ...]`.
          key: a typed key, or `[B]` of them, one per image.

        Returns:
          `[B]`, nats. Its mean is the ELBO; log E exp is log p(x) (Burda et al., 2016).
        """

        def log_ratio(found: Layer) -> jax.Array:
            return distributions.log_prob(found.p, found.z) - distributions.log_prob(found.q, found.z)

        state, log_ratios = self._infer(x, key, log_ratio)
        log_weight = self.likelihood.log_prob(self.networks.outputs(state), x)
        for of_layer in log_ratios:
            log_weight += of_layer
        return log_weight

    def infer(self, x: jax.Array, key: jax.Array, temperature: Temperature = 1.0) -> list[Layer]:
        """Posterior, prior and draw of every layer, z_1 first; arguments as in `encode`."""
        return self._infer(x, key, lambda found: found, temperature)[1]

    def encode(
        self, x: jax.Array, key: jax.Array, temperature: Temperature = 1.0
    ) -> list[Code | CategoricalCode]:
        """Posterior of every layer, z_1 first, given the draws of the layers above it.

        Args:
          x: `[B, ...]`.
          key: a typed key, or `[B]` of them, one per image.
          temperature: scales the draws' standard deviations; at 0 a draw is its mean, so that every
            layer's posterior is given the means of the layers above it. Of a categorical layer it is the most
            probable value then; see `distributions.center`.

        Returns:
          L entries of `mean`, `std`, `sample`, each `[B, ...]`; of a categorical layer `probs`, which are its
          `mean`, and `sample`.
        """
        return self._infer(x, key, _code, temperature)[1]

    def decode(self, latents: Sequence[jax.Array]) -> jax.Array:
        """E[x|z_1 … z_L], `[B, ...]`, not clipped.

        Args:
          latents: z_1 … z_L, each `[B, ...]`.

        Raises:
          ValueError: as many latents as there are not layers, or of other shapes.
        """
        if len(latents) != self.num_layers:
            raise ValueError(f"latents must hold {self.num_layers} layers, z_1 first, got {len(latents)}")
        state, _ = self._descend(None, latents[0].shape[0], dict(enumerate(latents, start=1)), 0.0)
        return self.likelihood.mean(self.networks.outputs(state))

    def reconstruct(self, x: jax.Array, from_layer: int = 1) -> jax.Array:
        """E[x|z] with the posterior means of layers L … from_layer and the prior means below.

        Args:
          x: `[B, ...]`.
          from_layer: 1 … L. 1 uses every layer's code; L only that of the top layer.

        Returns:
          `[B, ...]`, not clipped.

        Raises:
          ValueError: no such layer.
        """
        self._check_layer("from_layer", from_layer)
        sources = [Source(PRIOR, 0.0)] * (from_layer - 1)
        sources += [Source(POSTERIOR, 0.0)] * (self.num_layers - from_layer + 1)
        betas = self.told(x.shape[0])
        features = bottom_up(self.networks, x, betas)
        state, _ = walk(self.networks, x.shape[0], sources, _latent, features=features, betas=betas)
        return self.likelihood.mean(self.networks.outputs(state))

    def generate(
        self,
        key: jax.Array,
        num: int,
        latents: Mapping[int, ArrayLike] | None = None,
        temperature: Temperature = 1.0,
    ) -> Generated:
        """Images from the prior, with the latents of any layers set.

        Args:
          key: a typed key, or `[B]` of them. Setting a layer leaves the noise of the others as it is.
          num: B.
          latents: {layer: z of that layer}, z for one image, which all share, or `[B, ...]`.
          temperature: scales the standard deviations of the layers that are drawn, not those of pixels; 0
            takes their means. A number, or `[L]`, z_1 first.

        Returns:
          mean and draw of the pixels `[B, ...]`, and the latents. Under `jax.jit` what is not used of it is
          not computed; see also `sample` and `draw`.

        Raises:
          ValueError: no such layer, or a z or temperature of another shape.
        """
        keys = per_image_keys(key, num)
        state, drawn = self._descend(keys, num, latents, temperature)
        outputs = self.networks.outputs(state)
        return Generated(self.likelihood.mean(outputs), self._draw_pixels(keys, outputs), drawn)

    def sample(
        self,
        key: jax.Array,
        num: int,
        temperature: Temperature = 1.0,
        latents: Mapping[int, ArrayLike] | None = None,
    ) -> jax.Array:
        """`generate`'s mean, `[B, ...]`."""
        state, _ = self._descend(per_image_keys(key, num), num, latents, temperature)
        return self.likelihood.mean(self.networks.outputs(state))

    def draw(
        self,
        key: jax.Array,
        num: int,
        temperature: Temperature = 1.0,
        latents: Mapping[int, ArrayLike] | None = None,
    ) -> jax.Array:
        """`generate`'s draw of the pixels, `[B, ...]`."""
        keys = per_image_keys(key, num)
        state, _ = self._descend(keys, num, latents, temperature)
        return self._draw_pixels(keys, self.networks.outputs(state))

    def interpolate(
        self, x: jax.Array, y: jax.Array, weights: ArrayLike | Sequence[float], layer: int | None = None
    ) -> jax.Array:
        """E[x|z] on the way from the codes of x to those of y, which are posterior means.

        Args:
          x, y: `[B, ...]`, pairs of images.
          weights: `[N]`, of y: 0 … 1. A categorical layer goes straight from one vertex of its simplex to the
            other, through points that only a soft relaxation knows from training.
          layer: the one that moves. Layers above it stay at x's codes, those below are at the prior's means.
            None moves all.

        Returns:
          `[N, B, ...]`, not clipped. For `layer` None it goes from `reconstruct(x)` to `reconstruct(y)`.

        Raises:
          ValueError: no such layer, or x and y differ in shape.
        """
        if x.shape != y.shape:
            raise ValueError(f"x has shape {x.shape} but y has shape {y.shape}")
        if layer is not None:
            self._check_layer("layer", layer)
        batch, steps = x.shape[0], jnp.asarray(weights, jnp.float32)
        if steps.ndim != 1:
            raise ValueError(f"weights must be [N], got {steps.shape}")
        both = jnp.concatenate([x, y])
        sources, betas = [Source(POSTERIOR, 0.0)] * self.num_layers, self.told(batch, 2)
        features = bottom_up(self.networks, both, betas)
        _, codes = walk(self.networks, 2 * batch, sources, _latent, features=features, betas=betas)
        given = {}
        for number, code in enumerate(codes, start=1):
            start, end = code[None, :batch], code[None, batch:]
            moves = layer is None or layer == number
            weight = steps.reshape(-1, *[1] * code.ndim) if moves else jnp.zeros_like(start)
            between = (1.0 - weight) * start + weight * end
            between = jnp.broadcast_to(between, (len(steps), *start.shape[1:]))
            if layer is None or number >= layer:
                given[number] = between.reshape(-1, *code.shape[1:])
        state, _ = self._descend(None, batch, given, 0.0, len(steps))
        mean = self.likelihood.mean(self.networks.outputs(state))
        return mean.reshape(len(steps), batch, *mean.shape[1:])

    def _terms(
        self,
        x: jax.Array,
        key: jax.Array,
        sources: Sequence[Source],
        relaxation: Relaxation | None = None,
    ) -> LayerwiseTerms:
        def rate(found: Layer) -> jax.Array:
            # Exactly 0 where z is of the prior.
            return distributions.rate(found.q, found.p, found.z)

        betas, keys = self.told(x.shape[0]), per_image_keys(key, x.shape[0])
        state, rates = walk(
            self.networks,
            x.shape[0],
            sources,
            rate,
            keys=keys,
            features=bottom_up(self.networks, x, betas),
            betas=betas,
            relaxation=relaxation,
        )
        log_likelihood = self.likelihood.log_prob(self.networks.outputs(state), x)
        return LayerwiseTerms(-log_likelihood, jnp.stack(rates, axis=1))

    def _draw_pixels(self, keys: jax.Array, outputs: jax.Array) -> jax.Array:
        return self.likelihood.sample(fold_in(keys, self.num_layers), outputs)

    def _infer(
        self, x: jax.Array, key: jax.Array, take: Callable[[Layer], Any], temperature: Temperature = 1.0
    ) -> tuple[Any, list[Any]]:
        """All layers from their posteriors: the last state, and what `take` took, z_1 first."""
        number, temperatures = self._split(temperature)
        sources = [Source(POSTERIOR, number)] * self.num_layers
        betas, keys = self.told(x.shape[0]), per_image_keys(key, x.shape[0])
        return walk(
            self.networks,
            x.shape[0],
            sources,
            take,
            keys=keys,
            temperatures=temperatures,
            features=bottom_up(self.networks, x, betas),
            betas=betas,
        )

    def _descend(
        self,
        keys: jax.Array | None,
        num: int,
        latents: Mapping[int, ArrayLike] | None,
        temperature: Temperature,
        copies: int = 1,
    ) -> tuple[Any, list[jax.Array]]:
        """All layers given or from their priors, of copies of `num` images: the last state, and z_1 … z_L."""
        given = {layer: jnp.asarray(z) for layer, z in (latents or {}).items()}
        for layer in given:
            self._check_layer("the layer of a latent", layer)
        number, temperatures = self._split(temperature)
        sources = [
            Source(GIVEN, shape=given[layer].shape) if layer in given else Source(PRIOR, number)
            for layer in range(1, self.num_layers + 1)
        ]
        return walk(
            self.networks,
            num * copies,
            sources,
            _latent,
            keys=keys,
            temperatures=temperatures,
            given=given,
            betas=self.told(num, copies),
        )

    def _split(self, temperature: Temperature) -> tuple[float | None, jax.Array | None]:
        """A temperature as a Python number, or as an array `[L]`; the other is None."""
        if isinstance(temperature, int | float):
            return temperature, None
        array = jnp.asarray(temperature, jnp.float32)
        if array.shape not in ((), (self.num_layers,)):
            raise ValueError(f"temperature must be one number or [{self.num_layers}], got {array.shape}")
        return None, jnp.broadcast_to(array, (self.num_layers,))

    def _check_layer(self, name: str, layer: int, lowest: int = 1) -> None:
        if not lowest <= layer <= self.num_layers:
            raise ValueError(f"{name} must be in {lowest} … {self.num_layers}, got {layer}")


def _latent(found: Layer) -> jax.Array:
    return found.z


def _code(found: Layer) -> Code | CategoricalCode:
    q: Distribution = found.q
    if isinstance(q, Categorical):
        return CategoricalCode(categorical.probs(q), found.z)
    return Code(*(mixture.moments(q) if isinstance(q, Mixture) else q), found.z)
