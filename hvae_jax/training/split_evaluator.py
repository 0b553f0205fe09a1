"""Functions of a model, or of every model of a stack, over every image of a split."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import jaxpr_as_fun

from hvae_jax.data.stored import Rows, StoredArray
from hvae_jax.keys import EVALUATION, fold_in, from_data, make_key, to_data
from hvae_jax.models import convolution
from hvae_jax.training import devices, processes, stacks
from hvae_jax.training.stacks import Packed
from hvae_jax.training.step import Params, PreprocessFn, pick_micro_batch
from hvae_jax.training.streaming import Stream

EVAL_BATCH = 256
# Of a streamed split's images, on the devices at a time.
CHUNK_BYTES = 32 * 2**20
# Of what is computed, on a device at a time.
OUTPUT_BYTES = 256 * 2**20
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
        self._images = _OnDevices(images, are_split=True)
        self._preprocess_fn, self._programs = preprocess_fn, {}

    def map_images(self, fn: ImageFn, params: Params, key: jax.Array, rows: np.ndarray | None = None) -> Any:
        """`fn(params, x, keys)` of every image.

        Args:
          fn: returns arrays `[B, ...]`; must be the same object from call to call, or it compiles anew.
          params: on the host or on one device.
          key: a typed key; an image's draws depend on it and the image's place in the split alone.
          rows: places of R images. `fn` then returns a pair of trees, and of the second what is of these
            images is all that is ever kept.

        Returns:
          NumPy arrays `[N, ...]`; with `rows` a pair of such and of `[R, ...]`.
        """
        params, key_data = jax.device_put(params), to_data(key)
        if fn not in self._programs:
            over_batches = make_over_batches(fn, self._preprocess_fn)
            size = self._images.part_size(over_batches, params, key_data)
            over_part = _make_over_part(over_batches, size)
            compiled = devices.over_devices(over_part, (False, True, True, False, False))
            self._programs[fn] = compiled, size
        compiled, size = self._programs[fn]

        def outs() -> Iterator[tuple[Any, np.ndarray]]:
            with self._images.parts(size) as parts:
                for part, places in parts:
                    yield compiled(params, *part, key_data), places

        found = _gather(outs(), processes.gather, 1, self._images.num_images, rows)
        return jax.tree.map(lambda a: a[0], found)


class StackEvaluator:
    """The same for every model of a packed stack: the same draws for the same key."""

    def __init__(self, images: Rows, preprocess_fn: PreprocessFn, layout: Packed) -> None:
        """Keeps `images`, `[N, ...]` as stored, on every device; a `StoredArray` is read for every pass."""
        self._images, self._layout = _OnDevices(images, are_split=False), layout
        self._preprocess_fn, self._programs = preprocess_fn, {}

    def map_images(
        self,
        fn: ImageFn,
        params: Params,
        seeds: np.ndarray,
        num_models: int,
        folds: Sequence[int] = (),
        *,
        shared: Any = None,
        rows: np.ndarray | None = None,
    ) -> Any:
        """`fn(params, x, keys)` of every model and image.

        Args:
          fn: returns arrays `[B, ...]`; must be the same object from call to call, or it compiles anew.
          params: of a stack, as the layout puts them on the devices.
          seeds: `[M]`, of each model's key.
          num_models: M.
          folds: numbers that are folded into each key, one after the other.
          shared: what all models share, on the host: `fn` then gets the pair of a model's params and this.
          rows: as `SplitEvaluator.map_images` takes them.

        Returns:
          NumPy arrays `[M, N, ...]`; with `rows` a pair of such and of `[M, R, ...]`.
        """
        keys = [functools.reduce(jax.random.fold_in, folds, make_key(int(seed))) for seed in seeds]
        key_data, shared = np.stack([to_data(key) for key in keys]), jax.device_put(shared)

        def both(params: Params, shared: Any) -> Any:
            return params if shared is None else (params, shared)

        if fn not in self._programs:
            over_batches = make_over_batches(fn, self._preprocess_fn)
            one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[2:], a.dtype), params)
            at_once = self._layout.capacity // jax.local_device_count()
            size = self._images.part_size(over_batches, both(one, shared), key_data[0], at_once)
            over_part = _make_over_part(over_batches, size)

            def over_models(params: Params, keys: Any, images: Any, index: Any, start: Any, shared: Any):
                return stacks.map_models(
                    lambda m: over_part(both(m[0], shared), images, index, start, m[1]), (params, keys)
                )

            is_split = (True, True, True, True, False, False)
            self._programs[fn] = devices.over_devices(over_models, is_split), size
        compiled, size = self._programs[fn]
        keys_on_devices = self._layout.put(key_data)

        def outs() -> Iterator[tuple[Any, np.ndarray]]:
            with self._images.parts(size) as parts:
                for part, places in parts:
                    yield compiled(params, keys_on_devices, *part, shared), places

        def fetch(out: Any) -> Any:
            return self._layout.get(out, num_models)

        return _gather(outs(), fetch, num_models, self._images.num_images, rows)


def _make_over_part(over_batches: Callable[..., Any], size: int) -> Callable[..., Any]:
    """`over_batches` of `size` batches from `start` on, or of all if they are fewer."""

    def over_part(params: Params, images: jax.Array, index: jax.Array, start: Any, key: jax.Array) -> Any:
        here = min(size, images.shape[0])
        part = (jax.lax.dynamic_slice_in_dim(array, start, here) for array in (images, index))
        return over_batches(params, *part, key)

    return over_part


def _gather(
    outs: Iterable[tuple[Any, np.ndarray]],
    fetch: Callable[[Any], Any],
    num_models: int,
    num_images: int,
    rows: np.ndarray | None,
) -> Any:
    """Puts what comes in parts to its places, the next part being computed while one is fetched.

    Args:
      outs: arrays on the devices, and the place of each image in them, `[P]`, −1 for one that is there twice.
      fetch: gives arrays `[..., K, B, ...]`, P · M images in all.
      num_models: M.
      num_images: N.
      rows: of the second of two trees; None where there is one.
    """
    slots = None
    if rows is not None:
        slots = np.full(num_images + 1, -1)  # the last is that of −1
        slots[rows] = np.arange(len(rows))
    kept: list[Any] = []

    def put(out: Any, places: np.ndarray) -> None:
        found = fetch(out)
        trees = [(found, num_images, places)]
        if rows is not None and slots is not None:
            trees = [(found[0], num_images, places), (found[1], len(rows), slots[places])]
        if not kept:
            kept.extend(
                jax.tree.map(lambda a, n=num: _empty(a, num_models, n), tree) for tree, num, _ in trees
            )
        for whole, (tree, _, to) in zip(kept, trees, strict=True):
            jax.tree.map(lambda w, a, to=to: _assign(w, a, to), whole, tree)

    waiting: list[tuple[Any, np.ndarray]] = []
    for entry in outs:
        waiting.append(entry)
        if len(waiting) > 1:
            put(*waiting.pop(0))
    for entry in waiting:
        put(*entry)
    return kept[0] if rows is None else tuple(kept)


def _empty(part: np.ndarray, num_models: int, num: int) -> np.ndarray:
    return np.empty((num_models, num, *part.shape[3:]), part.dtype)


def _assign(whole: np.ndarray, part: np.ndarray, to: np.ndarray) -> None:
    flat, is_kept = np.asarray(part).reshape(len(whole), -1, *part.shape[3:]), to >= 0
    if is_kept.any():
        whole[:, to[is_kept]] = flat[:, is_kept]


class _OnDevices:
    """A split's images on the devices: all of them for good, or chunk after chunk where they are streamed."""

    def __init__(self, images: Rows, are_split: bool) -> None:
        """`are_split`: each device gets its part of the images, else every device gets all."""
        self.num_images = len(images)
        batch = pick_micro_batch((EVAL_BATCH, *images.shape[1:]))
        self._batch = jax.ShapeDtypeStruct((1, batch, *images.shape[1:]), images.dtype)
        self._chunks = _Chunks(images, batch, are_split)
        self._resident = None if isinstance(images, StoredArray) else [devices.split(self._chunks[0])]
        is_large = len(images) >= WORKER_IMAGES
        self._num_workers = images.num_workers if isinstance(images, StoredArray) and is_large else 0

    def part_size(
        self, over_batches: Callable[..., Any], params: Params, key_data: Any, num_models: int = 1
    ) -> int:
        """Batches whose results, of as many models, fit into `OUTPUT_BYTES`; at least 1."""
        index = jax.ShapeDtypeStruct(self._batch.shape[:2], np.int32)
        outs = jax.tree.leaves(jax.eval_shape(over_batches, params, self._batch, index, key_data))
        num_bytes = num_models * sum(out.size * out.dtype.itemsize for out in outs)
        return max(1, OUTPUT_BYTES // max(1, num_bytes))

    @contextlib.contextmanager
    def parts(self, size: int) -> Iterator[Iterator[tuple[tuple[Any, Any, int], np.ndarray]]]:
        """What gives ((images `[D, K, B, ...]`, places `[D, K, B]`, first batch), places `[P]` of its part).

        A part is of `size` batches from that first one on, on each device, or of all. A place that was in an
        earlier part, or is past the end, is −1.
        """
        if self._resident is not None:
            yield self._parts(self._resident, size)
            return
        with contextlib.closing(Stream(self._chunks, 0, self._num_workers, num_ahead=1)) as chunks:
            yield self._parts(chunks, size)

    def _parts(self, chunks: Iterable[Any], size: int) -> Iterator[tuple[tuple[Any, Any, int], np.ndarray]]:
        num_parts, most, batch = self._chunks.shape
        for number, (images, index) in enumerate(chunks):
            places = number * num_parts * most * batch + np.arange(num_parts * most * batch)
            places = np.where(places < self.num_images, places, -1).reshape(num_parts, most, batch)
            here = min(size, most)
            for done in range(0, most, here):
                start = min(done, most - here)
                of_part = places[:, start : start + here].copy()
                of_part[:, : done - start] = -1
                yield (images, index, start), of_part.reshape(-1)


class _Chunks:
    """A split by chunks of batches on this process's devices: images `[D, K, B, ...]`, places `[D, K, B]`.

    One chunk holds all images, unless they are streamed. Past the end stands the last image again.
    """

    def __init__(self, images: Rows, batch: int, are_split: bool) -> None:
        """`shape` is (devices of all processes, K, B)."""
        self._images = images
        num_parts = jax.device_count() if are_split else 1
        most = -(-len(images) // (num_parts * batch))
        if isinstance(images, StoredArray):
            batch_bytes = images.nbytes // len(images) * num_parts * batch
            most = min(most, max(1, CHUNK_BYTES // batch_bytes))
        self.shape = num_parts, most, batch
        # Found here: a worker has no devices.
        self._part = devices.local_part() if are_split else np.zeros(jax.local_device_count(), int)

    def __len__(self) -> int:
        return -(-len(self._images) // math.prod(self.shape))

    def __getitem__(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        size = math.prod(self.shape)
        images = self._images[number * size : (number + 1) * size]
        index = np.minimum(np.arange(size), len(images) - 1).reshape(self.shape)[self._part]
        return images[index], (number * size + index).astype(np.int32)


def make_over_batches(
    fn: ImageFn, preprocess_fn: PreprocessFn
) -> Callable[[Params, jax.Array, jax.Array, jax.Array], Any]:
    """`(params, images [K, B, ...], index [K, B], key data)` → `fn(params, x, keys)` of every batch.

    What comes out is `[K, B, ...]`. An image's keys depend on the key and on its entry in `index`, its
    place in the split, alone.
    """

    @_trace_once
    def one_batch(params: Params, images: jax.Array, index: jax.Array, key_data: jax.Array) -> Any:
        # What judges a model shares no noise with what trained it.
        key = jax.random.fold_in(from_data(key_data), EVALUATION)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, index)
        return fn(params, preprocess_fn(fold_in(keys, 0), images), fold_in(keys, 1))

    def over_batches(params: Params, images: jax.Array, index: jax.Array, key_data: jax.Array) -> Any:
        return jax.lax.map(lambda batch: one_batch(params, *batch, key_data), (images, index))

    return over_batches


def _trace_once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` of arrays, traced once for their shapes, though it is asked for shapes and compiled.

    `jax.jit` would trace it again, since in a program of several devices it counts as another context.
    """
    known: dict[Any, tuple[Callable[..., list[Any]], Any]] = {}

    def call(*arguments: Any) -> Any:
        leaves, treedef = jax.tree.flatten(arguments)
        kind = treedef, tuple((leaf.shape, leaf.dtype) for leaf in leaves), convolution.are_products()
        if kind not in known:
            shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
            traced = jax.jit(fn).trace(*jax.tree.unflatten(treedef, shapes))
            known[kind] = jaxpr_as_fun(traced.jaxpr), jax.tree.structure(traced.out_info)
        compute, structure = known[kind]
        return jax.tree.unflatten(structure, compute(*leaves))

    return call
