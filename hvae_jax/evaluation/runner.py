"""Functions of a model, over images or by itself: of one model at a time, or of a stack side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from hvae_jax.data.stored import Rows
from hvae_jax.keys import from_data, make_key, to_data
from hvae_jax.training import Params, PreprocessFn, devices, stacks
from hvae_jax.training.split_evaluator import ImageFn, SplitEvaluator, StackEvaluator
from hvae_jax.training.stacks import Packed


class Runner:
    """Runs what an evaluation computes of models; the draws are the same for every model.

    One model at a time is spread over all devices, a stack has whole models on each. Each function compiles
    once, so it must be the same object from call to call.
    """

    def __init__(self, images: Rows, preprocess_fn: PreprocessFn, shared: Any, capacity: int = 1) -> None:
        """Puts images on the devices, unless they are streamed.

        Args:
          images: `[N, ...]` as stored.
          preprocess_fn: that of the models.
          shared: parameters that functions get beside those of a model.
          capacity: models at a time.
        """
        self._shared, self._layout, self._compiled = shared, None, {}
        if capacity == 1:
            self._split = SplitEvaluator(images, preprocess_fn)
        else:
            self._layout = Packed(capacity)
            self._stack = StackEvaluator(images, preprocess_fn, self._layout)
        self.capacity = capacity if self._layout is None else self._layout.capacity

    def map_images(
        self, fn: ImageFn, models: Sequence[Params], seed: int, fold: int, rows: np.ndarray | None = None
    ) -> list[Any]:
        """`fn((params, shared), x, keys)` of every image, for each of models.

        Args:
          fn: see `SplitEvaluator.map_images`.
          models: their parameters, on the host; at most `capacity`.
          seed: of the draws.
          fold: number of this pass.
          rows: places of R images. `fn` then returns a pair, of whose second what is of these is kept.

        Returns:
          for each model arrays `[N, ...]`; with `rows` a pair of such and of `[R, ...]`.
        """
        if self._layout is None:
            key = jax.random.fold_in(make_key(seed), fold)
            return [self._split.map_images(fn, (one, self._shared), key, rows) for one in models]
        seeds, params = np.full(len(models), seed), self._layout.put(_stacked(models))
        found = self._stack.map_images(
            fn, params, seeds, len(models), (fold,), shared=self._shared, rows=rows
        )
        return [stacks.entry(found, number) for number in range(len(models))]

    def call(self, fn: Callable[..., Any], models: Sequence[Params], seed: int, fold: int) -> list[Any]:
        """`fn((params, shared), key)` for each of models, as NumPy arrays; arguments as in `map_images`."""
        key_data = to_data(jax.random.fold_in(make_key(seed), fold))
        if self._layout is None:
            if fn not in self._compiled:
                self._compiled[fn] = jax.jit(lambda both, data: fn(both, from_data(data)))
            return [jax.device_get(self._compiled[fn]((one, self._shared), key_data)) for one in models]
        if fn not in self._compiled:

            def over_models(params: Params, shared: Any, data: jax.Array) -> Any:
                return stacks.map_models(lambda one: fn((one, shared), from_data(data)), params)

            self._compiled[fn] = devices.over_devices(over_models, (True, False, False))
        out = self._compiled[fn](self._layout.put(_stacked(models)), self._shared, key_data)
        found = self._layout.get(out, len(models))
        return [stacks.entry(found, number) for number in range(len(models))]


def _stacked(models: Sequence[Params]) -> Params:
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *models)
