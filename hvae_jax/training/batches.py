"""Where the training loop gets its batches: an order that depends on seed and step alone."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from hvae_jax.training import devices
from hvae_jax.training.config import TrainingConfig
from hvae_jax.training.stacks import DataParallel, Layout

# (what all models of a device read, what one model reads for itself, place of a step in them) → that step's
# stored images `[B / D, ...]`, or `[B, ...]` where a device holds whole models; traced, on one device.
PickFn = Callable[[Any, Any, jax.Array], jax.Array]


class Batches(Protocol):
    """The batches of a stack of models, as the loop asks for them.

    The loop asks for consecutive steps; after `restore`, it goes on from there.

    Attributes:
      num_images: of an epoch.
      image_shape: (H, W, C), or whatever the images have.
      steps_per_call: the most steps that one `take` can give.
      pick: finds a step's images in what `take` gave. Batches of one kind have one and the same function.
    """

    num_images: int
    image_shape: tuple[int, ...]
    steps_per_call: int
    pick: PickFn

    def ordered(self, order_seeds: Sequence[int] | np.ndarray) -> "Batches":
        """The same images for the models of a stack, in the order of each one's seed, `[M]`."""
        ...

    def take(self, step: int, count: int) -> tuple[Any, Any]:
        """What the `count` steps from `step` on read: all models together, and each for itself.

        The former are arrays `[D, ...]`, the latter `[D, M / D, ...]` or an empty tuple. Their shapes are
        the same for every count: what is past it is never read. Where the devices share a batch, each gets
        its part: images of consecutive places, devices in order, those of process 0 first.
        """
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


def check_layout(layout: Layout | None, config: TrainingConfig) -> Layout:
    """The layout of the models; by default one model on all devices.

    Raises:
      RunError: the devices do not divide the batch that they share.
    """
    layout = layout or DataParallel()
    if layout.splits_batch:
        config.check_devices(jax.device_count())
    return layout


class ResidentBatches:
    """Batches of images that stay on the devices, all of them on each."""

    def __init__(self, images: np.ndarray, config: TrainingConfig, layout: Layout | None = None) -> None:
        """Puts `images`, `[N, ...]` as stored, on the devices.

        Args:
          images: of an epoch.
          config: how large the batches are, and in which order; see `ordered` for other orders.
          layout: of the models; one model on all devices by default.

        Raises:
          RunError: the devices do not divide the batch that they share, or no batch fits into the run.
        """
        self._layout = check_layout(layout, config)
        self.num_images, self.image_shape = len(images), images.shape[1:]
        self.steps_per_call = min(config.log_every_steps, config.num_steps(len(images)))
        self._batch_size = config.batch_size
        self._images = devices.replicate(images)
        self._order(np.array([config.order_seed]))

    def ordered(self, order_seeds: Sequence[int] | np.ndarray) -> "ResidentBatches":
        """The same images for the models of a stack, in the order of each one's seed, `[M]`."""
        other = object.__new__(ResidentBatches)
        other.__dict__.update(self.__dict__)
        other._order(np.asarray(order_seeds))
        return other

    def _order(self, seeds: np.ndarray) -> None:
        # One order for all is sent once a device; an order of its own once a model.
        self._seeds = seeds[:1] if len(np.unique(seeds)) == 1 else seeds
        self.pick: PickFn = pick_alike if len(self._seeds) == 1 else pick_own
        self._epoch_orders: dict[tuple[int, int], np.ndarray] = {}

    def take(self, step: int, count: int) -> tuple[Any, Any]:
        """All images `[D, N, ...]`, and the places of each step's: `[D, K, B / D]`, or of each model."""
        orders, before = {}, self._epoch_orders
        # Kept until a call no longer reads them: many calls may fall into one epoch.
        self._epoch_orders = {}

        def epoch_order(seed: int, num_images: int, epoch: int) -> np.ndarray:
            found = before.get((seed, epoch))
            found = _epoch_order(seed, num_images, epoch) if found is None else found
            self._epoch_orders[seed, epoch] = found
            return found

        for seed in np.unique(self._seeds).tolist():
            orders[seed] = np.zeros((self.steps_per_call, self._batch_size), np.int32)
            orders[seed][:count] = batch_indices(
                seed, self.num_images, self._batch_size, step, count, epoch_order
            )
        if self.pick is pick_own:
            return self._images, self._layout.put(np.stack([orders[seed] for seed in self._seeds.tolist()]))
        (order,) = orders.values()
        if self._layout.splits_batch:
            return (self._images, split_batches(order)), ()
        return (self._images, np.broadcast_to(order, (jax.local_device_count(), *order.shape))), ()

    def state(self) -> dict[str, Any]:
        """Nothing: the order follows from the step."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def pick_alike(together: tuple[jax.Array, jax.Array], own: Any, index: jax.Array) -> jax.Array:
    """Of (images `[N, ...]`, indices `[K, B]`) the images `[B, ...]` of step `index`."""
    del own
    images, indices = together
    return images[indices[index]]


def pick_own(together: jax.Array, own: jax.Array, index: jax.Array) -> jax.Array:
    """The same where the indices are one model's own."""
    return together[own[index]]


def split_batches(indices: np.ndarray) -> np.ndarray:
    """`[K, B]` images of each step → `[D, K, B / D]`, the parts of this process's devices."""
    num_steps, batch_size = indices.shape
    num_devices = jax.device_count()
    parts = indices.reshape(num_steps, num_devices, batch_size // num_devices).swapaxes(0, 1)
    return parts[devices.local_part()]


def _epoch_order(seed: int, num_images: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(num_images).astype(np.int32)


# Who reads batch by batch would draw a whole epoch for each.
_last_epoch_orders = functools.lru_cache(maxsize=2)(_epoch_order)


def batch_indices(
    seed: int,
    num_images: int,
    batch_size: int,
    start: int,
    num_steps: int,
    epoch_order: Callable[[int, int, int], np.ndarray] = _last_epoch_orders,
) -> np.ndarray:
    """Which images make up the batches of steps start … start + num_steps − 1.

    Epochs are permutations laid end to end and cut into batches: every image is seen once per
    epoch, and a batch may cross from one epoch to the next. Drawn on the host, 4 bytes an image:
    the order is then the same on every platform and for every version of JAX.

    Args:
      seed: of the order.
      num_images: of an epoch.
      batch_size: images of a step.
      start: the first step.
      num_steps: how many.
      epoch_order: (seed, num_images, epoch) → the permutation of an epoch, from whoever keeps it; by default
        the last two are kept.

    Returns:
      `[num_steps, batch_size]` int32.
    """
    first, last = start * batch_size, (start + num_steps) * batch_size
    epochs = range(first // num_images, (last - 1) // num_images + 1)
    order = np.concatenate([epoch_order(seed, num_images, epoch) for epoch in epochs])
    offset = first - epochs[0] * num_images
    return order[offset : offset + last - first].reshape(num_steps, batch_size)
