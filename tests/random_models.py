"""Models with parameters that no training made, for tests of the networks."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax.models.hvae import HVAE

# What is compiled here runs once or twice: most of LLVM's optimisation would not pay.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def random_params(model: HVAE) -> dict[str, Any]:
    """Parameters large enough that every one of them matters, and made without compiling `init`."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        scale = 1.2 / math.sqrt(math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.3
        return jnp.asarray((scale * rng.normal(size=leaf.shape)).astype(np.float32))

    return jax.tree.map(draw, shapes_of(model)[0])


def shapes_of(model: HVAE, batch: int = 2) -> tuple[Any, Any]:
    """Shapes of the parameters and of the terms."""
    x = jax.ShapeDtypeStruct((batch, *model.image_shape), jnp.float32)
    terms, params = jax.eval_shape(model.init_with_output, jax.random.key(0), x, jax.random.key(1))
    return params, terms


def images(model: HVAE, batch: int) -> jax.Array:
    x = np.random.default_rng(0).uniform(size=(batch, *model.image_shape))
    return jnp.asarray(x.astype(np.float32))
