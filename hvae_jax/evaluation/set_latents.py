"""What each layer decides: samples with one layer drawn anew, those above set, those below at their means."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax import compiling
from hvae_jax.models.config import ModelConfig
from hvae_jax.models.hvae import HVAE
from hvae_jax.training import Params

MAX_ROWS = 8


def pick_rows(config: ModelConfig, max_rows: int = MAX_ROWS) -> list[tuple[int, int]]:
    """The layers that are drawn anew together, lowest and highest of each row, z_1's first.

    Each layer by itself where there are few; else those of a side of a deep network; else as many
    neighbours as leave `max_rows` rows.
    """
    num_layers = len(config.latent_shapes)
    rows = [(layer, layer) for layer in range(1, num_layers + 1)]
    if num_layers > max_rows:
        rows = list(config.groups)
    parts = np.array_split(np.arange(len(rows)), min(len(rows), max_rows))
    return [(rows[part[0]][0], rows[part[-1]][1]) for part in parts]


def sample_rows(
    model: HVAE,
    params: Params,
    key: jax.Array,
    rows: Sequence[tuple[int, int]],
    num_bases: int,
    num_draws: int,
    temperature: float = 1.0,
) -> np.ndarray:
    """E[x|z] with a row's layers drawn anew, those above as in a base sample, those below at their means.

    Source: the pictures in the README of addtt/ladder-vae-pytorch (Dittadi), which have one base sample.

    Args:
      model, params: the network and its parameters.
      key: a typed key.
      rows: as `pick_rows` gives them.
      num_bases: base samples, each drawn from the prior.
      num_draws: of each row for each base. The first is the base's own draw, which the rows below keep.
      temperature: scales the prior's standard deviations in all that is drawn.

    Returns:
      `[rows, num_bases, num_draws, H, W, C]`, not clipped.
    """
    num_layers, num = model.num_layers, num_bases * num_draws
    keys = jax.random.split(key, num)

    # Each row is a program of its own that runs once: on CPUs most of LLVM's optimisation would not pay.
    @functools.partial(jax.jit, compiler_options=compiling.at_level(0))
    def generate(params: Params, temperatures: jax.Array, latents: dict[int, jax.Array]) -> Any:
        made: Any = model.apply(params, keys, num, latents, temperatures, method="generate")
        return made.mean, made.latents

    def hot(lowest: int, highest: int) -> jax.Array:
        layers = jnp.arange(1, num_layers + 1)
        return jnp.where((layers >= lowest) & (layers <= highest), temperature, 0.0)

    # The first image of each base, repeated for its others: what they are given of the layers above a row.
    base = [z[::num_draws].repeat(num_draws, axis=0) for z in generate(params, hot(1, num_layers), {})[1]]
    pictures = []
    for lowest, highest in rows:
        above = {layer: base[layer - 1] for layer in range(highest + 1, num_layers + 1)}
        mean, _ = generate(params, hot(lowest, highest), above)
        pictures.append(np.asarray(mean).reshape(num_bases, num_draws, *mean.shape[1:]))
    return np.stack(pictures)
