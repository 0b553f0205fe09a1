"""Groups of neighbouring layers: the way between numbers of layers and numbers of groups, and names.

Layers of a group share one beta, and their rates are summed: the only places where a deep hierarchy's many
layers become a few numbers, or the other way round.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The lowest and the highest layer of each group, 1-based, z_1's first.
Ranges = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class Groups:
    """Layers 1 … L in G groups of neighbours.

    Attributes:
      ranges: (lowest, highest) layer of each group, z_1's first; together they are 1 … L.

    Raises:
      ValueError: ranges that leave a layer out, or have one twice.

    Example:
      >>> groups = Groups(((1, 2), (3, 3)))
      >>> groups.sum(jnp.array([0.5, 1.5, 4.0])).tolist(), groups.expand(jnp.array([3.0, 1.0])).tolist()
      ([2.0, 4.0], [3.0, 3.0, 1.0])
    """

    ranges: Ranges

    def __post_init__(self) -> None:
        ends = [0, *(highest for _, highest in self.ranges)]
        if not self.ranges or any(
            not lowest == below + 1 <= highest
            for (lowest, highest), below in zip(self.ranges, ends, strict=False)
        ):
            raise ValueError(f"groups must be ranges of layers from 1 on without a gap, got {self.ranges}")

    @classmethod
    def of_layers(cls, num_layers: int) -> "Groups":
        """Every layer alone."""
        return cls(tuple((layer, layer) for layer in range(1, num_layers + 1)))

    def __len__(self) -> int:
        return len(self.ranges)

    @property
    def num_layers(self) -> int:
        """L."""
        return self.ranges[-1][1]

    @property
    def are_layers(self) -> bool:
        """Whether every layer is alone."""
        return len(self) == self.num_layers

    def sum(self, values: Any) -> Any:
        """Of each group's layers: `[..., L]` → `[..., G]`, a JAX array of one, else a NumPy array."""
        self._check(values, self.num_layers)
        if self.are_layers:
            return values
        stack: Any = jnp.stack if isinstance(values, jax.Array) else np.stack
        return stack([values[..., low - 1 : high].sum(axis=-1) for low, high in self.ranges], axis=-1)

    def expand(self, values: Any) -> Any:
        """Each group's number for each of its layers: `[..., G]` → `[..., L]`."""
        self._check(values, len(self))
        return values if self.are_layers else values[..., np.repeat(np.arange(len(self)), self.sizes)]

    def collapse(self, values: Any) -> Any:
        """The inverse of `expand`: `[..., L]` → `[..., G]`, of values that are the same within a group."""
        self._check(values, self.num_layers)
        return values if self.are_layers else values[..., np.asarray(self.ranges)[:, 0] - 1]

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many layers each group has."""
        return tuple(high - low + 1 for low, high in self.ranges)

    def names(self, sides: Ranges, latent_shapes: Sequence[tuple[int, ...]]) -> tuple[str, ...]:
        """What figures and tables call the groups: "8x8" of all layers of a side, else "z_1-z_4" or "z_3".

        Args:
          sides: the layers of each side, see `ModelConfig.groups`.
          latent_shapes: of the layers, z_1 first.
        """
        named = {
            group: f"{shape[0]}x{shape[1]}"
            for group in sides
            if len(shape := latent_shapes[group[0] - 1]) == 3 and not self.are_layers
        }
        if len(set(named.values())) < len(named):  # other channels on maps of one side
            named = {}
        return tuple(named.get(group) or layers_name(*group) for group in self.ranges)

    def _check(self, values: Any, length: int) -> None:
        if np.shape(values)[-1:] != (length,):
            raise ValueError(f"expected {length} entries along the last axis, got shape {np.shape(values)}")


def runs(values: Sequence[float]) -> list[tuple[float, int, int]]:
    """Neighbouring layers with the same number: it, the lowest and the highest layer of each such run.

    Example:
      >>> runs((1.0, 1.0, 0.5))
      [(1.0, 1, 2), (0.5, 3, 3)]
    """
    found, lowest = [], 1
    for value, same in itertools.groupby(values):
        highest = lowest + len(list(same)) - 1
        found.append((value, lowest, highest))
        lowest = highest + 1
    return found


def layers_name(lowest: int, highest: int) -> str:
    """What a range of layers is called, for example "z_1-z_4"."""
    return f"z_{lowest}" if lowest == highest else f"z_{lowest}-z_{highest}"
