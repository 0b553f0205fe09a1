"""Functions of a model, or of every model of a stack, over every image of a split."""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from hvae_jax.data.stored import Rows, StoredArray
from hvae_jax.keys import EVALUATION, fold_in, from_data, make_key, to_data
from hvae_jax.training import devices, processes, stacks
from hvae_jax.training.stacks import Packed
from hvae_jax.training.step import Params, PreprocessFn, pick_micro_batch
from hvae_jax.training.streaming import Stream

EVAL_BATCH = 256
# Of a streamed split's images, on the devices at a time.
CHUNK_BYTES = 32 * 2**20
# From as many images on, processes that read are worth the seconds that they take to start.
WORKER_IMAGES = 20_000

# (params, x [B, ...], keys [B]) -> arrays [B, ...]
ImageFn = Callable[[Params, jax.Array, jax.Array], Any]


class SplitEvaluator:
    """Runs functions of (params, x, keys) over every image of a split, on all devices of all processes.

    The images stay on the devices, unless they are streamed, and each function compiles once, so it can
    be called again and again during training. Every image counts once: the split is padded to whole
    batches and cut back. With several processes, all call together, and all get the whole result.
    """

    def __init__(self, images: Rows, preprocess_fn: PreprocessFn) -> None:
        """Keeps `images`, `[N, ...]` as stored, on the devices; a `StoredArray` is read for every pass."""
        self._num_images, self._preprocess_fn = len(images), preprocess_fn
        self._images = _OnDevices(images, are_split=True)
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def map_images(self, fn: ImageFn, params: Params, key: jax.Array) -> Any:
        """`fn(params, x, keys)` of every image.

        Args:
          fn: returns arrays `[B, ...]`; must be the same object from call to call, or it compiles anew.
          params: on the host or on one device.
          key: a typed key; an image's draws depend on it and the image's place in the split alone.

        Returns:
          NumPy arrays `[N, ...]`.
        """
        if fn not in self._compiled:
            over_batches = make_over_batches(fn, self._preprocess_fn)
            self._compiled[fn] = devices.over_devices(over_batches, (False, True, True, False))
        key_data, compiled = to_data(key), self._compiled[fn]
        # Fetched one by one: else all chunks of a streamed split would wait on the devices.
        with self._images.chunks() as chunks:
            outs = [processes.gather(compiled(params, *chunk, key_data)) for chunk in chunks]

        def join(*parts: np.ndarray) -> np.ndarray:
            """`[D, K, B, ...]` of each chunk → `[N, ...]`."""
            return np.concatenate([part.reshape(-1, *part.shape[3:]) for part in parts])[: self._num_images]

        return jax.tree.map(join, *outs)


class StackEvaluator:
    """The same for every model of a packed stack: the same draws for the same key."""

    def __init__(self, images: Rows, preprocess_fn: PreprocessFn, layout: Packed) -> None:
        """Keeps `images`, `[N, ...]` as stored, on every device; a `StoredArray` is read for every pass."""
        self._num_images, self._preprocess_fn, self._layout = len(images), preprocess_fn, layout
        self._images = _OnDevices(images, are_split=False)
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def map_images(
        self, fn: ImageFn, params: Params, seeds: np.ndarray, num_models: int, folds: Sequence[int] = ()
    ) -> Any:
        """`fn(params, x, keys)` of every model and image.

        Args:
          fn: returns arrays `[B, ...]`; must be the same object from call to call, or it compiles anew.
          params: of a stack, as the layout puts them on the devices.
          seeds: `[M]`, of each model's key.
          num_models: M.
          folds: numbers that are folded into each key, one after the other.

        Returns:
          NumPy arrays `[M, N, ...]`.
        """
        if fn not in self._compiled:
            over_batches = make_over_batches(fn, self._preprocess_fn)

            def over_models(params: Params, images: jax.Array, index: jax.Array, keys: jax.Array) -> Any:
                return stacks.map_models(lambda m: over_batches(m[0], images, index, m[1]), (params, keys))

            self._compiled[fn] = devices.over_devices(over_models, (True, True, True, True))
        keys = [functools.reduce(jax.random.fold_in, folds, make_key(int(seed))) for seed in seeds]
        keys = self._layout.put(np.stack([to_data(key) for key in keys]))
        with self._images.chunks() as chunks:
            outs = [
                self._layout.get(self._compiled[fn](params, *chunk, keys), num_models) for chunk in chunks
            ]

        def join(*parts: np.ndarray) -> np.ndarray:
            """`[M, K, B, ...]` of each chunk → `[M, N, ...]`."""
            rows = [part.reshape(num_models, -1, *part.shape[3:]) for part in parts]
            return np.concatenate(rows, axis=1)[:, : self._num_images]

        return jax.tree.map(join, *outs)


