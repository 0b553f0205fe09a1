"""The compiled functions of a model, one for each thing that happens at a layer.

Both ends of a codec call the very same ones, on batches of one shape: then they find the same last digits,
without which nothing can be decoded.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax.codec.bins import Gaussians
from hvae_jax.codec.compiled import compiled
from hvae_jax.errors import RunError
from hvae_jax.gaussian import Gaussian
from hvae_jax.models.config import CATEGORICAL, MIXTURE
from hvae_jax.models.hvae import HVAE
from hvae_jax.models.walk import RepeatedLayers

Variables = Any


class Programs:
    """What `walk.Networks` says of a model, compiled, for batches of one size."""

    def __init__(self, model: HVAE, variables: Variables, batch_size: int) -> None:
        """Of a model and its parameters."""
        self.model, self.batch_size = model, batch_size
        self._variables = jax.device_put(variables)
        self._weights: dict[int, Any] = {}
        self._entered: set[int] = set()
        networks: Any = model.bind(self._variables).networks
        if isinstance(networks, RepeatedLayers):
            for highest, lowest in networks.runs:
                self._entered.add(highest)
                stacked = self._call("weights", (highest, lowest))
                for place, layer in enumerate(range(highest, lowest - 1, -1)):
                    self._weights[layer] = jax.tree.map(lambda leaf, place=place: leaf[place], stacked)

    def bottom_up(self, x: np.ndarray) -> Any:
        """Features of x, float32 `[B, H, W, C]`."""
        return self._call("bottom_up", (), jnp.asarray(x))

    def start(self) -> Any:
        """The state above z_L."""
        return self._call("start", (self.batch_size,))

    def prior(self, layer: int, state: Any) -> tuple[Gaussian, Any]:
        """p(z_l|z_{>l}), and the state for `posterior` and `below`."""
        if layer in self._entered:
            state = self._call("enter", (layer,), state)
        return self._at("prior", layer, state)

    def posterior(self, layer: int, state: Any, features: Any, p: Gaussian) -> Gaussian:
        """q(z_l|z_{>l}, x)."""
        return self._at("posterior", layer, state, features, p)

    def below(self, layer: int, state: Any, z: np.ndarray) -> Any:
        """The state below layer l."""
        return self._at("below", layer, state, jnp.asarray(z))

    def outputs(self, state: Any) -> jax.Array:
        """What the likelihood reads."""
        return self._call("outputs", (), state)

    def _at(self, name: str, layer: int, *arguments: Any) -> Any:
        if self._weights:
            return self._call(name, (), self._weights[layer], *arguments)
        return self._call(name, (layer,), *arguments)

    def _call(self, name: str, fixed: tuple[int, ...], *arguments: Any) -> Any:
        sealed = _apply(self.model, name, fixed, self._variables, *map(_seal, arguments))
        return _open(sealed)


def check_layers(model: HVAE) -> None:
    """Raises RunError unless prior and posterior of every layer are Gaussians."""
    config = model.config
    if CATEGORICAL in config.kinds or config.top_prior == MIXTURE:
        raise RunError(
            f"config.model.latent_kinds={config.latent_kinds}, top_prior={config.top_prior!r}: bits on disk "
            "are of models whose layers are all Gaussian"
        )


def to_numpy(gaussian: Gaussian) -> Gaussians:
    """As float64 `[B, D]`.

    Raises:
      RunError: numbers that are not finite.
    """
    mean, std = (np.asarray(part, np.float64).reshape(part.shape[0], -1) for part in gaussian)
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise RunError("a mean or standard deviation of a latent is not finite; the model cannot code")
    return Gaussians(mean, std)


@compiled(static_argnums=(0, 1, 2))
def _apply(model: HVAE, name: str, fixed: tuple[int, ...], variables: Variables, *arguments: Any) -> Any:
    def method(module: Any, *arguments: Any) -> Any:
        given = (*fixed, *arguments)
        # Conditioned networks are told the betas that are among the variables, at these two places.
        if name in ("bottom_up", "start") and getattr(module.networks, "is_conditioned", False):
            num = fixed[0] if name == "start" else len(arguments[0])
            given = (*given, module._hierarchy(None).told(num))
        return getattr(module.networks, name)(*given)

    return _seal(model.apply(variables, *map(_open, arguments), method=method))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class _Fixed:
    """What a program knows when it is compiled, in the place of a leaf."""

    value: Any


def _seal(tree: Any) -> Any:
    """Numbers of a state that are no arrays, a batch's size for example, stay numbers on the way."""
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, jax.Array) else _Fixed(leaf), tree)


def _open(tree: Any) -> Any:
    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, _Fixed) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, _Fixed),
    )
