"""Networks that are told the betas: what a vector of them does to every hidden map and vector.

A conditioned model is trained for a range of betas at once, `D(x; β) + Σ β_l R_l(x; β)`, each image with
betas of its own. They enter a network as a `Condition`, which changes what is about to go through a ReLU or
GELU, and in the published networks and the ladder what becomes the mean and standard deviation of a latent.
It is made twice, for the networks that infer (`bottom_up`) and for those that generate (`start`).

Sources: scale and shift from an MLP of the multipliers: Dosovitskiy and Djolonga, You Only Train Once, 2020;
gates: Bae et al., Multi-Rate VAE, 2023. Both with one multiplier; here there is one for each layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.core import Tracer
from jax.typing import ArrayLike

from hvae_jax.models import blocks
from hvae_jax.models import convolution_products as products

# Of the MLP that scale and shift come from.
HIDDEN_SIZE, NUM_HIDDEN = 64, 2
# Bias that gates start from: then 0.98 and 0.99 of what is gated passes. Gates that start half closed lose
# the top layer, as a high learning rate does.
OPEN = 4.0
# What a gate lets pass at least, squared: at 0 its derivative would be infinite.
MIN_SQUARED_GATE = 1e-6
# The variables, beside "params", that `at` puts betas into.
COLLECTION = "at"

Weights = Mapping[str, jax.Array]


class ScaleShift(NamedTuple):
    """h (1 + scale) + shift, channel by channel, both linear in `hidden`; they begin as 0.

    Attributes:
      hidden: `[B, HIDDEN_SIZE]`, of the betas.
    """

    hidden: jax.Array

    def __call__(self, h: jax.Array) -> jax.Array:
        """`[B, ..., C]`, with weights that are parameters of the module in which it is called."""
        return _Change()(h, self)

    def of_outputs(self, h: jax.Array) -> jax.Array:
        """The same."""
        return self(h)

    def apply(self, weights: Weights, h: jax.Array) -> jax.Array:
        """`[B, ..., C]` of the same, with weights "kernel" `[HIDDEN_SIZE, 2 C]` and "bias" `[2 C]`."""
        scale, shift = jnp.split(_affine(weights, self.hidden), 2, axis=-1)
        changed = h.astype(jnp.float32) * (1.0 + _as(scale, h)) + _as(shift, h)
        return changed.astype(h.dtype)


class Gates(NamedTuple):
    """h times a gate in (0, 1) for each channel, which opens and closes with log10 β.

    Where networks infer, σ(w·log10 β + b); where they generate, √(1 − exp(w·log10 β + b)), 0 below the root's
    zero. At w = 0, where training begins, both are open.

    Attributes:
      log_betas: `[B, L]`, log10 β.
    """

    log_betas: jax.Array

    def __call__(self, h: jax.Array) -> jax.Array:
        """`[B, ..., C]`, with weights that are parameters of the module in which it is called."""
        return _Change()(h, self)

    def of_outputs(self, h: jax.Array) -> jax.Array:
        """h: as published, only hidden maps have gates."""
        return h

    def apply(self, weights: Weights, h: jax.Array) -> jax.Array:
        """`[B, ..., C]` of the same, with weights "kernel" `[L, C]` and "bias" `[C]`."""
        gate = self.gate(_affine(weights, self.log_betas))
        return (h.astype(jnp.float32) * _as(gate, h)).astype(h.dtype)

    def gate(self, opening: jax.Array) -> jax.Array:
        """Of networks that infer."""
        return nn.sigmoid(opening)


class GenerativeGates(Gates):
    """`Gates` of networks that generate."""

    __slots__ = ()

    def gate(self, opening: jax.Array) -> jax.Array:
        """√(1 − exp(opening)), kept above 0 for the sake of its derivative."""
        return jnp.sqrt(jnp.maximum(-jnp.expm1(jnp.minimum(opening, 0.0)), MIN_SQUARED_GATE))


Condition = ScaleShift | Gates


class Initial(NamedTuple):
    """How the weights of a condition at one place begin; the kernel is 0.

    Attributes:
      num_inputs: numbers that the changes are linear in.
      num_changes: for each channel.
      bias: what a change begins as.
    """

    num_inputs: int
    num_changes: int
    bias: float


def initial(kind: str, num_layers: int, generates: bool) -> Initial | None:
    """For networks that infer, or that generate; None for "none"."""
    if kind == "gates":
        return Initial(num_layers, 1, -OPEN if generates else OPEN)
    return None if kind == "none" else Initial(HIDDEN_SIZE, 2, 0.0)


class Conditioner(nn.Module):
    """Betas → what they do to the networks; "none" does nothing.

    Attributes:
      kind: `config.model.conditioning`.
    """

    kind: str

    @nn.compact
    def __call__(self, betas: jax.Array | None, generates: bool = False) -> Condition | None:
        """What betas `[B, L]` do to networks that infer, or that generate; nothing without betas."""
        if self.kind == "none" or betas is None:
            return None
        h = jnp.log10(betas)
        if self.kind == "gates":
            return GenerativeGates(h) if generates else Gates(h)
        for _ in range(NUM_HIDDEN):
            h = nn.silu(blocks.Dense(HIDDEN_SIZE)(h))
        return ScaleShift(h)


def at(params: Any, betas: ArrayLike | Sequence[float]) -> Any:
    """Parameters of a conditioned model for these betas: all that takes parameters then needs no betas.

    The betas are data beside the parameters: models at other betas share one compiled program, and are
    stacked as models of other seeds are.

    Args:
      params: of an `HVAE` with `config.model.conditioning`.
      betas: `[L]`, z_1 first.
    """
    return {**params, COLLECTION: {"betas": jnp.asarray(betas, jnp.float32)}}


def spread(betas: ArrayLike | Sequence[float], num: int, num_layers: int, copies: int = 1) -> jax.Array:
    """Betas as `[num · copies, L]`: of each image, and of its copies, which follow after all images.

    Args:
      betas: `[L]`, for all images, or `[num, L]`.
      num: of images.
      num_layers: L.
      copies: of every image.

    Raises:
      ValueError: another shape; a beta that is not positive.
    """
    array = jnp.asarray(betas, jnp.float32)
    if array.shape not in ((num_layers,), (num, num_layers)):
        raise ValueError(
            f"betas must be [{num_layers}] or one vector for each image, [{num}, {num_layers}], got "
            f"{array.shape}"
        )
    is_known = not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(betas))
    if is_known and not (np.asarray(betas) > 0).all():
        raise ValueError(f"a conditioned model reads log β: every beta must be positive, got {betas}")
    each = jnp.broadcast_to(array if array.ndim == 2 else array[None], (num, num_layers))
    return jnp.tile(each, (copies, 1))


class _Change(nn.Module):
    """The weights of one condition at one place."""

    @nn.compact
    def __call__(self, h: jax.Array, condition: Condition) -> jax.Array:
        kind = "gates" if isinstance(condition, Gates) else "scale_shift"
        begin = initial(kind, condition[0].shape[-1], isinstance(condition, GenerativeGates))
        assert begin is not None
        size, bias = begin.num_changes * h.shape[-1], nn.initializers.constant(begin.bias)
        weights = {
            "kernel": self.param("kernel", nn.initializers.zeros, (begin.num_inputs, size)),
            "bias": self.param("bias", bias, (size,)),
        }
        return condition.apply(cast(Weights, weights), h)


def _affine(weights: Weights, h: jax.Array) -> jax.Array:
    return blocks.add_bias(products.matmul(h, weights["kernel"]), weights["bias"])


def _as(change: jax.Array, h: jax.Array) -> jax.Array:
    """`[B, C]` as `h`, `[B, ..., C]`."""
    middle = (1,) * (h.ndim - 2)
    return jnp.broadcast_to(change.reshape(change.shape[0], *middle, change.shape[1]), h.shape)
