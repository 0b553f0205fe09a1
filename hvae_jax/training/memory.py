"""Whether a run can fit into the machine at all, from shapes alone: a size too large is told before work."""

import os
import pathlib
from typing import Any

import jax
import numpy as np

from hvae_jax.errors import RunError

GIB = 2**30
# Of a state: before and after a step, and as a checkpoint is written from it.
STATE_COPIES = 3


def check_fits(state: Any, image_shape: tuple[int, ...], batch_size: int) -> None:
    """Refuses what is sure not to fit; what fits by this may still not.

    Args:
      state: the training state, arrays or their shapes.
      image_shape: (H, W, C).
      batch_size: images per step.

    Raises:
      RunError: the state, or one batch of images, is larger than the memory.
    """
    leaves = jax.tree.leaves(state)
    # Python's integers: a size that overflows is the very mistake that is looked for.
    numbers = sum(int(np.prod(leaf.shape, dtype=object)) * leaf.dtype.itemsize for leaf in leaves)
    available = total_bytes()
    if STATE_COPIES * numbers > available:
        raise RunError(
            f"the model's parameters and Adam's means of them take {numbers / GIB:.1f} GiB, "
            f"{STATE_COPIES} times at once, and there are {available / GIB:.1f} GiB; lower "
            "config.model.channels, num_stages or latent_shapes"
        )
    batch = batch_size * int(np.prod(image_shape, dtype=object)) * 4
    if batch > available:
        raise RunError(
            f"config.training.batch_size={batch_size} images take {batch / GIB:.1f} GiB, and there are "
            f"{available / GIB:.1f} GiB; lower it"
        )


def total_bytes() -> int:
    """Memory of the devices of this process, or on CPUs of the machine or the container."""
    if jax.default_backend() != "cpu":
        stats = [device.memory_stats() or {} for device in jax.local_devices()]
        if all("bytes_limit" in entry for entry in stats):
            return sum(entry["bytes_limit"] for entry in stats)
    return machine_bytes()


def machine_bytes() -> int:
    """Memory of this machine, or of the container that we are in."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return total
