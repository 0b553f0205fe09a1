"""The walk of a hierarchical VAE from the top layer down to the data, written once.

A family of networks says what happens at a layer (`Networks`, six small functions); `walk` takes them from
z_L to z_1, one layer after another or runs of equal layers in a scan. `hierarchy` is what is asked of it.

Layers have the numbers 1 … L; lists over layers run z_1 → z_L.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from hvae_jax import distributions
from hvae_jax.categorical import Relaxation
from hvae_jax.distributions import Distribution
from hvae_jax.keys import fold_in

POSTERIOR, PRIOR, GIVEN = "posterior", "prior", "given"


class Networks(Protocol):
    """What a family of networks provides. States and features are pytrees of its own; so is x, `[B, ...]`.

    Priors and posteriors are any of `distributions`: a categorical prior has categorical posteriors, the
    others go together as they like.

    A conditioned family, one with `is_conditioned = True`, is given the betas as well, `[B, L]`, at the two
    places where they enter: `bottom_up(x, betas)` and `start(batch_size, betas)`. Others never see any.
    """

    @property
    def num_layers(self) -> int:
        """L."""
        ...

    def bottom_up(self, x: Any) -> Any:
        """Features of the data, that every layer's posterior reads."""
        ...

    def start(self, batch_size: int) -> Any:
        """The state above z_L."""
        ...

    def prior(self, layer: Any, state: Any) -> tuple[Distribution, Any]:
        """p(z_l|z_{>l}), and the state for `posterior` and `below`: with what else was found on the way."""
        ...

    def posterior(self, layer: Any, state: Any, features: Any, p: Any) -> Distribution:
        """q(z_l|z_{>l}, x)."""
        ...

    def below(self, layer: Any, state: Any, z: jax.Array) -> Any:
        """The state that the next layer sees; it has z_l in it."""
        ...

    def outputs(self, state: Any) -> jax.Array:
        """What the likelihood reads, float32, of the state below z_1."""
        ...


