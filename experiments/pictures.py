"""Pictures of one trained model: reconstructions from each layer down, and samples."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax import data
from hvae_jax.experiment import Experiment
from hvae_jax.figures import runs as figures
from hvae_jax.keys import make_key
from hvae_jax.models.config import CATEGORICAL
from hvae_jax.training import Params

TEMPERATURES = (0.4, 0.7, 1.0)
# Likelihoods whose pixels are drawn from a few values; the other samples are their means.
DISCRETE = ("bernoulli", "logistic_mixture")
NUM_PICTURES = 12
# Of a categorical variable, that samples are shown of.
MAX_VALUES = 32


def draw(built: Experiment, params: Params, title: str, folder: pathlib.Path) -> None:
    """Writes reconstructions.png and samples.png.

    Args:
      built: the experiment.
      params: of its model; of a conditioned one with betas (`Experiment.at`).
      title: data, model and betas in words.
      folder: that is there.
    """
    model, num_layers = built.model, built.model.num_layers
    key = make_key(built.training.seed)
    stored = built.dataset.test.images[data.spread(built.dataset.test.labels, NUM_PICTURES)]
    x = built.preprocess_fn(jax.random.split(key, len(stored)), jnp.asarray(stored))
    rows: dict[str, Any] = {"test image": np.asarray(x)}
    for layer, _ in model.config.groups:
        kept = (
            "all layers"
            if layer == 1
            else f"$z_{{{layer}}}$ only"
            if layer == num_layers
            else f"$z_{{{layer}}}$ and up"
        )
        reconstruct = jax.jit(functools.partial(model.apply, from_layer=layer, method="reconstruct"))
        rows[f"from {kept}"] = np.asarray(reconstruct(params, x))
    figures.image_rows(rows, f"Reconstructions: {title}", folder / "reconstructions.png")

    sample = jax.jit(functools.partial(model.apply, num=NUM_PICTURES, method="sample"))
    samples: dict[str, Any] = {
        f"temperature {temperature:g}, means": np.asarray(sample(params, key, temperature=temperature))
        for temperature in TEMPERATURES
    }
    if model.config.likelihood in DISCRETE:  # as the images are that it learns from
        drawn = jax.jit(functools.partial(model.apply, num=NUM_PICTURES, method="draw"))
        samples["temperature 1, pixels drawn"] = np.asarray(drawn(params, key))
    figures.image_rows(samples, f"Samples: {title}", folder / "samples.png")
    if model.config.kinds[-1] == CATEGORICAL:
        by_value = sample_by_value(built, params, key)
        figures.image_rows(by_value, f"Samples by $z_{num_layers}$: {title}", folder / "samples_by_value.png")


def sample_by_value(built: Experiment, params: Params, key: jax.Array) -> dict[str, np.ndarray]:
    """Means of pixels for each value of the top layer's first variable, a row each.

    A column has the noise of the layers below, and the values of further variables, in common.
    """
    model, layer = built.model, built.model.num_layers
    shape = model.config.latent_shapes[-1]
    generate = jax.jit(functools.partial(model.apply, num=NUM_PICTURES, method="generate"))
    drawn: Any = generate(params, key)
    top, rows = np.array(drawn.latents[-1]).reshape(NUM_PICTURES, -1, shape[-1]), {}
    for value in range(min(shape[-1], MAX_VALUES)):
        top[:, 0] = np.eye(shape[-1])[value]
        made: Any = generate(params, key, latents={layer: top.reshape(NUM_PICTURES, *shape)})
        rows[f"value {value + 1}"] = np.asarray(made.mean)
    return rows
