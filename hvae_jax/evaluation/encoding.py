"""The codes of images, batch by batch: for what keeps less of them than all, or more than memory holds."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from hvae_jax.data.stored import Rows
from hvae_jax.keys import to_data
from hvae_jax.models.config import CATEGORICAL
from hvae_jax.models.hvae import HVAE
from hvae_jax.training import Params, PreprocessFn, devices
from hvae_jax.training.split_evaluator import EVAL_BATCH, make_over_batches
from hvae_jax.training.step import pick_micro_batch

# Of one layer by name, `[B, ...]` each: "means" and "stds", or of a categorical layer "probs"; "samples".
Codes = dict[str, np.ndarray]


class Encoder:
    """What a network knows of images, on all devices of this process; compiles once for all parameters.

    Means and standard deviations, or probabilities, are those of q(z_l|z_{>l}, x) at the means of the layers
    above (the most probable values of a categorical one), so that nothing is drawn. Samples are one draw of
    all layers from q(z_1 … z_L|x).
    """

    def __init__(self, model: HVAE, preprocess_fn: PreprocessFn, has_samples: bool = True) -> None:
        """Without samples, means alone (and probabilities) are computed."""
        apply: Any = model.apply
        kinds = model.config.kinds

        def encode(params: Params, x: jax.Array, keys: jax.Array) -> list[dict[str, jax.Array]]:
            found = []
            for kind, code in zip(kinds, apply(params, x, keys, 0.0, method="encode"), strict=True):
                if kind == CATEGORICAL:
                    found.append({"probs": code.probs})
                else:
                    found.append({"means": code.mean} | ({"stds": code.std} if has_samples else {}))
            if has_samples:
                for layer, code in zip(found, apply(params, x, keys, method="encode"), strict=True):
                    layer["samples"] = code.sample
            return found

        over_batches = make_over_batches(encode, preprocess_fn)
        self._encode = devices.over_devices(over_batches, (False, True, True, False))

    def batches(self, images: Rows, params: Params, key: jax.Array) -> Iterator[list[Codes]]:
        """Of every image once, in order; z_1 first.

        Args:
          images: `[N, ...]` as stored, on the host or not yet read.
          params: of the model.
          key: a typed key; an image's draws depend on it and on the image's place among these.
        """
        shape = jax.local_device_count(), 1, pick_micro_batch((EVAL_BATCH, *images.shape[1:]))
        size = int(np.prod(shape))
        for start in range(0, len(images), size):
            found = np.asarray(images[start : start + size])
            # Past the end stands the last image again, so that there is one program.
            places = np.minimum(np.arange(size), len(found) - 1).reshape(shape)
            out = self._encode(params, found[places], (start + places).astype(np.int32), to_data(key))
            yield [
                {name: np.asarray(a).reshape(size, *a.shape[3:])[: len(found)] for name, a in layer.items()}
                for layer in out
            ]
