"""Where the training loop gets its batches: an order that depends on seed and step alone."""

import functools
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np

from hvae_jax.training import devices
from hvae_jax.training.config import TrainingConfig


class Batches(Protocol):
    """The batches of a run, as the loop asks for them.

    The loop asks for consecutive steps; after `restore`, it goes on from there.

    Attributes:
      num_images: of an epoch.
      image_shape: (H, W, C), or whatever the images have.
      steps_per_call: the most steps that one `take` can give.
    """

    num_images: int
    image_shape: tuple[int, ...]
    steps_per_call: int

    def take(self, step: int, count: int) -> Any:
        """The images of the `count` steps from `step` on, as arrays that lead with the local devices.

        Their shapes are the same for every count: what is past it is never read. Each device gets its
        part of every batch: images of consecutive places, devices in order, those of process 0 first.
        """
        ...

    def pick(self, taken: Any, index: jax.Array) -> jax.Array:
        """The stored images `[B / D, ...]` of the index-th of the steps taken; traced, on one device."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs, after the steps taken so far, to go on exactly: plain values, for JSON."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes back to where `state` was asked for; that of an older checkpoint can be empty."""
        ...

    def close(self) -> None:
        """Lets go of files and processes; the loop asks for no more."""
        ...


class ResidentBatches:
    """Batches of images that stay on the devices, all of them on each."""

    def __init__(self, images: np.ndarray, config: TrainingConfig) -> None:
        """Puts `images`, `[N, ...]` as stored, on the devices.

        Raises:
          RunError: the devices do not divide the batch, or no batch fits into the run.
        """
        config.check_devices(jax.device_count())
        self.num_images, self.image_shape = len(images), images.shape[1:]
        self.steps_per_call = min(config.log_every_steps, config.num_steps(len(images)))
        self._batch_size, self._order_seed = config.batch_size, config.order_seed
        self._images = devices.replicate(images)

    def take(self, step: int, count: int) -> tuple[jax.Array, np.ndarray]:
        """All images `[D, N, ...]`, and which of them make up each step, `[D, K, B / D]`."""
        indices = np.zeros((self.steps_per_call, self._batch_size), np.int32)
        indices[:count] = batch_indices(self._order_seed, self.num_images, self._batch_size, step, count)
        return self._images, split_batches(indices)

    def pick(self, taken: tuple[jax.Array, jax.Array], index: jax.Array) -> jax.Array:
        """See `pick_resident`."""
        return pick_resident(taken, index)

    def state(self) -> dict[str, Any]:
        """Nothing: the order follows from the step."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def pick_resident(taken: tuple[jax.Array, jax.Array], index: jax.Array) -> jax.Array:
    """Of (images `[N, ...]`, indices `[K, B]`) the images `[B, ...]` of step `index`."""
    images, indices = taken
    return images[indices[index]]


def split_batches(indices: np.ndarray) -> np.ndarray:
    """`[K, B]` images of each step → `[D, K, B / D]`, the parts of this process's devices."""
    num_steps, batch_size = indices.shape
    num_devices = jax.device_count()
    parts = indices.reshape(num_steps, num_devices, batch_size // num_devices).swapaxes(0, 1)
    return parts[devices.local_part()]


def batch_indices(seed: int, num_images: int, batch_size: int, start: int, num_steps: int) -> np.ndarray:
    """Which images make up the batches of steps start … start + num_steps − 1.

    Epochs are permutations laid end to end and cut into batches: every image is seen once per
    epoch, and a batch may cross from one epoch to the next. Drawn on the host, 4 bytes an image:
    the order is then the same on every platform and for every version of JAX.

    Returns:
      `[num_steps, batch_size]` int32.
    """
    first, last = start * batch_size, (start + num_steps) * batch_size
    epochs = range(first // num_images, (last - 1) // num_images + 1)
    order = np.concatenate([_epoch_order(seed, num_images, epoch) for epoch in epochs])
    offset = first - epochs[0] * num_images
    return order[offset : offset + last - first].reshape(num_steps, batch_size)


@functools.lru_cache(maxsize=2)  # who reads batch by batch would draw a whole epoch for each
def _epoch_order(seed: int, num_images: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_images).astype(np.int32)
