"""Trees of parameters as one vector each, the form in which steps are taken.

An update of Adam is a dozen operations on every array of the parameters. On one vector they are one loop
over memory: a program is traced and compiled sooner, and devices that share a batch exchange one array.

`jax.flatten_util.ravel_pytree` gives a function beside the vector of one tree. Here the way back is part of
the vector's type, so that states hold it, and it works on the host and for a stack of models.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["vector"], meta_fields=["treedef", "shapes"]
)
@dataclasses.dataclass(frozen=True)
class Raveled:
    """A tree of arrays of one type, end to end.

    Attributes:
      vector: `[..., N]`; the leading axes, if any, are of all arrays of the tree.
      treedef: of the tree.
      shapes: of its arrays in order, without the leading axes.
    """

    vector: Any
    treedef: Any
    shapes: tuple[tuple[int, ...], ...]

    def tree(self) -> Any:
        """The tree again."""
        ends = list(itertools.accumulate(math.prod(shape) for shape in self.shapes))
        split = np.split if isinstance(self.vector, np.ndarray) else jnp.split
        leading = self.vector.shape[:-1]
        arrays = [
            part.reshape((*leading, *shape))
            for part, shape in zip(split(self.vector, ends[:-1], axis=-1), self.shapes, strict=True)
        ]
        return jax.tree.unflatten(self.treedef, arrays)


def ravel(tree: Any, num_leading: int = 0) -> Raveled:
    """A tree of NumPy or of JAX arrays of one type, which share as many leading axes."""
    leaves, treedef = jax.tree.flatten(tree)
    concatenate = np.concatenate if isinstance(leaves[0], np.ndarray) else jnp.concatenate
    flat = [leaf.reshape((*leaf.shape[:num_leading], -1)) for leaf in leaves]
    return Raveled(concatenate(flat, axis=-1), treedef, tuple(leaf.shape[num_leading:] for leaf in leaves))


def ravel_like(params: Any, state: T, num_leading: int = 0) -> T:
    """`state` with every part that is a tree like `params` as one vector.

    Parameters of several types, none, or a single array stay as they are.
    """
    leaves, treedef = jax.tree.flatten(params)
    if jax.tree_util.treedef_is_leaf(treedef) or len({leaf.dtype for leaf in leaves}) != 1:
        return state
    shapes = [leaf.shape for leaf in leaves]

    def is_like(part: Any) -> bool:
        if jax.tree.structure(part) != treedef:
            return False
        own = jax.tree.leaves(part)
        return [leaf.shape for leaf in own] == shapes and {leaf.dtype for leaf in own} == {leaves[0].dtype}

    return jax.tree.map(
        lambda part: ravel(part, num_leading) if is_like(part) else part, state, is_leaf=is_like
    )


def unravel(state: T) -> T:
    """The inverse of `ravel_like`; trees stay as they are."""

    def is_raveled(part: Any) -> bool:
        return isinstance(part, Raveled)

    return jax.tree.map(lambda part: part.tree() if is_raveled(part) else part, state, is_leaf=is_raveled)
