"""A latent as the number of a bin: 2^BIN_BITS bins of equal mass under the conditional prior.

Under the prior all bins are equally likely, so a latent costs BIN_BITS bits there, and its value is the
median of its bin. The posterior has its own mass in each bin, in units of 2^-POSTERIOR_BITS: what lies
between two rounded values of its distribution function. A bin may have none of it; then it is never drawn.

Source: Townsend et al., Practical Lossless Compression with Latent Variables using Bits Back Coding, 2019.
"""

import functools
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

# Bins reach to 4.2 standard deviations; the narrowest posterior that they resolve holds about 11 nats.
BIN_BITS = 16
# Rounding moves a rate by less than 1e-4 bits a latent; more would cost what `constriction` loses on widths
# that do not divide its 2^24.
POSTERIOR_BITS = 22


class Gaussians(NamedTuple):
    """Mean and std of a layer's latents, float64 `[N, D]`."""

    mean: np.ndarray
    std: np.ndarray


def values(index: np.ndarray, p: Gaussians) -> np.ndarray:
    """The medians of bins under p, float32 `[N, D]`."""
    return (p.mean + p.std * _quantiles(BIN_BITS + 1)[2 * index + 1]).astype(np.float32)


def find(numbers: np.ndarray, q: Gaussians, p: Gaussians) -> np.ndarray:
    """The bins in whose share of q's 2^POSTERIOR_BITS the numbers lie, all `[N, D]`."""
    # Where a number's share begins, q's distribution function is about the number and a half.
    z = q.mean + q.std * ndtri((numbers + 0.5) * 2.0**-POSTERIOR_BITS)
    index = np.floor(ndtr((z - p.mean) / p.std) * 2**BIN_BITS).astype(np.int64)
    index = np.clip(index, 0, 2**BIN_BITS - 1)
    # What floating point put into a neighbour is put right, one bin at a time.
    while True:
        is_above, is_below = numbers < _starts(index, q, p), numbers >= _starts(index + 1, q, p)
        if not (is_above | is_below).any():
            return index
        index += is_below.astype(np.int64) - is_above


def shares(index: np.ndarray, q: Gaussians, p: Gaussians) -> tuple[np.ndarray, np.ndarray]:
    """Start and width of a bin's share of q's 2^POSTERIOR_BITS, int64 `[N, D]` each."""
    starts = _starts(index, q, p)
    return starts, _starts(index + 1, q, p) - starts


def _starts(edge: np.ndarray, q: Gaussians, p: Gaussians) -> np.ndarray:
    """q's distribution function at the lower edges of bins, rounded to whole shares."""
    z = p.mean + p.std * _quantiles(BIN_BITS)[edge]
    return np.rint(ndtr((z - q.mean) / q.std) * 2**POSTERIOR_BITS).astype(np.int64)


@functools.cache
def _quantiles(bits: int) -> np.ndarray:
    """Of the standard normal at n / 2^bits, n = 0 … 2^bits: −∞ and ∞ at the ends."""
    return ndtri(np.arange(2**bits + 1) / 2.0**bits)