class _OnDevices:
    """A split's images on the devices: all of them for good, or chunk after chunk where they are streamed."""

    def __init__(self, images: Rows, are_split: bool) -> None:
        """`are_split`: each device gets its part of the images, else every device gets all."""
        batch = pick_micro_batch((EVAL_BATCH, *images.shape[1:]))
        self._chunks = _Chunks(images, batch, are_split)
        self._resident = None if isinstance(images, StoredArray) else [devices.split(self._chunks[0])]
        is_large = len(images) >= WORKER_IMAGES
        self._num_workers = images.num_workers if isinstance(images, StoredArray) and is_large else 0

    def chunks(self) -> contextlib.AbstractContextManager[Any]:
        """What gives (images `[D, K, B, ...]`, places `[D, K, B]`)."""
        if self._resident is not None:
            return contextlib.nullcontext(self._resident)
        return contextlib.closing(Stream(self._chunks, 0, self._num_workers, num_ahead=1))


class _Chunks:
    """A split by chunks of batches on this process's devices: images `[D, K, B, ...]`, places `[D, K, B]`.

    One chunk holds all images, unless they are streamed. Past the end stands the last image again.
    """

    def __init__(self, images: Rows, batch: int, are_split: bool) -> None:
        self._images = images
        num_parts = jax.device_count() if are_split else 1
        most = -(-len(images) // (num_parts * batch))
        if isinstance(images, StoredArray):
            batch_bytes = images.nbytes // len(images) * num_parts * batch
            most = min(most, max(1, CHUNK_BYTES // batch_bytes))
        self._shape = num_parts, most, batch
        # Found here: a worker has no devices.
        self._part = devices.local_part() if are_split else np.zeros(jax.local_device_count(), int)

    def __len__(self) -> int:
        return -(-len(self._images) // math.prod(self._shape))

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        size = math.prod(self._shape)
        images = self._images[number * size : (number + 1) * size]
        index = np.minimum(np.arange(size), len(images) - 1).reshape(self._shape)[self._part]
        return images[index], (number * size + index).astype(np.int32)


def make_over_batches(
    fn: ImageFn, preprocess_fn: PreprocessFn
) -> Callable[[Params, jax.Array, jax.Array, jax.Array], Any]:
    """`(params, images [K, B, ...], index [K, B], key data)` → `fn(params, x, keys)` of every batch.

    What comes out is `[K, B, ...]`. An image's keys depend on the key and on its entry in `index`, its
    place in the split, alone.
    """

    def over_batches(params: Params, images: jax.Array, index: jax.Array, key_data: jax.Array) -> Any:
        # What judges a model shares no noise with what trained it.
        key = jax.random.fold_in(from_data(key_data), EVALUATION)

        def one_batch(batch: tuple[jax.Array, jax.Array]) -> Any:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch[1])
            return fn(params, preprocess_fn(fold_in(keys, 0), batch[0]), fold_in(keys, 1))

        return jax.lax.map(one_batch, (images, index))

    return over_batches
