"""How much a number varies with the seed of the training, pooled over all betas that were trained twice.

A test score of one trained model has two errors. That of the images and of the draws is estimated from
one model; that of the seed only from several models of the same betas. The second can be the larger one by
far, so a comparison that leaves it out calls noise a win. Two or three seeds of one setting say little of
their own spread, hence it is pooled over settings, as in an analysis of variance.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike


@dataclasses.dataclass(frozen=True)
class SeedSpread:
    """Standard deviation of a number over seeds.

    Attributes:
      standard_deviation: √(Σ squared distances from the mean of the same betas / degrees of freedom).
      degrees_of_freedom: Σ (seeds − 1) over the betas.
    """

    standard_deviation: float
    degrees_of_freedom: int


def pool(groups: Iterable[Sequence[float]]) -> SeedSpread | None:
    """The spread over seeds, from the values of each setting that has several; None where none has.

    Args:
      groups: one sequence of values per setting, one value per seed.

    Example:
      >>> pool([[9.0, 11.0], [5.0], [6.0, 6.0, 6.0]])
      SeedSpread(standard_deviation=0.816496580927726, degrees_of_freedom=3)
    """
    squares, degrees = 0.0, 0
    for values in groups:
        squares += float(np.square(np.asarray(values, np.float64) - np.mean(values)).sum())
        degrees += len(values) - 1
    return SeedSpread(math.sqrt(squares / degrees), degrees) if degrees else None


def pool_within(values: ArrayLike) -> SeedSpread | None:
    """How much settings of the same networks vary apart from one another, network by network.

    What a network has in common at all its settings is taken out, as in a two-way analysis of variance: a
    difference of two settings, each a mean over S networks, has the standard error √(2 / S) times this.

    Args:
      values: `[B, S]`, of B settings of each of S networks.

    Returns:
      with (B − 1) (S − 1) degrees of freedom; None where that is 0.

    Example:
      >>> pool_within([[9.0, 11.0], [6.0, 8.0]])  # the second network is better by 2 at both
      SeedSpread(standard_deviation=0.0, degrees_of_freedom=1)
      >>> pool_within([[9.0, 11.0], [6.0, 6.0]])
      SeedSpread(standard_deviation=1.0, degrees_of_freedom=1)
    """
    table = np.asarray(values, np.float64)
    degrees = (len(table) - 1) * (table.shape[1] - 1)
    if degrees < 1:
        return None
    apart = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    return SeedSpread(math.sqrt(float(np.square(apart).sum()) / degrees), degrees)
