"""Which images stand for a split: drawn by a seed, since files are often sorted by class."""

import numpy as np

from hvae_jax.data.stored import Rows, StoredArray

# Of labels that lie on disk, this many are read to find images of all classes.
POOL = 4096


def subset(num_images: int, most: int, seed: int = 0) -> np.ndarray:
    """A plain random subset of images: a smaller one is part of a larger one of the same seed.

    Args:
      num_images: N, to draw from.
      most: images to draw; all where there are no more.
      seed: of the draw.

    Returns:
      `[min(N, most)]` int64, rising indices.

    Raises:
      ValueError: a negative number.
    """
    if num_images < 0 or most < 0:
        raise ValueError(f"num_images={num_images} and most={most} must be 0 or more")
    return np.sort(np.random.default_rng(seed).permutation(num_images)[:most])


def spread(labels: Rows, num: int, seed: int = 0) -> np.ndarray:
    """Images that show all classes: as equally many of each as there are, for pictures.

    Each class gives one, then each a second, and so on; which classes come first, and which images of a
    class, is drawn by the seed. Of labels on disk `POOL` are drawn and read, and all else is among these.

    Args:
      labels: integers `[N]`.
      num: images to choose; all where there are no more.
      seed: of the draws.

    Returns:
      `[min(N, num)]` int64, sorted by class, within a class by index.

    Raises:
      ValueError: `labels` is not a vector, or `num` is negative.
    """
    if len(labels.shape) != 1 or num < 0:
        raise ValueError(f"labels {list(labels.shape)} must be [N], and num={num} must be 0 or more")
    pool = np.arange(len(labels))
    if isinstance(labels, StoredArray):
        pool = subset(len(labels), max(POOL, num), seed)
    found = np.asarray(labels[pool])
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(found))
    turn = np.empty(len(found), np.int64)  # of each image, how many of its class come before it
    first = np.empty(len(found))  # of each image, when in a round its class has its turn
    classes = np.unique(found)
    for label, place in zip(classes, generator.permutation(len(classes)), strict=True):
        members = order[found[order] == label]
        turn[members], first[members] = np.arange(len(members)), place
    chosen = np.sort(np.lexsort((first, turn))[:num])
    return pool[chosen[np.argsort(found[chosen], kind="stable")]]
