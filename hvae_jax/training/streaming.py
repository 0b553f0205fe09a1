"""Images on their way to the devices, batch by batch: grain reads them ahead in processes of its own.

The order does not come from grain but from seed and step, as that of images which stay on the devices
does: a streamed run has the same numbers, and resumes from the step alone.
"""

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from hvae_jax.data.stored import Rows, StoredArray
from hvae_jax.errors import RunError
from hvae_jax.training import devices
from hvae_jax.training.batches import (
    Batches,
    PickFn,
    ResidentBatches,
    batch_indices,
    check_layout,
    split_batches,
)
from hvae_jax.training.config import TrainingConfig
from hvae_jax.training.stacks import Layout

# Of images that one call's steps take: as much lies ready on the devices while a call runs.
CALL_BYTES = 64 * 2**20
MAX_STEPS_PER_CALL = 16
# Ready in each worker, and beside those in this process; a batch each.
WORKER_BUFFER, HOST_BUFFER = 2, 2
# Of threads that read where there are no workers.
NUM_THREADS = 2


def make_batches(images: Rows, config: TrainingConfig, layout: Layout | None = None) -> Batches:
    """Batches of images that are streamed, or else stay on the devices.

    Args:
      images: `[N, ...]` as stored.
      config: how large the batches are, and in which order.
      layout: of the models; one model on all devices by default.

    Raises:
      RunError: the devices do not divide the batch, or no batch fits into the run.
    """
    if isinstance(images, StoredArray):
        return StreamedBatches(images, config, layout)
    return ResidentBatches(images, config, layout)


class StreamedBatches:
    """Batches of images that are read as they are needed; see `batches.Batches`."""

    def __init__(self, images: StoredArray, config: TrainingConfig, layout: Layout | None = None) -> None:
        """Reads nothing yet.

        Raises:
          RunError: the devices do not divide the batch that they share, or no batch fits into the run.
        """
        self._layout = check_layout(layout, config)
        self.num_images, self.image_shape = len(images), images.shape[1:]
        self._images, self._config = images, config
        batch_bytes = images.nbytes // len(images) * config.batch_size
        most = max(1, min(MAX_STEPS_PER_CALL, CALL_BYTES // batch_bytes))
        self._num_steps = config.num_steps(len(images))
        self.steps_per_call = min(most, config.log_every_steps, self._num_steps)
        self.pick: PickFn = pick_streamed
        self._next: int | None = None
        self._stream: Stream | None = None

    def ordered(self, order_seeds: Sequence[int] | np.ndarray) -> "StreamedBatches":
        """The same images for the models of a stack, in the order of their seed.

        Raises:
          RunError: the seeds differ, so that one stream cannot serve all models.
        """
        seeds = np.unique(order_seeds).tolist()
        if len(seeds) > 1:
            raise RunError(
                f"models of {len(seeds)} values of config.training.order_seed cannot share one stream of "
                "images; give them one, or set config.data.streaming=never"
            )
        config = dataclasses.replace(self._config, order_seed=seeds[0])
        return StreamedBatches(self._images, config, self._layout)

    def take(self, step: int, count: int) -> tuple[tuple[jax.Array, ...], tuple[()]]:
        """The images of each step, `[D, B / D, ...]` or `[D, B, ...]`; past `count` the last again."""
        if self._stream is None or step != self._next:
            self.close()
            source = _BatchSource(self._images, self._config, self._num_steps, self._layout)
            self._stream = Stream(source, step, self._images.num_workers, self.steps_per_call)
        taken = [next(self._stream) for _ in range(count)]
        self._next = step + count
        return tuple(taken + taken[-1:] * (self.steps_per_call - count)), ()

    def state(self) -> dict[str, Any]:
        """Nothing: the order follows from the step."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Ends the processes that read."""
        if self._stream is not None:
            self._stream.close()
        self._stream = None


def pick_streamed(together: tuple[jax.Array, ...], own: Any, index: jax.Array) -> jax.Array:
    """The images of the index-th step."""
    del own
    return jax.lax.switch(index, [lambda i=i: together[i] for i in range(len(together))])


class Stream(Iterator[Any]):
    """What a source gives at start, start + 1, … as arrays on the devices, read ahead."""

    def __init__(self, source: Any, start: int, num_workers: int, num_ahead: int) -> None:
        """Starts reading.

        Args:
          source: with `__len__` and `__getitem__`, which gives arrays that lead with the local devices;
            pickled where there are workers.
          start: the first index.
          num_workers: processes that read; 0 reads in threads.
          num_ahead: entries that may lie ready on the devices.
        """
        import grain  # here: a second to import, and most runs do not stream

        if not flags.FLAGS.is_parsed():  # grain asks for flags of its own, also where no program parses any
            flags.FLAGS.mark_as_parsed()
        threads = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=NUM_THREADS)
        if num_workers:  # a worker prepares its next batch while this process fetches the last
            threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
        workers = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=WORKER_BUFFER)
        entries = grain.MapDataset.source(source)[start:].to_iter_dataset(threads)
        entries = entries.mp_prefetch(workers, worker_init_fn=_start_worker)
        # Copied out of the memory shared with the workers, which goes back to them.
        entries = entries.map(lambda entry: jax.tree.map(np.array, entry))
        entries = grain.experimental.device_put(
            entries, devices.sharding(), cpu_buffer_size=HOST_BUFFER, device_buffer_size=num_ahead
        )
        self._iterator = iter(entries)
        self._iterator.start_prefetch()

    def __next__(self) -> Any:
        """The next entry.

        Raises:
          RunError: it could not be read, or a process that reads has ended.
        """
        try:
            return next(self._iterator)
        except (StopIteration, RunError):
            raise
        except Exception as error:  # grain reports the end of a process, and what is raised in one
            raise RunError(
                f"images cannot be read any more: {error}; the same command resumes from the last checkpoint"
            ) from error

    def close(self) -> None:
        """Ends threads and processes."""
        self._iterator.close()


class _BatchSource:
    """The batches of a run by step, `[D, B / D, ...]`; `[D, B, ...]` where no device shares them."""

    def __init__(self, images: StoredArray, config: TrainingConfig, num_steps: int, layout: Layout) -> None:
        self._images, self._config, self._num_steps = images, config, num_steps
        # Of the global batch, the places that our devices take. Found here: a worker has no devices.
        self._places, self._num_copies = np.arange(config.batch_size)[None], jax.local_device_count()
        if layout.splits_batch:
            self._places, self._num_copies = split_batches(self._places)[:, 0], 1

    def __len__(self) -> int:
        return self._num_steps

    def __getitem__(self, step: int) -> np.ndarray:
        config = self._config
        order = batch_indices(config.order_seed, len(self._images), config.batch_size, step, 1)[0]
        images = self._images[order[self._places]]
        return images if self._num_copies == 1 else np.repeat(images, self._num_copies, axis=0)


def _start_worker(index: int, num_workers: int) -> None:
    """What a worker does first."""
    del index, num_workers
    # Ctrl-C and the terminal's end reach every process of it, a job's signals every process of a step;
    # workers read on while the program saves, and end when it says so,
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    # or when it is gone: killed, it says nothing.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