@runtime_checkable
class RepeatedLayers(Protocol):
    """Networks with runs of layers that differ in their weights alone: one `lax.scan` walks a run.

    Compilation then takes as long for a hundred layers as for two. `prior`, `posterior` and `below` get for
    `layer` one entry of `weights` instead of a number, and a state keeps its shapes within a run.
    """

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The highest and the lowest layer of each run, from the top down."""
        ...

    def weights(self, highest: int, lowest: int) -> Any:
        """A pytree whose leaves lead with the layers highest … lowest of one run, in this order."""
        ...

    def enter(self, highest: int, state: Any) -> Any:
        """The state as the run that begins with this layer needs it: as larger maps, for example."""
        ...


class Layer(NamedTuple):
    """What a walk found at one layer: posterior, prior, and the z that was passed on, each `[B, ...]`.

    Where z is not of the posterior, `q` is the prior: there is nothing of the data in z, and KL(q ‖ p) = 0.
    """

    q: Distribution
    p: Distribution
    z: jax.Array


class Source(NamedTuple):
    """Where a layer's z comes from.

    Attributes:
      where: POSTERIOR, PRIOR or GIVEN.
      temperature: scale of the standard deviation of what is drawn, 0 for the mean (`distributions.center`);
        None reads the layer's entry of `temperatures`.
      shape: of a z that is given.
    """

    where: str
    temperature: float | None = 1.0
    shape: tuple[int, ...] | None = None


def walk(
    networks: Networks,
    num: int,
    sources: Sequence[Source],
    take: Callable[[Layer], Any],
    *,
    keys: jax.Array | None = None,
    temperatures: jax.Array | None = None,
    features: Any = None,
    given: Mapping[int, jax.Array] | None = None,
    relaxation: Relaxation | None = None,
    betas: jax.Array | None = None,
) -> tuple[Any, list[Any]]:
    """From z_L to z_1: the state below z_1, and what `take` took at each layer, z_1 first.

    Args:
      networks: of a family; those that are `RepeatedLayers` too are scanned where sources are equal.
      num: B.
      sources: one for each layer, z_1 first.
      take: what to keep of a layer, a pytree; it does not depend on the layer.
      keys: `[B]`; None where nothing is drawn. A layer's noise is its index, l − 1, folded into them.
      temperatures: `[L]`, where a source reads it.
      features: what `bottom_up` found, where there are posteriors.
      given: {layer: z}, `[B, ...]`, or `[...]` for all images.
      relaxation: of categorical draws from posteriors, which then have gradients; None draws exactly.
      betas: `[B, L]`, of conditioned networks.

    Raises:
      ValueError: a z that is given has another shape than the layer's.
    """

    def visit(source: Source, layer: Any, index: Any, z: Any, state: Any) -> tuple[Any, Any]:
        p, state = networks.prior(layer, state)
        q = networks.posterior(layer, state, features, p) if source.where == POSTERIOR else p
        if source.where == GIVEN:
            z = _fit(z, distributions.shape(p))
        else:
            heat = source.temperature
            if heat is None:
                assert temperatures is not None
                heat = temperatures[index]
            relaxed = relaxation if source.where == POSTERIOR else None
            z = _draw(keys, index, q, heat, relaxed)
        return networks.below(layer, state, z), take(Layer(q, p, z))

    state, results, latents = networks.start(num, *_only(betas)), [None] * len(sources), given or {}
    if not isinstance(networks, RepeatedLayers):
        for layer in range(len(sources), 0, -1):
            z = latents.get(layer)
            state, results[layer - 1] = visit(sources[layer - 1], layer, layer - 1, z, state)
        return state, results
    for highest, lowest, is_entered in _stretches(networks.runs, sources):
        if is_entered:
            state = networks.enter(highest, state)
        numbers = range(highest, lowest - 1, -1)
        source = sources[highest - 1]
        z = jnp.stack([latents[number] for number in numbers]) if source.where == GIVEN else None
        layers = networks.weights(highest, lowest), jnp.asarray(numbers) - 1, z

        def body(state: Any, layer: tuple[Any, Any, Any], source: Source = source) -> tuple[Any, Any]:
            return visit(source, *layer, state)

        if highest == lowest:
            state, results[highest - 1] = body(state, _entry(layers, 0))
            continue
        state, stacked = jax.lax.scan(body, state, layers)
        for place, number in enumerate(numbers):
            results[number - 1] = _entry(stacked, place)
    return state, results


def bottom_up(networks: Networks, x: Any, betas: jax.Array | None) -> Any:
    """What the posteriors read of x, and of the betas `[B, L]` where there are any."""
    return networks.bottom_up(x, *_only(betas))


def _only(betas: jax.Array | None) -> tuple[Any, ...]:
    """An argument that networks which are not conditioned need not have."""
    return () if betas is None else (betas,)


def _stretches(runs: Sequence[tuple[int, int]], sources: Sequence[Source]) -> Iterator[tuple[int, int, bool]]:
    """Layers of one run and with one source: highest, lowest, and whether the run begins with them."""
    for top, bottom in runs:
        highest = top
        for layer in range(top, bottom - 1, -1):
            if layer == bottom or sources[layer - 1] != sources[layer - 2]:
                yield highest, layer, highest == top
                highest = layer - 1


def _draw(
    keys: jax.Array | None,
    index: Any,
    p: Distribution,
    temperature: jax.Array | float,
    relaxation: Relaxation | None,
) -> jax.Array:
    if isinstance(temperature, int | float) and temperature == 0:
        return distributions.center(p)
    assert keys is not None
    return distributions.sample(fold_in(keys, index), p, temperature, relaxation)


def _fit(z: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A latent that was given, for one image or for all, as `[B, ...]`."""
    if z.shape not in (shape, shape[1:]):
        raise ValueError(f"a latent has shape {z.shape}; it must be {shape[1:]}, or {shape} for all images")
    return jnp.broadcast_to(z if z.shape == shape else z[None], shape)


def _entry(stacked: Any, place: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[place], stacked)
