"""What `experiments.explorer` shows of a model: its numbers by name, and its pictures."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hvae_jax import data, experiment, records
from hvae_jax.errors import RunError
from hvae_jax.evaluation import guidance, metrics
from hvae_jax.evaluation.metrics import Metrics, Rates
from hvae_jax.evaluation.plain import Estimate
from hvae_jax.evaluation.rates import NamedGroups
from hvae_jax.evaluation.results import METRICS_FILE
from hvae_jax.experiment import Experiment
from hvae_jax.figures import style
from hvae_jax.figures.explorer import Number, Quantity, subscript
from hvae_jax.keys import make_key
from hvae_jax.training import Params, checkpoints

# Of a network of many sides the lowest, the middle and the top one are reconstructed from.
MAX_ROWS = 3
TOTAL_RATE, DISTORTION, NEGATIVE_ELBO = "ΣR", "D", "−ELBO"


def quantities(groups: NamedGroups, pixels: metrics.Pixels | None) -> list[Quantity]:
    """All that there may be: rates of layers or groups, z_1's first, their sum, distortion, scores.

    Args:
      groups: that reports put together.
      pixels: what the samples are that are scored.
    """
    num_layers, top = groups.groups.num_layers, subscript("z", groups.groups.num_layers)
    if groups.groups.are_layers:
        rates = [
            (
                subscript("R", layer),
                f"rate of {subscript('z', layer)}{style.layer_place(layer, num_layers)}",
            )
            for layer in range(1, num_layers + 1)
        ]
    else:
        rates = [(_group_rate(name), "rate of these layers") for name in groups.names]
    return [
        *(Quantity(name, about, "nats", is_rate=True) for name, about in rates),
        Quantity(TOTAL_RATE, "total rate", "nats", is_rate=True),
        Quantity(DISTORTION, "distortion, −log p(x|z)", "nats"),
        Quantity(NEGATIVE_ELBO, "D + ΣR", "nats", "lower"),
        Quantity("PSNR", "of reconstructions", "dB", "higher"),
        Quantity("SSIM", "of reconstructions", "", "higher"),
        Quantity("accuracy", f"from samples of {top}", "", "higher"),
        Quantity("accuracy, means", f"from means of {top}", "", "higher"),
        Quantity("inception score", f"of {guidance.PIXELS[pixels]}", "", "higher"),
        Quantity("Fréchet distance", f"of {guidance.PIXELS[pixels]}", "", "lower"),
    ]


def of_model(rates: Rates, found: Metrics | None) -> dict[str, Number]:
    """The numbers of the test split, by the names of `quantities`.

    Args:
      rates: of the model's own evaluation.
      found: content of metrics.json, where it was evaluated.
    """
    groups = rates.groups
    per_layer = zip(rates.rates_nats.value, rates.rates_nats.standard_error, strict=True)
    numbers: dict[str, Estimate | float | None] = {
        **({_group_rate(g.name): g.rate_nats for g in groups} if groups else {}),
        **(
            {}
            if groups
            else {subscript("R", n): Estimate(*pair) for n, pair in enumerate(per_layer, start=1)}
        ),
        TOTAL_RATE: rates.total_rate_nats,
        DISTORTION: rates.distortion_nats,
        NEGATIVE_ELBO: rates.negative_elbo_nats,
    }
    if found is not None:
        whole, top = found.reconstruction.test.from_layer[0], found.representation.layers[-1]
        scores = found.generation.test.scores
        judged = scores and scores.judged
        numbers |= {
            "PSNR": whole.psnr_db,
            "SSIM": whole.ssim,
            "accuracy": top.samples and top.samples.best.test_accuracy,
            "accuracy, means": top.means and top.means.best.test_accuracy,
            "inception score": judged and judged.inception_score_classifier,
            "Fréchet distance": scores and scores.frechet_distance_classifier,
        }
    return {
        name: Number(*one) if isinstance(one, Estimate) else Number(one)
        for name, one in numbers.items()
        if one is not None
    }


def read_metrics(folder: pathlib.Path) -> Metrics | None:
    """What `experiments.evaluate` found of the model in a folder; None where it was not there.

    Raises:
      RunError: metrics.json is damaged, or of an earlier checkpoint.
    """
    file = folder / METRICS_FILE
    if not file.exists():
        return None
    content = records.read_json(file)
    found = metrics.read(content, file)
    made_of = (content.get("settings") or {}).get("checksum")
    if made_of is not None and made_of != checkpoints.checksum(folder):
        raise RunError(f"{file} is of an earlier checkpoint; run experiments.evaluate again")
    return found


class Renderer:
    """Pictures of models that differ in betas and parameters alone; each function is compiled once.

    Attributes:
      test_images: `[N, H, W, C]`, as the model sees them.
      rows: what each row of reconstructions is made from, in words.
    """

    def __init__(self, built: Experiment, num_images: int, num_samples: int) -> None:
        """Reads the images.

        Args:
          built: the experiment that all are of.
          num_images: test images; as many as there are if there are fewer.
          num_samples: from the prior.
        """
        test = built.dataset.test
        stored = jnp.asarray(test.images[data.spread(test.labels, num_images)])
        key = make_key(built.training.seed)
        x = built.preprocess_fn(jax.random.split(key, len(stored)), stored)
        self.test_images = np.asarray(x)
        lowest = choose_rows([low for low, _ in built.model.config.groups])
        self.rows = [_from(layer, built.model.num_layers) for layer in lowest]
        self._built = built
        apply: Any = built.model.apply
        self._functions: list[Callable[[Params], Any]] = [
            jax.jit(functools.partial(_reconstruct, apply, layer, x)) for layer in lowest
        ]
        if num_samples:
            self._functions.append(jax.jit(functools.partial(_sample, apply, num_samples, key)))
        self._restored: tuple[str | None, Params] = None, None

    def __call__(self, folder: pathlib.Path, betas: tuple[float, ...]) -> np.ndarray | None:
        """`[rows · N + S, H, W, C]`: each row of reconstructions, then the samples; None if not finite.

        Args:
          folder: of the model.
          betas: of its objective.
        """
        params = self._built.at(self._restore(folder), betas)
        images = np.concatenate([np.asarray(function(params)) for function in self._functions])
        return images if np.isfinite(images).all() else None

    def _restore(self, folder: pathlib.Path) -> Params:
        """Parameters; those of a grid of one model are read once."""
        checksum = checkpoints.checksum(folder)
        if checksum is None or checksum != self._restored[0]:
            self._restored = checksum, experiment.restore(self._built, folder).eval_params
        return self._restored[1]


def _reconstruct(apply: Any, layer: int, x: jax.Array, params: Params) -> jax.Array:
    return apply(params, x, from_layer=layer, method="reconstruct")


def _sample(apply: Any, num: int, key: jax.Array, params: Params) -> jax.Array:
    return apply(params, key, num, method="sample")


def choose_rows(lowest: list[int]) -> list[int]:
    """Of the lowest layers of all sides, those to reconstruct from."""
    if len(lowest) <= MAX_ROWS:
        return lowest
    return [lowest[0], lowest[len(lowest) // 2], lowest[-1]]


def _from(layer: int, num_layers: int) -> str:
    if layer == 1:
        return "from all layers" if num_layers > 1 else "from its code"
    below = f"{subscript('z', 1)} at its" if layer == 2 else "those below at their"
    own = f"{subscript('z', layer)} alone" if layer == num_layers else f"{subscript('z', layer)} and up"
    return f"from {own}, with {below} prior mean"


def _group_rate(name: str) -> str:
    return f"R of {name.replace('x', '×')}"
