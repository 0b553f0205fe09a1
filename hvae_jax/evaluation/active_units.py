"""How many latents of each layer say anything of the image: active units (Burda et al., 2016)."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from hvae_jax.evaluation.encoding import Codes

# A latent is active where the variance over images of its posterior mean is larger.
THRESHOLD = 0.01


class ActiveUnits(NamedTuple):
    """Of each layer, z_1 first, how many latents there are, and how many of them are active."""

    active: tuple[int, ...]
    units: tuple[int, ...]


def count(batches: Iterable[Sequence[Codes]]) -> ActiveUnits:
    """Latents whose Var_x(E_q[z|x]) is above `THRESHOLD`, by the posterior means of N images.

    Every entry of a map is a latent of its own. A categorical variable is one, and active where one of its
    probabilities varies so. A mean may vary because the layers above do: it can be active in a layer of rate
    0, whose posterior is its prior.

    Args:
      batches: of `Encoder.batches`, of at least one image.
    """
    sums: list[_Sums] = []
    names: list[str] = []
    for batch in batches:
        if not sums:
            names = ["probs" if "probs" in layer else "means" for layer in batch]
            sums = [_Sums(layer[name]) for layer, name in zip(batch, names, strict=True)]
        for layer, name, own in zip(batch, names, sums, strict=True):
            own.add(layer[name])
    active, units = [], []
    for own, name in zip(sums, names, strict=True):
        is_active = own.variance() > THRESHOLD
        if name == "probs":
            is_active = is_active.any(axis=-1)
        active.append(int(is_active.sum()))
        units.append(math.prod(is_active.shape))
    return ActiveUnits(tuple(active), tuple(units))


class _Sums:
    """Of values `[B, ...]` that come in batches: what their variance needs, in float64."""

    def __init__(self, first: np.ndarray) -> None:
        # Near the mean, so that a small variance around a large one is not lost.
        self._shift = first.mean(axis=0, dtype=np.float64)
        self._sum, self._squares, self._count = 0.0 * self._shift, 0.0 * self._shift, 0

    def add(self, values: np.ndarray) -> None:
        """Further values."""
        apart = values - self._shift
        self._sum += apart.sum(axis=0)
        self._squares += np.square(apart).sum(axis=0)
        self._count += len(values)

    def variance(self) -> np.ndarray:
        """Over all values; 0 of one."""
        return (self._squares - np.square(self._sum) / self._count) / max(1, self._count - 1)
